"""Tests that data directories are private, and that key files are complete or absent."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.platform import files
from services.platform.rpc import errors

KEY = bytes(range(32))
LOST = "what it is for is lost"


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_open_data_dir_removes_permissions_of_others(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "search" / "1").mkdir(parents=True)
    for name in ("tweet.db", "tweet.db-wal", "cursor.key", "search/1/meta.json"):
        (data / name).write_bytes(b"x")
    files.open_data_dir(data)
    (data / "later").write_bytes(b"x")
    found = {path.relative_to(data).as_posix(): mode_of(path) for path in data.rglob("*")}
    assert mode_of(data) == 0o700
    assert found == {
        "search": 0o700,
        "search/1": 0o700,
        "search/1/meta.json": 0o600,
        "tweet.db": 0o600,
        "tweet.db-wal": 0o600,
        "cursor.key": 0o600,
        "later": 0o600,
    }


def test_open_data_dir_keeps_permissions_of_unrelated_files(tmp_path: Path) -> None:
    data = tmp_path / "home"
    data.mkdir(mode=0o755)
    (data / "page.html").touch(mode=0o644)
    (data / "graph.db").touch(mode=0o644)
    (data / "elsewhere").touch(mode=0o644)
    (data / "link.db").symlink_to(data / "elsewhere")
    files.open_data_dir(data)
    assert [mode_of(data / name) for name in (".", "page.html", "graph.db", "elsewhere")] == [
        0o755,
        0o644,
        0o600,
        0o644,
    ]


def test_open_data_dir_at_a_file_raises_with_reason(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(errors.RoostError, match="data cannot be used: a file has the name of its folder"):
        files.open_data_dir(tmp_path / "data")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can create one")
def test_private_dir_that_cannot_be_created_says_what_to_do() -> None:
    path = Path("/proc/roost-data")
    with pytest.raises(errors.RoostError) as told:
        files.private_dir(path)
    assert told.value.message == (
        f"{path} cannot be used: it does not exist and cannot be created: choose other data with --data"
    )


def test_load_or_create_key_is_created_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "a.key"
    assert files.load_or_create_key(path, lambda: KEY, LOST) == KEY
    assert files.load_or_create_key(path, lambda: bytes(32), LOST) == KEY
    assert [mode_of(path), mode_of(path.parent)] == [0o600, 0o700]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.key"]


@pytest.mark.parametrize("size", [0, 31])
def test_load_or_create_key_of_wrong_size_raises_with_remedy(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(KEY[:size])
    with pytest.raises(errors.RoostError) as caught:
        files.load_or_create_key(path, lambda: KEY, LOST)
    for part in (str(path), f"holds {size} bytes", "backup", "remove the file", LOST):
        assert part in caught.value.message


def test_load_or_create_key_of_zero_bytes_raises_with_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(bytes(len(KEY)))
    with pytest.raises(errors.RoostError) as caught:
        files.load_or_create_key(path, lambda: KEY, LOST)
    for part in (str(path), "holds zero bytes only", "backup", "remove the file", LOST):
        assert part in caught.value.message


# Exits before the file operation that argv[2] names.
_DYING = """
import os, sys, pathlib
from services.platform import files
def dying(name, real):
    def step(*args, **more):
        if name == sys.argv[2]:
            os._exit(9)
        return real(*args, **more)
    return step
os.open = dying("open", os.open)
os.fsync = dying("fsync", os.fsync)
pathlib.Path.replace = dying("replace", pathlib.Path.replace)
files.load_or_create_key(pathlib.Path(sys.argv[1]), lambda: b"k" * 32, "")
"""


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_load_or_create_key_after_crash_is_created_by_next_process(tmp_path: Path, step: str) -> None:
    path = tmp_path / "a.key"
    died = subprocess.run([sys.executable, "-c", _DYING, str(path), step], check=False, timeout=60)
    assert died.returncode == 9
    assert not path.exists()
    assert files.load_or_create_key(path, lambda: KEY, LOST) == KEY
