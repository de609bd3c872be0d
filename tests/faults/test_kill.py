"""Kills processes of a running mesh one by one: repeatable requests succeed, and acknowledged writes exist once."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_cli.drill.command import REPLICAS_PLAN, Plan, services_plan
from roost_cli.drill.kill import KillDrill
from roost_cli.drill.multi_process_mesh import MultiProcessMesh
from roost_cli.progress import Silent
from tests.cluster import Namespace

# Twelve processes start, and four are killed under load: two minutes of CPU time.
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

# Two replicas of these and one of each other service; `roost drill kill` has two of all and kills each.
SERVICES = ("tweet", "timeline")
ROUNDS = 2
# Few clients and many writes, because the test is short.
CLIENTS, READS_A_WRITE = 6, 10


@pytest.mark.parametrize("plan", [services_plan(SERVICES), REPLICAS_PLAN], ids=["services", "replicas"])
async def test_kill_drill_killed_process_loses_nothing(tmp_path: Path, namespace: Namespace, plan: Plan) -> None:
    settings = {name: str(value) for name, value in namespace.settings.items()}
    mesh_processes = await MultiProcessMesh.start(tmp_path, settings, plan.shape)
    try:
        drill = KillDrill(
            mesh_processes, 1, Silent(), reads_a_write=READS_A_WRITE, clients=CLIENTS, attempts=plan.attempts
        )
        result = await drill.run(plan.groups, ROUNDS)
        await mesh_processes.stop()
    finally:
        await mesh_processes.kill_all()
    assert result.rounds == ROUNDS
    assert not result.lost
    assert not result.duplicated
    assert not result.strange
    assert result.homes_exact
    # On a busy machine the store may answer too late (`result.slow`); these requests succeeded when they were repeated.
    assert not result.failures
    assert result.acknowledged > 0
