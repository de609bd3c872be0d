"""Tests the supervisor with real processes of the registry, the only service that needs no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from roost_cli import runfile
from roost_cli.commands import run
from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.supervisor import control
from roost_cli.supervisor.groups import MEMBERS
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
    async with control.serving_requests(supervisor, path):
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


async def test_topology_lists_registry_and_processes_of_supervisor(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    address = "127.0.0.1:50996"
    groups = "roost=" + ",".join(MEMBERS)
    runfile.write(runfile.RunFile(address, "", os.getpid(), time.time(), "token", groups=groups))
    async with control.serving_requests(supervisor, control.path_of(address)):
        processes = await control.ask_processes(control.path_of(address))
        assert await asyncio.to_thread(run, ["topology"]) == 0
    assert [process.label for process in processes] == ["registry-1", "tweet-1", "graph-1"]
    rows = [line for line in capsys.readouterr().out.splitlines() if "127.0.0.1" in line]
    for process, row in zip(processes, rows, strict=True):
        assert alive(process.pid)
        assert [cell.strip() for cell in row.split("│")[1:-1]] == [
            process.label,
            str(process.pid),
            process.grpc,
            process.ops,
        ]
        assert (await asyncio.to_thread(httpx.get, f"http://{process.ops}/livez")).status_code == 200
        with socket.create_connection(("127.0.0.1", int(process.grpc.rpartition(":")[2]))):
            pass


async def test_process_unusable_before_it_was_ready_ends_start_with_reason(tmp_path: Path) -> None:
    lines: list[str] = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        supervisor = Supervisor([part(tmp_path, "registry", "--grpc", address)], tmp_path / "logs", lines.append)
        with pytest.raises(CommandError, match="another program listens there") as caught:
            await asyncio.wait_for(supervisor.start(), WITHIN_S)
        await supervisor.stop()
    assert caught.value.code == UNUSABLE
    assert caught.value.message.startswith(f"registry-1 cannot start: cannot serve gRPC on {address}")
    assert caught.value.message.endswith(f"\nIts log is {tmp_path / 'logs' / 'registry-1.log'}")
    assert lines == []


def python_with_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, ends: dict[int, tuple[int, str]]) -> None:
    """Makes processes end at once at their starts number `ends` (1-based) with an exit status and a line on stderr."""
    script, count = folder / "python", folder / "count"
    cases = "\n".join(f"  {n}) echo {shlex.quote(line)} >&2; exit {code};;" for n, (code, line) in ends.items())
    script.write_text(
        f'#!/bin/sh\necho >> {count}\ncase $(wc -l < {count}) in\n{cases}\nesac\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


async def test_process_that_fails_before_it_was_ready_is_reported_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    python_with_ends(tmp_path, monkeypatch, {1: (1, "roost: unexpected OSError: no luck")})
    supervisor = Supervisor([part(tmp_path)], tmp_path / "logs", lines.append)
    await supervisor.start()
    await supervisor.stop()
    assert lines[0] == (
        "registry-1 ended with status 1 before it was ready: unexpected OSError: no luck "
        f"(log: {tmp_path / 'logs' / 'registry-1.log'}); again in 0.1 s"
    )
    assert lines[1].startswith("registry-1 is ready, pid ")


async def test_process_that_was_ready_is_started_again_even_if_unusable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    python_with_ends(tmp_path, monkeypatch, {2: (2, "roost: Cassandra cannot be reached"), 4: (2, "roost: again")})
    supervisor = Supervisor([part(tmp_path)], tmp_path / "logs", lines.append)
    await supervisor.start()
    os.kill(supervisor.pids()["registry"][0], signal.SIGKILL)
    await wait_until(lambda: len([line for line in lines if "is ready" in line]) == 2, WITHIN_S)
    assert lines[1] == "registry-1 ended with signal 9; again in 0.1 s"
    assert "status 2 before it was ready: Cassandra cannot be reached (log: " in lines[2]
    # The registry has a fixed address: its old process stops first, so the new one is one that was ready before.
    await supervisor.restart("registry")
    assert "status 2 before it was ready: again (log: " in lines[4]
    assert len(supervisor.pids()["registry"]) == 1
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
