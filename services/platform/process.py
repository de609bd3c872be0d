"""Runs one process of the mesh: builds the given services, connects them to each other, serves their methods, and stops
them in order.

`wire` selects how the services of one process call each other: "inprocess" calls without sockets; "grpc" calls over the
process's own gRPC address, as between separate processes. The same functional tests run with both values.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Literal

import grpc.aio
import structlog
from prometheus_client import Gauge

from services.platform.auth.tokens import (
    MAX_TOKEN_TTL_S,
    TOPICS,
    KeySource,
    Revocations,
    VerificationKey,
    Verifier,
)
from services.platform.callees import BATCH, Callees
from services.platform.config import Settings
from services.platform.health import NOT_SERVING, SERVING, STARTING, Health
from services.platform.lifecycle import Lifecycle, within
from services.platform.log_events import LogEvent
from services.platform.pagination.cursors import Cursors
from services.platform.rpc.client_address import TrustedProxies, networks
from services.platform.rpc.context import OPERATOR, Call, current_call
from services.platform.rpc.contract import methods
from services.platform.rpc.interceptors import InterceptedMethod, intercepted_methods, unserved
from services.platform.rpc.rate_limits import RateLimits
from services.platform.service import BackendFactory, Backends, Service, ServiceContext, ServiceFactory, Worker
from services.platform.transport.authenticator import Authenticator
from services.platform.transport.batch_service import BatchServicer
from services.platform.transport.discovery import Registrar
from services.platform.transport.inprocess import InProcessChannel
from services.platform.transport.message_guard import MutationGuard
from services.platform.transport.peers import Peers
from services.platform.transport.proxy import forwarders
from services.platform.transport.remote import RoutingChannel
from services.platform.transport.remote_services import RemoteServices
from services.platform.transport.server import GrpcServer

_clock_behind_s = Gauge(
    "roost_snowflake_clock_behind_seconds",
    "Seconds by which the clock is behind the last minted id; if above 0, writes fail.",
)
_ids_available = Gauge("roost_snowflake_available", "1 if ids can be minted, 0 if they cannot and every write fails.")

log = structlog.get_logger()

Wire = Literal["inprocess", "grpc"]


class Process:
    """One running process of the mesh. `start` creates it; `stop`, or the end of an `async with` block, ends it."""

    # Set by `start`. The HTTP gateway uses this object too: a client that uses both HTTP and gRPC must not get twice the
    # allowance.
    rate_limits: RateLimits

    def __init__(
        self,
        settings: Settings,
        wire: Wire,
        key_source: KeySource,
        checker: MutationGuard | None,
        remote_services: Collection[str],
        services: Collection[str],
        is_edge: bool,
    ) -> None:
        self.settings = settings
        self.operator_token = settings.operator_token or secrets.token_urlsafe(32)
        self.checker = checker
        self.services: dict[str, Service] = {}
        self.states: dict[str, str] = {}
        self.peers = Peers({})
        self.grpc_port = 0
        self.advertised_address = ""
        self._state = STARTING
        self._wire = wire
        self._key_source = key_source
        self._endpoints: dict[str, InterceptedMethod] = {}
        self._mesh_secret = settings.mesh_secret or secrets.token_urlsafe(32)
        self._remotes = RemoteServices(settings, self._mesh_secret, self.operator_token)
        self._remote_services = remote_services if settings.registry_address else ()
        self._is_edge = is_edge
        self._callees = Callees(self._remotes, services, key_source.service, is_edge=is_edge)
        self._registrar: Registrar | None = None
        self._lifecycle = Lifecycle()
        self._ids_fault: Callable[[], str] = str
        self._stack = AsyncExitStack()
        self._server: GrpcServer | None = None
        self.proxies = TrustedProxies(networks(settings.trusted_proxies))
        self.revocations = Revocations(time.time, settings.access_token_ttl_s)
        self.verifier = Verifier(self._signing_keys, time.time, self.revocations)

    @classmethod
    async def start(
        cls,
        settings: Settings,
        builds: Mapping[str, ServiceFactory],
        *,
        backend: BackendFactory,
        key_source: KeySource,
        wire: Wire = "inprocess",
        checker: MutationGuard | None = None,
        remote_services: Collection[str] = (),
        is_edge: bool = False,
    ) -> Process:
        """Opens the backends with `backend`, builds the services of `builds` (by name) in order, and returns once the
        process serves.

        `key_source` fetches the keys that verify access tokens. `wire` is described in the module's docstring.
        `checker` detects changed messages and is set in tests only. The addresses of the services named in
        `remote_services` are looked up in the registry if the setting `registry_address` is set. With `is_edge`, or
        with empty `builds`, the process is an edge proxy: it forwards each call to a service that it does not have to
        the process of that service. If a step fails, stops everything that was started and raises the error.
        """
        is_edge = is_edge or not builds
        process = cls(settings, wire, key_source, checker, remote_services, builds, is_edge)
        try:
            await process._start(builds, backend)
        except BaseException:
            await process.stop()
            raise
        return process

    def channel(self, caller: str = "") -> grpc.aio.Channel:
        """Returns a channel that reaches every service of the mesh. `caller` is the caller of its calls: a service's
        name, `operator`, `gateway`, or "" for a client outside the mesh."""
        local = InProcessChannel(self._endpoints, caller, self.checker)
        if self._wire == "grpc" and caller != OPERATOR:
            own = self._remotes.connect("self", f"127.0.0.1:{self.grpc_port}", caller)
            return RoutingChannel(local, dict.fromkeys(self.states, own))
        remote = self._remotes.channels(caller)
        return RoutingChannel(local, remote) if remote else local

    @property
    def unaddressed(self) -> list[str]:
        """The sorted names of the services that this process calls (an edge proxy: every service) and whose addresses
        are neither in `static_peers` nor looked up in the registry."""
        return self._callees.unaddressed()

    def target_of(self, name: str) -> str:
        """Returns the addresses of the service `name` in other processes: its gRPC target in `static_peers`, or
        comma-separated addresses from the registry; "" if none is known."""
        return self._remotes.target_of(name)

    def health(self) -> Health:
        """Returns the current state of the process, its services and its connections to other processes."""
        fault = self._ids_fault()
        return Health(self._state, dict(self.states), self.peers.states(), {"ids": fault} if fault else {})

    async def drain(self, end_early: asyncio.Event | None = None) -> None:
        """Reports NOT_SERVING, leaves the registry, and serves for another `drain_s` seconds or until `end_early` is
        set. Load balancers and callers need this time to stop sending calls. A second call returns at once."""
        if self._state == NOT_SERVING:
            return
        self._state = NOT_SERVING
        for name in self.states:
            self.states[name] = NOT_SERVING
        if self._registrar is not None:
            # Deregisters first, so that the registry passes this address to no other process from now on.
            await within(self._registrar.stop(), "the registrar did not stop")
            self._registrar = None
        if self._server is not None:
            self._server.withdraw()
            with suppress(TimeoutError):
                await asyncio.wait_for((end_early or asyncio.Event()).wait(), self.settings.drain_s)

    async def stop(self) -> None:
        """Drains, then stops workers, servers and stores, in that order. A second call has no effect."""
        await self.drain()
        await self._lifecycle.stop_workers()
        await self._remotes.stop_watches()
        if self._server is not None:
            await self._server.stop()
            self._server = None
        await self._lifecycle.close_stores()
        await self._stack.aclose()

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self, builds: Mapping[str, ServiceFactory], open_backends: BackendFactory) -> None:
        settings = self.settings
        backend = await open_backends(settings, self._stack)
        self._stack.push_async_callback(self._remotes.close)
        self._ids_fault = backend.ids_fault
        _report_ids(backend)
        self.rate_limits = RateLimits(settings, backend.rate_limit_counts)
        cursors = Cursors(backend.cursor_key)
        self.states = dict.fromkeys(builds, STARTING)
        authenticator = Authenticator(self.verifier, self.operator_token, self._mesh_secret)
        log_calls = settings.log_level == "debug"
        server = GrpcServer(
            authenticator,
            self.rate_limits,
            self.proxies,
            reflect=settings.reflection,
            log_calls=log_calls,
            shared=settings.grpc_address_shared,
        )
        # The channels of the services need the port, so the port is bound before the services are built. The server
        # accepts calls after `server.start`.
        self.grpc_port = server.bind(settings.grpc_address)
        self.advertised_address = _advertised(settings, server, self.grpc_port)
        await self._remotes.start(self.states, self._remote_services)
        if self._is_edge:
            self._endpoints.update(intercepted_methods(forwarders(self._remotes.names, self.channel)))
        self._endpoints.update(
            intercepted_methods({BATCH: BatchServicer(self._endpoints, authenticator.identify, log_calls=log_calls)})
        )
        workers: list[Worker] = []
        shared: dict[type[Any], Any] = {Revocations: self.revocations}
        for name, build in builds.items():
            service = await build(_context(name, settings, backend, cursors, self.channel(name), shared))
            self.services[name] = service
            self._lifecycle.add_stores(service.resources)
            workers.extend(service.workers)
            self._endpoints.update(intercepted_methods(service.servicers))
        # Adds the methods that no servicer implements: their calls pass the access check before they get UNIMPLEMENTED.
        # An edge proxy adds them for every service.
        names = {method.service_name for method in methods().values()} if self._is_edge else set(builds)
        self._endpoints.update(unserved(names, self._endpoints))
        await server.start(self._endpoints)
        self._server = server
        tokens = backend.log.consumer("tokens", TOPICS, self.revocations.apply, broadcast=True)
        # Access tokens stay valid when this process restarts, so it reads the revocations of the longest token lifetime
        # again.
        await tokens.seek(time_ms=int((time.time() - MAX_TOKEN_TTL_S) * 1000))
        self.peers = Peers(self._callees.channels())
        for worker in (*workers, tokens, self.peers):
            await self._lifecycle.start(worker)
        if settings.registry_address and builds:
            self._registrar = Registrar(self._remotes.registry("registrar"), list(builds), self.advertised_address)
            await self._registrar.start()
        self.states = dict.fromkeys(builds, SERVING)
        self._state = SERVING

    async def _signing_keys(self) -> Sequence[VerificationKey]:
        # The call that fetches the keys is anonymous: the token of the current call is not verified yet and must not be
        # forwarded.
        current_call.set(Call())
        return await self._key_source.fetch(self.channel())


def _advertised(settings: Settings, server: GrpcServer, port: int) -> str:
    """Returns the gRPC address (host:port) at which only this process answers. `port` is the one that it listens on; if
    other processes listen on it too, binds another one."""
    host, _, wanted = (settings.advertised_address or settings.grpc_address).rpartition(":")
    if settings.grpc_address_shared and not settings.advertised_address:
        return f"{host}:{server.bind(f'{host}:0')}"
    return f"{host}:{int(wanted) or port}"


def _report_ids(backend: Backends) -> None:
    """Exports as metrics whether ids can be minted and how far the clock is behind them. If no ids can be minted, logs
    the cause."""
    _clock_behind_s.set_function(lambda: backend.ids.behind_ms() / 1000)
    _ids_available.set_function(lambda: not backend.ids_fault())
    if fault := backend.ids_fault():
        log.error(LogEvent.PROCESS_DEGRADED, fault=fault)


def _context(
    name: str,
    settings: Settings,
    backend: Backends,
    cursors: Cursors,
    channel: grpc.aio.Channel,
    shared: dict[type[Any], Any],
) -> ServiceContext:
    return ServiceContext(
        name=name,
        settings=settings,
        clock=time.time,
        random=random.Random(),  # noqa: S311 (for spreading load; secrets come from `secrets`)
        ids=backend.ids,
        cursors=cursors,
        log=backend.log,
        channel=channel,
        data_dir=settings.data_dir,
        versions=backend.versions,
        process_objects=shared,
        cluster=backend.cluster,
    )
