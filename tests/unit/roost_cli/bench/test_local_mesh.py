"""Tests that `roost bench` finds only meshes that it can measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.bench import local_mesh
from roost_cli.exit_codes import CommandError


def test_find_mesh_on_other_machine_raises_command_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The settings name the operator token of a mesh that has no run file here, because it runs on another machine.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("ROOST_OPERATOR_TOKEN", "0123456789abcdef0123456789abcdef")
    with pytest.raises(CommandError, match=r"no mesh of this user runs at 192\.0\.2\.1:50051 on this machine"):
        local_mesh.find("192.0.2.1:50051", None)


def test_find_address_without_mesh_says_that_none_runs_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("ROOST_OPERATOR_TOKEN", raising=False)
    with pytest.raises(CommandError, match=r"no mesh of this user runs at 127\.0\.0\.1:35099 on this machine"):
        local_mesh.find("127.0.0.1:35099", None)
