"""`scripts/venv`: what `ensure_venv` runs. Its interpreter is a recorder, because pip would need the network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WITHIN_S = 60
# Records its arguments. As pip it then waits until somebody opens the pipe `pip-may-end`, if there is one.
INTERPRETER = """#!/usr/bin/env bash
echo "$1 ${2-}" >>"{tree}/runs"
if [ "$1" = -m ] && [ -p "{tree}/pip-may-end" ]; then read -r _ <"{tree}/pip-may-end"; fi
[ ! -f "{tree}/fails" ]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with an environment that nothing was installed into."""
    tree = tmp_path.resolve()
    (tree / "scripts").mkdir()
    (tree / "protos/buf/validate").mkdir(parents=True)
    (tree / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/venv", tree / "scripts")
    for name in ("scripts/generate.py", "pyproject.toml", "protos/a.proto", "protos/buf/validate/validate_pb2.py"):
        (tree / name).write_text("1")
    (tree / ".venv/pyvenv.cfg").write_text(f"{tree}/.venv")
    interpreter = tree / ".venv/bin/python"
    interpreter.write_text(INTERPRETER.replace("{tree}", str(tree)))
    interpreter.chmod(0o755)
    return tree


def start(tree: Path, kind: str) -> subprocess.Popen[str]:
    """Starts `ensure_venv` as a script does."""
    return subprocess.Popen(
        ["bash", "-euc", f". {tree}/scripts/venv; ensure_venv {kind}"], stderr=subprocess.PIPE, text=True
    )


def runs(tree: Path, kind: str, code: int = 0) -> list[str]:
    """Returns what `ensure_venv` runs."""
    (tree / "runs").write_text("")
    with start(tree, kind) as ensure:
        _, text = ensure.communicate(timeout=WITHIN_S)
    assert (ensure.returncode != 0) == (code != 0), text
    assert not (tree / ".venv-installer").exists()
    return (tree / "runs").read_text().splitlines()


def test_ensure_venv_proto_changed_generates_stubs_only(tree: Path) -> None:
    assert runs(tree, "dev") == ["-m pip"]
    assert runs(tree, "dev") == runs(tree, "run") == []
    (tree / "protos/a.proto").write_text("2")
    assert runs(tree, "dev") == ["scripts/generate.py "]
    assert runs(tree, "dev") == []
    (tree / "pyproject.toml").write_text("2")
    assert runs(tree, "dev") == ["-m pip"]


def test_ensure_venv_without_generator_installs_after_proto_change(tree: Path) -> None:
    assert runs(tree, "run") == ["-m pip"]
    (tree / "protos/a.proto").write_text("2")
    assert runs(tree, "run") == ["-m pip"]
    assert runs(tree, "dev") == ["-m pip"]


def test_ensure_venv_failure_is_repeated_at_next_start(tree: Path) -> None:
    assert runs(tree, "dev") == ["-m pip"]
    (tree / "protos/a.proto").write_text("2")
    (tree / "fails").touch()
    assert runs(tree, "dev", code=1) == ["scripts/generate.py "]
    assert runs(tree, "dev", code=1) == ["scripts/generate.py "]
    (tree / "fails").unlink()
    assert runs(tree, "dev") == ["scripts/generate.py "]
    assert runs(tree, "dev") == []


@pytest.mark.skipif(shutil.which("flock") is None, reason="this machine has no flock, so installations do not wait")
def test_ensure_venv_second_installation_names_the_first(tree: Path) -> None:
    os.mkfifo(tree / "pip-may-end")
    with start(tree, "dev") as first:
        assert first.stderr is not None
        assert "installing Roost" in first.stderr.readline()
        with start(tree, "dev") as second:
            assert second.stderr is not None
            line = second.stderr.readline()
            (tree / "pip-may-end").write_text("\n")
            assert f"waiting for another installation (process {first.pid})" in line
            assert second.wait(WITHIN_S) == first.wait(WITHIN_S) == 0
    assert (tree / "runs").read_text() == "-m pip\n"
