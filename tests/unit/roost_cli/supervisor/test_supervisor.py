"""Tests the supervisor with real processes of the registry, the only service that needs no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost_cli.exit_codes import CommandError
from roost_cli.supervisor import control
from roost_cli.supervisor.supervisor import Supervisor
from roost_cli.supervisor.topology import Phase, ProcessSpec
from tests.waiting import wait_until

WITHIN_S = 60.0
ROOT = Path(__file__).resolve().parents[4]


def part(folder: Path, name: str = "registry", *arguments: str, number: int = 1) -> ProcessSpec:
    data = folder / f"{name}-{number}"
    environment = {"exit_with_parent": "true", "log_level": "error"}
    return ProcessSpec(
        name,
        number,
        ("serve", "registry", "--grpc", "127.0.0.1:0", *arguments, "--data", str(data)),
        environment,
        members=(f"{name}_service",),
        phase=Phase.REGISTRY if name == "registry" else Phase.SERVICES,
        has_fixed_address=name == "registry",
    )


def alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    # The names are those of services, so that restarts may overlap; all of them run the registry.
    parts = [part(tmp_path), part(tmp_path, "tweet"), part(tmp_path, "graph")]
    supervisor = Supervisor(parts, tmp_path / "logs", lambda line: None)
    await supervisor.start()
    yield supervisor
    await supervisor.stop()


async def test_supervisor_restarts_dead_process_and_overlaps_rolling_restart(supervisor: Supervisor) -> None:
    (before,) = supervisor.pids()["tweet"]
    os.kill(before, signal.SIGKILL)
    await wait_until(lambda: supervisor.pids().get("tweet", [before]) != [before])
    (second,) = supervisor.pids()["tweet"]
    overlapped = False

    async def watch() -> None:
        nonlocal overlapped
        while True:
            overlapped |= len(supervisor.pids().get("tweet", [])) == 2
            await asyncio.sleep(0.01)

    watching = asyncio.ensure_future(watch())
    await supervisor.restart("tweet")
    watching.cancel()
    assert overlapped
    assert not alive(second)
    (third,) = supervisor.pids()["tweet"]
    assert alive(third)
    everybody = [pid for pids in supervisor.pids().values() for pid in pids]
    await supervisor.stop()
    assert not any(map(alive, everybody))


async def test_stop_during_rolling_restart_starts_no_further_process(tmp_path: Path) -> None:
    lines: list[str] = []
    parts = [part(tmp_path, "tweet", number=number) for number in (1, 2)]
    supervisor = Supervisor(parts, tmp_path / "logs", lines.append)
    await supervisor.start()
    restarting = asyncio.ensure_future(supervisor.restart("tweet"))
    await wait_until(lambda: any(line.startswith("tweet-3 is ready") for line in lines))
    await supervisor.stop()
    with pytest.raises(CommandError, match="the mesh is stopping"):
        await restarting
    assert not supervisor.pids()


async def test_control_socket_request_restarts_service(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    (before,) = supervisor.pids()["graph"]
    async with control.serving_restarts(supervisor, path):
        assert path.stat().st_mode & 0o077 == 0
        done = await control.ask_restart(path, "graph_service")
        assert done.group == "graph"
        assert done.seconds > 0
        assert supervisor.pids()["graph"] != [before]
        with pytest.raises(
            CommandError, match=r"nothing named nobody runs; name one of registry, tweet, graph, registry_s"
        ):
            await control.ask_restart(path, "nobody")
    with pytest.raises(control.NoSupervisorError):
        await control.ask_restart(path, "graph")


async def test_instance_start_failure_raises_with_log_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost_cli.supervisor.instance.START_WITHIN_S", WITHIN_S)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        supervisor = Supervisor([part(tmp_path, "registry", "--grpc", address)], tmp_path / "logs", lambda line: None)
        with pytest.raises(CommandError, match="another program listens there"):
            await supervisor.start()
        await supervisor.stop()


async def test_supervisor_killed_stops_all_processes(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import asyncio, sys
        from pathlib import Path
        from roost_cli.supervisor.supervisor import Supervisor
        from tests.unit.roost_cli.supervisor.test_supervisor import part

        async def main():
            supervisor = Supervisor([part(Path({str(tmp_path)!r}))], Path({str(tmp_path / "logs")!r}), lambda line: None)
            await supervisor.start()
            print(supervisor.pids()["registry"][0], flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
        """
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        child = int(await asyncio.wait_for(process.stdout.readline(), WITHIN_S))
        assert alive(child)
    finally:
        process.kill()
        await process.wait()
    await wait_until(lambda: not alive(child))
