"""Errors about an unusable database name the file, the cause and a remedy."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.platform.rpc import errors
from services.platform.sqlite.database import Database

SCHEMA = ["CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"]


async def refusal(path: Path) -> str:
    with pytest.raises(errors.RoostError) as caught:
        await Database.open(path, SCHEMA)
    assert caught.value.reason == "DATA_UNUSABLE"
    assert str(path) in caught.value.message
    # The lock was released after the failed start.
    return caught.value.message


def damage_header(path: Path) -> None:
    path.write_bytes(b"\0garbage" * 1_000)


def truncate(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE a (b)")
        connection.execute("INSERT INTO a VALUES (zeroblob(100000))")
    connection.close()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3_000)


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damage_header, ("damaged", "backup")),
        (truncate, ("damaged", "backup")),
        (make_folder, ("a folder has its name", "move that away")),
    ],
)
async def test_open_damaged_file_error_contains_remedy(
    tmp_path: Path, spoil: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    path = tmp_path / "tweet.db"
    spoil(path)
    message = await refusal(path)
    assert all(word in message for word in words), message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this user cannot mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("free_bytes", [0, 4_096, 16_384])
async def test_open_full_disk_error_contains_remedy(small_disk: Path, free_bytes: int) -> None:
    (small_disk / "filler").write_bytes(bytes(65_536 - free_bytes))
    assert "the disk is full" in await refusal(small_disk / "tweet.db")


async def test_read_damaged_page_error_names_file_only_in_note(tmp_path: Path) -> None:
    path = tmp_path / "tweet.db"
    db = await Database.open(path, SCHEMA)
    await db.write(lambda c: c.executemany("INSERT INTO item VALUES (?, ?)", [(n, "x" * 500) for n in range(500)]))
    await db.close()
    with path.open("r+b") as file:
        file.seek(8_192)
        file.write(b"\xff" * 100_000)
    again = await Database.open(path, SCHEMA)
    with pytest.raises(errors.RoostError) as caught:
        await again.read(lambda c: c.execute("SELECT sum(length(name)) FROM item").fetchone())
    await again.close()
    assert path.name not in caught.value.message
    assert "damaged" in caught.value.__notes__[0]
    assert str(path) in caught.value.__notes__[0]


async def test_open_restricts_file_permissions(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "tweet.db"
        path.touch(mode=0o644)
        db = await Database.open(path, SCHEMA)
        await db.write(lambda c: c.execute("INSERT INTO item VALUES (1, 'x')"))
        modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
        await db.close()
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("tweet.db", "tweet.db-wal", "tweet.db-shm", "tweet.db.lock"), 0o600)
