"""Ids that are ahead of the clock: writes are refused, and /readyz and /metrics report the distance."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from gateway_http.ops import Ops
from gateway_http.server import HttpServer
from tests.conftest import MeshFactory
from tests.functional.conftest import PASSWORD, open_web
from tests.waiting import WITHIN_S

HOUR_MS = 3_600_000


@pytest.mark.embedded
async def test_readyz_and_metrics_report_ids_ahead_of_clock(start_mesh: MeshFactory, tmp_path: Path) -> None:
    data = tmp_path / "data"
    mesh = await start_mesh(data_dir=data)
    server, client = await open_web(mesh, mesh.process.settings)
    async with client:
        assert (await client.get("/readyz")).json()["status"] == "ready"
    await server.stop()
    await mesh.process.stop()
    # The lease that a process leaves if its clock was an hour ahead.
    (data / "worker.lease").write_text(f"{time.time_ns() // 1_000_000 + HOUR_MS:019d}\n")
    again = await start_mesh(data_dir=data)
    server, client = await open_web(again, again.process.settings)
    ops = HttpServer(Ops(again.process.health), "127.0.0.1", 0)
    await ops.start()
    async with client, httpx.AsyncClient(base_url=ops.url, timeout=WITHIN_S) as watcher:
        body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
        assert (await client.post("/v1/auth/signup", json=body)).status_code == 503
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert "behind the ids given out" in ready.json()["faults"]["ids"]
        lines = dict(
            line.rsplit(" ", 1) for line in (await watcher.get("/metrics")).text.splitlines() if line[:1] != "#"
        )
        assert float(lines["roost_snowflake_clock_behind_seconds"]) == pytest.approx(3_600, abs=60)
        assert float(lines["roost_snowflake_available"]) == 0
    await ops.stop()
    await server.stop()
