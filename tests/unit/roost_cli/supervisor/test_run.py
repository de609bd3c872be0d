"""Tests what keeps the supervisor of a mesh of several processes from starting."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.supervisor import run
from roost_cli.supervisor.groups import Group, replica_groups
from roost_cli.supervisor.shared_addresses import SharedAddresses
from services.platform.config import Settings


def test_second_supervisor_with_same_data_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path, http_address="127.0.0.1:0", grpc_address="127.0.0.1:0", backend="cluster")
    groups = replica_groups("2")
    refused: list[CommandError] = []

    async def start_second(settings: Settings, groups: Sequence[Group], addresses: SharedAddresses) -> None:
        # Ports of its own, as the settings have port 0.
        with pytest.raises(CommandError) as caught:
            await asyncio.to_thread(run.supervise, settings, groups)
        refused.append(caught.value)

    monkeypatch.setattr(run, "_supervise", start_second)
    run.supervise(settings, groups)
    assert f"{tmp_path} is in use by another roost process (pid {os.getpid()})" in refused[0].message
    assert refused[0].code == UNUSABLE
    # The lock ends with the supervisor.
    refused.clear()
    run.supervise(settings, groups)
    assert len(refused) == 1
