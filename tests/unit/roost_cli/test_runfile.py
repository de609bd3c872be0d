"""Tests that run files are private, name only running processes, and are removed with their mesh."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from roost_cli import runfile
from roost_cli.runfile import RunFile


def run_at(grpc: str, pid: int | None = None) -> RunFile:
    return RunFile(grpc, "127.0.0.1:8080", os.getpid() if pid is None else pid, 1_790_000_000.0, "secret-token")


def gone() -> int:
    """Returns the id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_write_sets_owner_only_mode(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = runfile.write(run_at("127.0.0.1:50051"), tmp_path / "roost" / "run")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_running_returns_written_run_file(tmp_path: Path) -> None:
    runs = [run_at("127.0.0.1:50051"), run_at("[::1]:50052")]
    for run in runs:
        runfile.write(run, tmp_path)
    assert runfile.running(tmp_path) == runs
    assert len(list(tmp_path.iterdir())) == 2


def test_running_removes_file_of_ended_process(tmp_path: Path) -> None:
    path = runfile.write(run_at("127.0.0.1:50051", gone()), tmp_path)
    assert runfile.running(tmp_path) == []
    assert not path.exists()


def test_write_replaces_file_of_earlier_mesh(tmp_path: Path) -> None:
    runfile.write(run_at("127.0.0.1:50051", gone()), tmp_path)
    runfile.write(run_at("127.0.0.1:50051"), tmp_path)
    assert runfile.running(tmp_path) == [run_at("127.0.0.1:50051")]


def test_remove_keeps_file_of_successor(tmp_path: Path) -> None:
    runfile.write(run_at("127.0.0.1:50051"), tmp_path)
    runfile.remove(run_at("127.0.0.1:50051", pid=1), tmp_path)
    assert runfile.running(tmp_path) == [run_at("127.0.0.1:50051")]
    runfile.remove(run_at("127.0.0.1:50051"), tmp_path)
    assert runfile.running(tmp_path) == []
    runfile.remove(run_at("127.0.0.1:50051"), tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"grpc": "x"}', '{"other": 1}'])
def test_running_ignores_other_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert runfile.running(tmp_path) == []


def test_running_without_directory_returns_none(tmp_path: Path) -> None:
    assert runfile.running(tmp_path / "nowhere") == []


def test_run_file_repr_hides_token() -> None:
    assert "secret-token" not in repr(run_at("127.0.0.1:50051"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux gives threads ids of processes")
def test_running_removes_file_whose_id_is_now_a_thread(tmp_path: Path) -> None:
    path = runfile.write(run_at("127.0.0.1:50051", gone()), tmp_path)
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        reused = {**json.loads(path.read_text()), "pid": thread.native_id, "birth": "an earlier birth"}
        path.write_text(json.dumps(reused))
        assert runfile.running(tmp_path) == []
    finally:
        ended.set()
        thread.join()
    assert not path.exists()


def test_running_removes_file_whose_id_was_reused(tmp_path: Path) -> None:
    path = runfile.write(run_at("127.0.0.1:50051"), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "birth": "an earlier birth"}))
    assert runfile.running(tmp_path) == []
    assert not path.exists()


def test_running_file_of_older_version_counts_while_its_process_runs(tmp_path: Path) -> None:
    path = runfile.write(run_at("127.0.0.1:50051"), tmp_path)
    older = json.loads(path.read_text())
    del older["birth"]
    path.write_text(json.dumps(older))
    assert runfile.running(tmp_path) == [run_at("127.0.0.1:50051")]
