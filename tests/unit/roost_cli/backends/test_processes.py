"""Tests that background processes outlive their parent and that only recorded processes are stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roost_cli.backends import processes
from roost_cli.backends.processes import Record, Stopped
from roost_cli.process_birth import birth
from tests.waiting import block_until

SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(300)"]
DEAF = [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEP[2]]


def launch(folder: Path, argv: list[str]) -> Record:
    """Starts a process and waits for its first output."""
    log = folder / "logs" / "one.log"
    record = processes.start(argv, cwd=folder, log=log, user=None, record=folder / "run" / "one.json")
    block_until(log.read_bytes)
    return record


def test_start_record_finds_process_and_stop_works_once(tmp_path: Path) -> None:
    record = launch(tmp_path, SLEEP)
    assert record.alive()
    assert os.getsid(record.pid) == record.pid, "in a session of its own"
    found = processes.recorded(tmp_path / "run" / "one.json")
    assert found == record
    assert processes.stop(record) is Stopped.CLEANLY
    assert not record.alive()
    assert processes.stop(record) is Stopped.ENDED_BEFORE


def test_start_process_outlives_parent(tmp_path: Path) -> None:
    starter = (
        "import sys; from pathlib import Path; from roost_cli.backends import processes; folder = Path(sys.argv[1]);"
        "processes.start(sys.argv[2:], cwd=folder, log=folder / 'log', user=None, record=folder / 'record.json')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", starter, str(tmp_path), *SLEEP], check=True)
    record = processes.recorded(tmp_path / "record.json")
    assert record is not None
    assert record.alive()
    assert processes.stop(record) is Stopped.CLEANLY


def test_stop_process_ignoring_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_WITHIN_S", 0.3)
    record = launch(tmp_path, DEAF)
    assert processes.stop(record) is Stopped.KILLED
    assert not record.alive()


def test_stop_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    record = launch(tmp_path, SLEEP)
    stale = Record(record.pid, "an earlier birth", record.argv)
    assert not stale.alive()
    assert processes.stop(stale) is Stopped.ENDED_BEFORE
    assert record.alive()
    processes.stop(record)


def test_alive_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    born = birth(child.pid)
    block_until(lambda: birth(child.pid) is None)
    assert not Record(child.pid, born or "", []).alive()
    child.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"pid": 1})])
def test_recorded_broken_file_returns_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    assert processes.recorded(path) is None
    path.write_text(text)
    assert processes.recorded(path) is None
