"""Tests that `roost events replay` calls the running mesh that owns the data directory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost_cli import events, runfile
from roost_cli.connection import MeshTarget
from roost_cli.exit_codes import CommandError
from roost_cli.options import settings_with
from services.platform import logs
from services.platform.config import Settings
from services.platform.sqlite.event_log import EmbeddedLog


@pytest.fixture
async def in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """Yields the settings of a data directory whose log another process has open, with fan-out as one of its
    consumers."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    log = await EmbeddedLog.open(tmp_path / "log.db")
    consumer = log.consumer(events.FANOUT, events.known_topics(), events._ignore_batch)
    await consumer.seek(time_ms=0)
    yield settings_with({"data_dir": tmp_path})
    await log.close()


def running(mesh: MeshTarget, data: Path) -> None:
    runfile.write(runfile.RunFile(mesh.address, "", os.getpid(), 0.0, mesh.operator_token, data=str(data)))


async def test_replay_calls_mesh_that_owns_data_dir(in_use: Settings, fake_mesh: MeshTarget, state: Any) -> None:
    running(fake_mesh, in_use.data_dir)
    running(MeshTarget("127.0.0.1:1", "another"), Path("/srv/other"))
    await events._replay_embedded(in_use, events.FANOUT, 0, None)
    assert state.calls["ReplayFanout"] == 1


async def test_replay_without_run_file_requires_address(in_use: Settings, fake_mesh: MeshTarget, state: Any) -> None:
    running(fake_mesh, Path("/srv/other"))
    with pytest.raises(CommandError, match="name it with --grpc HOST:PORT"):
        await events._replay_embedded(in_use, events.FANOUT, 0, None)
    await events._replay_embedded(in_use, events.FANOUT, 0, fake_mesh.address)
    assert state.calls["ReplayFanout"] == 1


def test_settings_without_options_name_log_of_running_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    for name in ("ROOST_BACKEND", "ROOST_DATA_DIR", "ROOST_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    assert events._settings(False, None) == Settings()
    one = runfile.RunFile(
        "127.0.0.1:1",
        "",
        os.getpid(),
        0.0,
        "t",
        "/srv",
        backend="cluster",
        namespace="mine",
        kafka_bootstrap_servers="k:9",
    )
    runfile.write(one)
    found = events._settings(False, None)
    assert (found.backend, found.namespace, found.kafka_bootstrap_servers) == ("cluster", "mine", "k:9")
    assert capsys.readouterr().err == "the event log of the mesh at 127.0.0.1:1\n"
    # An option names another log.
    assert events._settings(False, tmp_path).backend == "embedded"
    assert events._settings(True, None).namespace == "roost"
    runfile.write(replace(one, backend="embedded"))
    assert (events._settings(False, None).backend, events._settings(False, None).data_dir) == ("embedded", Path("/srv"))
    runfile.write(replace(one, grpc="127.0.0.1:2"))
    with pytest.raises(CommandError, match="several meshes run here: name the event log with --data DIR or --cluster"):
        events._settings(False, None)
