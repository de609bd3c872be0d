"""Drain after SIGTERM: the process reports that it is not ready, serves on, and ends at a second signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from roost_cli import runfile
from services.platform.config import child_environment, runtime_dir

pytestmark = pytest.mark.embedded

ANY_PORT = "127.0.0.1:0"
# Longer than the test: the second signal ends the drain.
DRAIN_S = "3600"
PATIENCE_S = 60.0


class Running:
    """A `roost up` in its own process, with its addresses."""

    def __init__(self, process: asyncio.subprocess.Process, run: runfile.RunFile) -> None:
        self.process = process
        self.http = f"http://{run.http}"
        self.ops = f"http://{run.ops}"
        self.grpc = run.grpc


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    argv = ["up", "--no-demo", "--http", ANY_PORT, "--grpc", ANY_PORT, "--data", str(tmp_path / "data")]
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "roost_cli",
            *argv,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=child_environment(runtime, drain_s=DRAIN_S, ops_address=ANY_PORT),
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"roost is ready" not in (line := await process.stdout.readline()):
                assert line, (tmp_path / "log").read_text()
        (found,) = runfile.running(runtime_dir(runtime))
        yield Running(process, found)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_drain_after_sigterm_serves_http_and_grpc(running: Running) -> None:
    async with (
        httpx.AsyncClient(base_url=running.http, timeout=PATIENCE_S) as kept,
        httpx.AsyncClient(base_url=running.http, headers={"connection": "close"}, timeout=PATIENCE_S) as fresh,
        grpc.aio.insecure_channel(running.grpc) as channel,
        asyncio.timeout(PATIENCE_S),
    ):
        before = await kept.get("/readyz")
        assert (before.status_code, "connection" in before.headers) == (200, False)
        running.process.send_signal(signal.SIGTERM)
        while (await fresh.get("/readyz")).status_code != 503:
            await asyncio.sleep(0.01)
        assert (await fresh.get(f"{running.ops}/readyz")).status_code == 503
        assert (await fresh.get("/livez")).status_code == 200
        # An older connection is still served, with `connection: close`: the load balancer sends the next call elsewhere.
        served = await kept.get("/v1/tweets/1")
        assert (served.status_code, served.headers["connection"]) == (404, "close")
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
        running.process.send_signal(signal.SIGTERM)
        assert await running.process.wait() == 0
        with pytest.raises(httpx.ConnectError):
            await fresh.get("/livez")
