"""Runs services and the gateway in this process until SIGTERM or SIGINT, for `roost up` and `roost serve`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

import structlog
import uvloop

from gateway_http.connections import Connections
from gateway_http.ops import Ops as OpsApp
from gateway_http.server import HttpServer
from roost_cli import runfile
from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import GATEWAY, address_of
from roost_cli.supervisor.groups import ALL, MEMBERS, Group
from services.catalog import BACKENDS, KEY_SOURCE, SERVICES
from services.platform import logs, open_files
from services.platform.config import Settings, storage_text
from services.platform.health import STARTING, Health
from services.platform.log_events import LogEvent
from services.platform.process import Process
from services.platform.rpc import errors
from services.platform.service import ServiceFactory
from services.platform.transport.remote_services import REGISTRY

log = structlog.get_logger()

# Thresholds of the three generations of Python's garbage collector. With the defaults (700, 10, 10), it scans caches of
# a million objects every few hundred requests, which takes 15 % of the CPU time of reading a home timeline and blocks
# the process for 20 ms (measured).
GC_THRESHOLDS = (50_000, 20, 100)
# Maximum number of connections to the ops port; at the bound, the longest idle one is evicted. Scrapers and
# orchestrators open one or two each.
MAX_OPS_CONNECTIONS = 64


def serve_until_stopped(
    settings: Settings, factories: Mapping[str, ServiceFactory], *, gateway: bool, with_demo: bool
) -> None:
    """Runs services in this process until SIGTERM or SIGINT. Raises CommandError if one cannot start.

    `factories` are the factories of the services by name. If `gateway` is true, runs the gateway too. If `with_demo` is
    true, loads the demo users and tweets at the first run.
    """
    logs.configure(settings, _log_name(factories, gateway))
    for name in ("http", "grpc", "ops"):
        address_of(getattr(settings, f"{name}_address"), f"--{name}")
    try:
        open_files.raise_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, factories, gateway=gateway, with_demo=with_demo))
    except errors.RoostError as error:
        # The notes of an error contain details such as file names. They are for the operator who runs this command, not
        # for remote callers.
        raise CommandError("; ".join(filter(None, (error.message, errors.notes_of(error)))), UNUSABLE) from error


def _log_name(factories: Mapping[str, ServiceFactory], gateway: bool) -> str:
    """Returns the name of this process in its logs: `roost` if it runs the gateway and all services, otherwise the
    names of what it runs, separated by commas. The registry does not count, because not every mesh has one."""
    if gateway and set(factories) >= set(SERVICES) - {REGISTRY}:
        return "roost"
    return ",".join([*([GATEWAY] if gateway else []), *factories])


async def _serve(
    settings: Settings, factories: Mapping[str, ServiceFactory], *, gateway: bool, with_demo: bool
) -> None:
    stopping, skip_drain = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # The first signal starts the drain, a second one ends it at once: an operator who sends a second signal does
        # not want to wait.
        loop.add_signal_handler(number, lambda: (skip_drain if stopping.is_set() else stopping).set())
    async with AsyncExitStack() as stack:
        if settings.exit_with_parent:
            await _stop_at_end_of_stdin(stopping)
        running: list[Process] = []
        public: tuple[HttpServer, Connections] | None = None
        # The ops port is opened first and closed last, so that probes are served during the start and the drain.
        ops = OpsApp(lambda: running[0].health() if running else Health(STARTING))
        probes = Connections(MAX_OPS_CONNECTIONS, MAX_OPS_CONNECTIONS)
        ops_server = HttpServer(ops, *address_of(settings.ops_address, "--ops"), connections=probes, option="--ops")
        ops_address = await _serve_http(stack, ops_server)
        process = await stack.enter_async_context(await _start_process(settings, factories, gateway=gateway))
        running.append(process)
        grpc_address = f"{address_of(settings.grpc_address, '--grpc')[0]}:{process.grpc_port}"
        http_address = ""
        if gateway:
            public = _http_server(process)
            http_address = await _serve_http(stack, public[0])
        if _writes_run_file(settings, gateway=gateway):
            _write_run_file(stack, _run_file(process, grpc_address, http_address, ops_address))
        # The objects that exist after the start live as long as the process. `freeze` excludes them from garbage
        # collection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        login = await _demo(process, settings, stopping) if with_demo else None
        if not stopping.is_set():
            _print(_ready_line(grpc_address, http_address, ops_address, login, settings))
        reporting = asyncio.create_task(_print_unreachable_peers(process), name="tell-peers")
        await stopping.wait()
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)
        _print("stopping …")
        if public is not None:
            _drain_http(*public, settings)
        # The HTTP server is closed after the drain. During the drain, /readyz reports that the process is not ready,
        # and clients that still send requests are served.
        await process.drain(skip_drain)
    _print("stopped")


async def _start_process(settings: Settings, factories: Mapping[str, ServiceFactory], *, gateway: bool) -> Process:
    with logs.buffered_driver_logs():
        return await Process.start(
            settings,
            factories,
            backend=BACKENDS[settings.backend],
            key_source=KEY_SOURCE,
            remote_services=SERVICES,
            is_edge=gateway,
        )


def _http_server(process: Process) -> tuple[HttpServer, Connections]:
    """Returns the server that serves the mesh over HTTP, and its connections."""
    # Imported in the function, so that a process without the gateway starts 0.3 s sooner.
    from gateway_http.app import Gateway

    settings = process.settings
    app = Gateway(process.channel("gateway"), process.verifier, settings, process.health, process.rate_limits)
    connections = Connections.within_limits(process.proxies.trusts)
    address = address_of(settings.http_address, "--http")
    return HttpServer(app, *address, connections=connections, listener_fd=settings.inherited_listener_fd), connections


def _drain_http(server: HttpServer, connections: Connections, settings: Settings) -> None:
    """Makes each further response close its connection. Stops accepting connections if other processes accept from the
    same socket; otherwise load balancers still send connections until they notice the drain."""
    if settings.inherited_listener_fd >= 0:
        server.stop_accepting()
    connections.drain()


def _writes_run_file(settings: Settings, *, gateway: bool) -> bool:
    """Returns whether this process writes the run file of its mesh: the supervisor does so if there is one, otherwise
    the process with the gateway, or the only process."""
    if settings.grpc_address_shared:
        return False
    return gateway or not (settings.registry_address or settings.static_peers)


def _run_file(process: Process, grpc_address: str, http_address: str, ops_address: str) -> runfile.RunFile:
    members = tuple(name for name in MEMBERS if name in process.services or (name == GATEWAY and http_address))
    return runfile.RunFile(
        grpc_address,
        http_address,
        os.getpid(),
        time.time(),
        process.operator_token,
        data=str(process.settings.data_dir.resolve()),
        checkout=str(runfile.CHECKOUT),
        ops=ops_address,
        groups=str(Group(ALL, members)),
        backend=process.settings.backend,
        namespace=process.settings.namespace,
        kafka_bootstrap_servers=process.settings.kafka_bootstrap_servers,
    )


async def _serve_http(stack: AsyncExitStack, server: HttpServer) -> str:
    """Runs the server until `stack` closes. Returns its address as HOST:PORT, with the chosen port if the wanted one
    is 0."""
    await server.start()
    stack.push_async_callback(server.stop)
    return server.url.removeprefix("http://")


def _write_run_file(stack: AsyncExitStack, run: runfile.RunFile) -> None:
    """Writes the run file, and removes it when `stack` closes. If it cannot be written, logs a warning: commands then
    need --grpc and ROOST_OPERATOR_TOKEN."""
    try:
        runfile.write(run)
    except OSError as error:
        log.warning(
            LogEvent.RUNFILE_WRITE_FAILED,
            reason=str(error),
            advice="commands need --grpc and ROOST_OPERATOR_TOKEN; XDG_RUNTIME_DIR may name a folder for run files",
        )
        return
    stack.callback(runfile.remove, run)


async def _print_unreachable_peers(process: Process) -> None:
    """Prints which services in other processes cannot be called: first those without a known address, and after
    PATIENCE_S seconds (see `peers`) those that have not responded."""
    # Only a notice, because the settings of the next release may name services that this one does not have.
    if unknown := sorted(set(process.settings.static_peers) - set(SERVICES)):
        _print(f"ROOST_STATIC_PEERS names {', '.join(unknown)}, but the services are {', '.join(SERVICES)}")
    if process.unaddressed:
        whom = ", ".join(process.unaddressed) if process.services or process.health().peers else "any service"
        _print(
            f"no address of {whom} is known: set ROOST_REGISTRY_ADDRESS or ROOST_STATIC_PEERS, or calls to these services are refused"
        )
    missing = await process.peers.unreached()
    if missing:
        found = ", ".join(f"{name} at {process.target_of(name) or 'no known address'}" for name in missing)
        _print(f"not reached yet: {found}; until they answer, requests that need them fail with 503")


async def _stop_at_end_of_stdin(stopping: asyncio.Event) -> None:
    """Makes the event loop set `stopping` at the end of stdin, and returns without waiting for that end. Stdin is a
    pipe from the parent process, so it ends when the parent ends, even if the parent was killed."""

    class End(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            stopping.set()

    await asyncio.get_running_loop().connect_read_pipe(End, sys.stdin)


async def _demo(process: Process, settings: Settings, stopping: asyncio.Event) -> str | None:
    """Loads the demo users and tweets at the first run. Returns the log-in of a demo user as `username / password`.

    Returns None at later runs, and if `stopping` is set before the demo is loaded; the next run then continues to load
    it.
    """
    from roost_cli.load.demo import first_run  # imported in the function, because its word lists are large

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


def _ready_line(grpc_address: str, http_address: str, ops_address: str, login: str | None, settings: Settings) -> str:
    more = [f"data in {settings.data_dir.resolve()}", storage_text(settings)]
    more += [f"demo log-in {login}"] if login else []
    return runfile.ready_line(grpc_address, ops_address, http=http_address, more=more)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
