"""Runs services and the gateway in this process until SIGTERM or SIGINT: the common part of `roost up` and `roost serve`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
import uvloop

from gateway_http.connections import Connections
from gateway_http.ops import Ops as OpsApp
from gateway_http.server import HttpServer
from roost_cli import runfile
from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import address_of
from services.catalog import BACKENDS, SERVICES
from services.platform import logs, open_files
from services.platform.config import Settings
from services.platform.health import STARTING, Health
from services.platform.process import Process
from services.platform.rpc import errors
from services.platform.service import ServiceFactory

log = structlog.get_logger()

# New objects between two looks for cycles, and how many looks at the young make one at the older, and at all. By Python's own numbers
# (700, 10, 10) every few hundred requests walk through caches of a million objects: 15 % of a home read, and pauses of 20 ms (measured).
GC_THRESHOLDS = (50_000, 20, 100)
# Connections of the ops port: scrapers and orchestrators have one or two each.
MAX_OPS_CONNECTIONS = 64


def serve_until_stopped(
    settings: Settings, builds: Mapping[str, ServiceFactory], *, gateway: bool, with_demo: bool
) -> None:
    """Runs the services until SIGTERM or SIGINT; CommandError where they cannot start."""
    logs.configure(settings, _called(builds, gateway))
    for name in ("http", "grpc", "ops"):
        address_of(getattr(settings, name), f"--{name}")
    try:
        open_files.raise_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, builds, gateway=gateway, with_demo=with_demo))
    except errors.RoostError as error:
        # Notes are for whoever runs the mesh: they name files, which callers never learn.
        raise CommandError("; ".join(filter(None, (error.message, errors.notes_of(error)))), UNUSABLE) from error


def _called(builds: Mapping[str, ServiceFactory], gateway: bool) -> str:
    """Returns what the process is called in its log: its services, `gateway`, or `roost` if it is all of the mesh."""
    if gateway:
        return "roost" if builds else "gateway"
    return ",".join(builds)


async def _serve(settings: Settings, builds: Mapping[str, ServiceFactory], *, gateway: bool, with_demo: bool) -> None:
    stopping, request_full_sweep = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # The second one ends the drain: it is a person who waits.
        loop.add_signal_handler(number, lambda: (request_full_sweep if stopping.is_set() else stopping).set())
    async with AsyncExitStack() as stack:
        if settings.supervised:
            await _stop_with_input(stopping)
        running: list[Process] = []
        public: Connections | None = None
        # Opened first and closed last: it tells of the start and of the drain.
        ops = OpsApp(lambda: running[0].health() if running else Health(STARTING))
        ops_address = await _listen(
            stack, ops, settings.ops, "--ops", Connections(MAX_OPS_CONNECTIONS, MAX_OPS_CONNECTIONS)
        )
        with logs.drivers_held():
            process = await stack.enter_async_context(
                await Process.start(settings, builds, backend=BACKENDS[settings.backend], remote_services=SERVICES)
            )
        running.append(process)
        grpc_address = f"{address_of(settings.grpc, '--grpc')[0]}:{process.grpc_port}"
        http_address = ""
        if gateway:
            # Here: a process without it starts a third of a second sooner.
            from gateway_http.app import Gateway

            public = Connections.within_limits(process.proxies.trusts)
            app = Gateway(process.channel("gateway"), process.verifier, settings, process.health, process.rate_limits)
            http_address = await _listen(stack, app, settings.http, "--http", public)
        if gateway or not (settings.registry or settings.peers):
            # Of a mesh of many processes commands find the door, not the parts.
            run = runfile.RunFile(
                grpc_address,
                http_address,
                os.getpid(),
                time.time(),
                process.operator_token,
                data=str(settings.data_dir.resolve()),
                checkout=str(runfile.CHECKOUT),
                ops=ops_address,
            )
            _write_run_file(stack, run)
        # What stands now stays: it need not be looked at again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        login = await _demo(process, settings, stopping) if with_demo else None
        if not stopping.is_set():
            _say(_ready(grpc_address, http_address, ops_address, login, settings.data_dir))
        telling = asyncio.create_task(_tell_whom_it_misses(process), name="tell-peers")
        await stopping.wait()
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        _say("stopping …")
        if public is not None:
            public.drain()
        # Before HTTP ends: `readyz` says so meanwhile, and whoever has not heard it is still served.
        await process.drain(request_full_sweep)
    _say("stopped")


async def _listen(stack: AsyncExitStack, app: Any, address: str, option: str, connections: Connections) -> str:
    """Serves the application over HTTP until the stack closes; the address as HOST:PORT, with the port that was taken."""
    server = HttpServer(app, *address_of(address, option), connections=connections)
    await server.start()
    stack.push_async_callback(server.stop)
    return server.url.removeprefix("http://")


def _write_run_file(stack: AsyncExitStack, run: runfile.RunFile) -> None:
    """Writes the file until the stack closes. A read-only home is no reason not to serve: commands then take the operator's token
    from a variable."""
    try:
        runfile.write(run)
    except OSError as error:
        log.warning(
            "runfile.not_written",
            reason=str(error),
            advice="commands need --grpc and ROOST_OPERATOR_TOKEN; XDG_RUNTIME_DIR may name a folder for run files",
        )
        return
    stack.callback(runfile.remove, run)


async def _tell_whom_it_misses(process: Process) -> None:
    """Says which services cannot be called: those without an address at once, those that do not answer after a while."""
    if process.unaddressed:
        whom = ", ".join(process.unaddressed) if process.services or process.health().peers else "any service"
        _say(f"no address of {whom} is known: set ROOST_REGISTRY or ROOST_PEERS, or calls to it are refused")
    missing = await process.peers.unreached()
    if missing:
        found = ", ".join(f"{name} at {process.target_of(name) or 'no known address'}" for name in missing)
        _say(f"not reached yet: {found}; until they answer, what needs them is answered with 503")


async def _stop_with_input(stopping: asyncio.Event) -> None:
    """Sets `stopping` when standard input ends: whoever started this process has died, however it did."""

    class End(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            stopping.set()

    await asyncio.get_running_loop().connect_read_pipe(End, sys.stdin)


async def _demo(process: Process, settings: Settings, stopping: asyncio.Event) -> str | None:
    """Loads the demo at the first run; a stop ends it early, and the next run goes on where it stood."""
    from roost_cli.load.demo import first_run  # its words take long to import

    loading = asyncio.ensure_future(first_run.load_once(process.channel, settings.data_dir))
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({loading, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not loading.done():
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        return None
    account = loading.result()
    return None if account is None else f"{account.username} / {account.password}"


def _ready(grpc_address: str, http_address: str, ops_address: str, login: str | None, data_dir: Path) -> str:
    where = [f"http://{http_address}"] if http_address else []
    where += [f"gRPC {grpc_address}", f"metrics http://{ops_address}/metrics", f"data in {data_dir.resolve()}"]
    return f"{runfile.READY}: {' · '.join(where)}" + (f" · demo log-in {login}" if login else "")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
