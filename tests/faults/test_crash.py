"""SIGKILL at random moments under load: acknowledged writes exist once, and the mesh recovers by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.drill.command import STARTUP_WITHIN_S
from roost_cli.drill.crash import CrashDrill
from roost_cli.drill.single_process_mesh import MeshLauncher
from roost_cli.progress import Silent
from services.platform.config import runtime_dir

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

# `roost drill crash` makes twenty rounds.
ROUNDS = 3


async def test_crash_drill_killed_mesh_keeps_acknowledged_writes(tmp_path: Path) -> None:
    drill = CrashDrill(MeshLauncher(tmp_path), seed=1, shown=Silent())
    result = await drill.run(ROUNDS)
    assert result.rounds == ROUNDS
    assert not result.lost
    assert not result.duplicated
    assert not result.strange
    assert result.homes_exact
    assert max(result.startups_s) <= STARTUP_WITHIN_S
    # The kills happened under load.
    assert result.acknowledged > 100 * ROUNDS
    assert result.unknown > 0


async def test_clean_stop_leaves_no_run_file_or_wal(tmp_path: Path) -> None:
    launcher = MeshLauncher(tmp_path)
    child = await launcher.start()
    assert list(runtime_dir(tmp_path / "runtime").glob("*.json"))
    await child.stop()
    assert not list(runtime_dir(tmp_path / "runtime").glob("*.json"))
    assert not list((tmp_path / "data").glob("*-wal")), "a clean stop writes every log back"
