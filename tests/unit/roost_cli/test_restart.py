"""Tests what `roost restart` says if no supervisor can restart a process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from roost_cli import runfile
from roost_cli.commands import run
from roost_cli.supervisor.groups import ALL, MEMBERS, Group

ADDRESS = "127.0.0.1:50997"


@pytest.fixture(autouse=True)
def _own_runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ROOST_GRPC_ADDRESS", raising=False)


def write_run_file(*members: str) -> None:
    groups = str(Group(ALL, members))
    runfile.write(runfile.RunFile(ADDRESS, "", os.getpid(), time.time(), "token", groups=groups))


def test_restart_without_mesh_says_that_none_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["restart", "tweet"]) == 2
    assert "no mesh runs here: start one" in capsys.readouterr().err
    assert run(["restart", "tweet", "--grpc", ADDRESS]) == 2
    assert f"no mesh runs here at {ADDRESS}" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--grpc", ADDRESS), ("--grpc", "localhost:50997")])
def test_restart_in_mesh_of_one_process_says_to_start_it_again(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    write_run_file(*MEMBERS)
    assert run(["restart", "tweet", *options]) == 2
    told = f"roost: this mesh runs in one process (pid {os.getpid()}): stop it and start it again\n"
    assert capsys.readouterr().err == told


def test_restart_in_mesh_of_roost_serve_names_roost_serve(capsys: pytest.CaptureFixture[str]) -> None:
    write_run_file("gateway", "timeline")
    assert run(["restart", "tweet"]) == 2
    assert "no supervisor started this mesh" in (told := capsys.readouterr().err)
    assert "start it again with `roost serve`" in told
