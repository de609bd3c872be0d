"""Runs one process of the mesh: builds the given services, connects them, serves them, and stops them in order.

`wire` selects how the services of one process call each other: "inprocess" calls without sockets; "grpc" calls over the
process's own gRPC address, as between separate processes. The same tests run over both.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Literal

import grpc.aio
import structlog
from prometheus_client import Gauge
from roost.options.v1 import options_pb2 as options

from services.platform.auth.tokens import (
    MAX_TOKEN_TTL_S,
    TOPICS,
    KeySource,
    Revocations,
    VerificationKey,
    Verifier,
)
from services.platform.config import Settings
from services.platform.health import NOT_SERVING, SERVING, STARTING, Health
from services.platform.pagination.cursors import Cursors
from services.platform.rpc.client_address import TrustedProxies, networks
from services.platform.rpc.context import OPERATOR, Call, current_call
from services.platform.rpc.contract import called_by, methods
from services.platform.rpc.interceptors import InterceptedMethod, intercepted_methods, unserved
from services.platform.rpc.rate_limits import RateLimits
from services.platform.service import BackendFactory, Closable, Service, ServiceContext, ServiceFactory, Worker
from services.platform.transport.authenticator import Authenticator
from services.platform.transport.batch_service import BatchServicer
from services.platform.transport.batching import BatchingChannel
from services.platform.transport.discovery import DiscoveredChannel, Registrar, Watch
from services.platform.transport.inprocess import InProcessChannel
from services.platform.transport.message_guard import MutationGuard
from services.platform.transport.peers import Peers
from services.platform.transport.proxy import forwarders
from services.platform.transport.remote import MeshChannel, RoutingChannel
from services.platform.transport.server import GrpcServer

_clock_behind_s = Gauge(
    "roost_snowflake_clock_behind_seconds", "How far the clock is behind the last minted id; above 0 writes fail."
)
_ids_available = Gauge("roost_snowflake_available", "1 if ids can be minted, 0 if they cannot and every write fails.")

log = structlog.get_logger()

Wire = Literal["inprocess", "grpc"]

_BATCH = "roost.batch.v1.BatchService"
# The service that stores the addresses of the others; processes reach it at the address in the setting `registry_address`.
_REGISTRY = "registry"
# Services without an entry among the peers: each process serves batches itself, and the registry has its own setting.
_WITHOUT_PEER = frozenset({_BATCH.split(".")[1], _REGISTRY})

# Seconds for each worker and store to stop; one that takes longer is abandoned with an error in the log.
STOP_WITHIN_S = 20.0


def callees_of(name: str, token_issuer: str) -> frozenset[str]:
    """Returns the names of the services that a process with the service `name` calls.

    These are the services with methods whose policy allows `name` as a caller. If `name` has methods for clients,
    `token_issuer` (the service whose keys verify access tokens) is one of them.
    """
    serves_users = any(m.service_name == name and m.policy.access != options.ACCESS_MESH for m in methods().values())
    return called_by(name) | ({token_issuer} if serves_users else frozenset())


class Process:
    """One running process of the mesh. `start` creates it; `stop`, or the end of an `async with` block, ends it."""

    def __init__(
        self,
        settings: Settings,
        wire: Wire,
        key_source: KeySource,
        checker: MutationGuard | None,
        remote_services: Collection[str],
    ) -> None:
        self.settings = settings
        self.operator_token = settings.operator_token or secrets.token_urlsafe(32)
        self.checker = checker
        self.services: dict[str, Service] = {}
        self.states: dict[str, str] = {}
        self.peers = Peers({})
        self.grpc_port = 0
        self._state = STARTING
        self._wire = wire
        self._key_source = key_source
        self._endpoints: dict[str, InterceptedMethod] = {}
        self._mesh_secret = settings.mesh_secret or secrets.token_urlsafe(32)
        self._remote: dict[str, grpc.aio.Channel] = {}
        self._remote_services = remote_services if settings.registry_address else ()
        self._watches: dict[str, Watch] = {}
        self._registrar: Registrar | None = None
        self._workers: list[Worker] = []
        self._started: list[Worker] = []
        self._resources: list[Closable] = []
        self._ids_fault: Callable[[], str] = str
        self._stack = AsyncExitStack()
        self._server: GrpcServer | None = None
        # Shared by HTTP and gRPC: a client that uses both must not get twice the allowance.
        self.rate_limits = RateLimits(settings)
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
    ) -> Process:
        """Opens the backends, builds the services of `builds` in order, and returns once the process serves.

        `key_source` fetches the keys that verify access tokens. The addresses of `remote_services` are looked up in the
        registry if the settings name one. A process with empty `builds` is an edge proxy: it forwards every call to the
        service's own process. If a step fails, stops everything that was started and raises the error.
        """
        process = cls(settings, wire, key_source, checker, remote_services)
        try:
            await process._start(builds, backend)
        except BaseException:
            await process.stop()
            raise
        return process

    def channel(self, caller: str = "") -> grpc.aio.Channel:
        """Returns a channel to every service of the mesh.

        `caller` is a service's name, `operator`, `gateway`, or "" (a client).
        """
        local = InProcessChannel(self._endpoints, caller, self.checker)
        if self._wire == "grpc" and caller != OPERATOR:
            own = self._peer_channel("self", f"127.0.0.1:{self.grpc_port}", caller)
            return RoutingChannel(local, dict.fromkeys(self.states, own))
        remote = self._remotes(caller)
        return RoutingChannel(local, remote) if remote else local

    @property
    def unaddressed(self) -> list[str]:
        """Returns the sorted names of the services that this process calls but has no address of.

        An edge proxy calls every service.
        """
        called = self._callees() if self.states else {method.service_name for method in methods().values()}
        return sorted(called - _WITHOUT_PEER - {*self.states, *self._watches, *self._peers()})

    def target_of(self, name: str) -> str:
        """Returns the gRPC target, or comma-separated addresses, of a service in another process; "" if unknown."""
        watch = self._watches.get(name)
        return self._peers().get(name) or (",".join(watch.addresses) if watch else "")

    def _callees(self) -> frozenset[str]:
        return frozenset().union(*(callees_of(name, self._key_source.service) for name in self.states))

    def _remotes(self, caller: str) -> dict[str, grpc.aio.Channel]:
        found = {name: self._discovered_channel(watch, caller) for name, watch in self._watches.items()}
        return found | {name: self._peer_channel(name, target, caller) for name, target in self._peers().items()}

    def _called(self) -> dict[str, grpc.aio.Channel]:
        """Returns the channels to the services in other processes that this one calls, by service name.

        An edge proxy calls all services.

        Other services are left out, because a network policy may make them unreachable without harm to this process.
        """
        callees = self._callees()
        return {name: channel for name, channel in self._remotes("").items() if not self.states or name in callees}

    def health(self) -> Health:
        """Returns the current state of the process, its services and its connections to other processes."""
        fault = self._ids_fault()
        return Health(self._state, dict(self.states), self.peers.states(), {"ids": fault} if fault else {})

    def _peers(self) -> dict[str, str]:
        """Returns the setting `static_peers` without the services of this process: all processes can have the same list."""
        return {name: target for name, target in self.settings.static_peers.items() if name not in self.states}

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Reports NOT_SERVING, leaves the registry, and serves for another `drain_s` seconds or until `hurry` is set.

        Load balancers and callers need this time to stop sending calls. Returns at once if the process has drained
        before.
        """
        if self._state == NOT_SERVING:
            return
        self._state = NOT_SERVING
        for name in self.states:
            self.states[name] = NOT_SERVING
        if self._registrar is not None:
            # First, so that no other process gets this address from now on.
            await _within(self._registrar.stop(), "the registrar did not stop")
            self._registrar = None
        if self._server is not None:
            self._server.withdraw()
            with suppress(TimeoutError):
                await asyncio.wait_for((hurry or asyncio.Event()).wait(), self.settings.drain_s)

    async def stop(self) -> None:
        """Drains, then stops workers, servers and stores, in that order. Safe to call twice."""
        await self.drain()
        # Concurrently: each of a dozen workers may have to finish a batch and commit its offset.
        stopping = [_within(worker.stop(), f"{type(worker).__name__} did not stop") for worker in self._started[::-1]]
        self._started.clear()
        await asyncio.gather(*stopping)
        for watch in self._watches.values():
            # Their addresses remain usable; their open streams would delay the stop of the registry's server.
            await watch.stop()
        if self._server is not None:
            await self._server.stop()
            self._server = None
        while self._resources:
            resource = self._resources.pop()
            await _within(resource.close(), f"{type(resource).__name__} did not close")
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
        self._ids_fault = backend.ids_fault
        _clock_behind_s.set_function(lambda: backend.ids.behind_ms() / 1000)
        _ids_available.set_function(lambda: not backend.ids_fault())
        if fault := backend.ids_fault():
            log.error("process.degraded", fault=fault)
        cursors = Cursors(backend.cursor_key)
        self.states = dict.fromkeys(builds, STARTING)
        authenticator = Authenticator(self.verifier, self.operator_token, self._mesh_secret)
        log_calls = settings.log_level == "debug"
        server = GrpcServer(
            authenticator, self.rate_limits, self.proxies, reflect=settings.reflection, log_calls=log_calls
        )
        # The services' channels need the port, so it is bound before they are built. It accepts calls after
        # `server.start`.
        self.grpc_port = server.bind(settings.grpc_address)
        await self._follow_registry()
        if not builds:
            self._endpoints.update(intercepted_methods(forwarders({*self._watches, *self._peers()}, self.channel)))
        self._endpoints.update(
            intercepted_methods({_BATCH: BatchServicer(self._endpoints, authenticator.identify, log_calls=log_calls)})
        )
        for name, build in builds.items():
            context = ServiceContext(
                name=name,
                settings=settings,
                clock=time.time,
                random=random.Random(),  # noqa: S311 (for spreading load; secrets come from `secrets`)
                ids=backend.ids,
                cursors=cursors,
                log=backend.log,
                channel=self.channel(name),
                data_dir=settings.data_dir,
                cluster=backend.cluster,
            )
            service = await build(context)
            self.services[name] = service
            self._resources.extend(service.resources)
            self._workers.extend(service.workers)
            self._endpoints.update(intercepted_methods(service.servicers))
        # Methods without an implementation check access before they return UNIMPLEMENTED, in an edge proxy for every
        # service.
        names = set(builds) or {method.service_name for method in methods().values()}
        self._endpoints.update(unserved(names, self._endpoints))
        await server.start(self._endpoints)
        self._server = server
        tokens = backend.log.consumer("tokens", TOPICS, self.revocations.apply, broadcast=True)
        # Access tokens remain valid over a restart, so the revocations of the longest token lifetime are read again.
        await tokens.seek(time_ms=int((time.time() - MAX_TOKEN_TTL_S) * 1000))
        self.peers = Peers(self._called())
        for worker in (*self._workers, tokens, self.peers):
            await worker.start()
            self._started.append(worker)
        if settings.registry_address and builds:
            self._registrar = Registrar(self._registry("registrar"), list(builds), self._advertised())
            await self._registrar.start()
        self.states = dict.fromkeys(builds, SERVING)
        self._state = SERVING

    async def _follow_registry(self) -> None:
        for name in self._remote_services:
            if name not in self.states:
                self._watches[name] = Watch(self._registry(name), name)
                await self._watches[name].start()

    def _registry(self, user: str) -> grpc.aio.Channel:
        return self._peer_channel(f"registry for {user}", self.settings.registry_address, _REGISTRY)

    def _advertised(self) -> str:
        host, _, port = (self.settings.advertised_address or self.settings.grpc_address).rpartition(":")
        return f"{host}:{int(port) or self.grpc_port}"

    def _discovered_channel(self, watch: Watch, caller: str) -> grpc.aio.Channel:
        key = f"{caller}>{watch.service}"
        if key not in self._remote:
            self._remote[key] = DiscoveredChannel(watch, lambda target: self._connected(target, caller))
            self._stack.push_async_callback(self._remote[key].close)
        return self._remote[key]

    async def _signing_keys(self) -> Sequence[VerificationKey]:
        # An anonymous call: the token of the current call is the one that is being verified.
        current_call.set(Call())
        return await self._key_source.fetch(self.channel())

    def _connected(self, target: str, caller: str) -> grpc.aio.Channel:
        if caller == OPERATOR:
            # The operator authenticates with its token only, which every process of the mesh knows.
            return MeshChannel(target, "", self._mesh_secret, self.operator_token)
        channel = MeshChannel(target, caller, self._mesh_secret)
        # Only services may call the batch service; a client's batch would get PERMISSION_DENIED.
        return BatchingChannel(channel) if caller else channel

    def _peer_channel(self, name: str, target: str, caller: str) -> grpc.aio.Channel:
        key = f"{caller}>{name}"
        if key not in self._remote:
            self._remote[key] = self._connected(target, caller)
            self._stack.push_async_callback(self._remote[key].close)
        return self._remote[key]


async def _within(stopping: object, failure: str) -> None:
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await stopping  # type: ignore[misc]
    except Exception as error:
        # Not raised, because the remaining workers and stores must still be stopped.
        log.error("process.stop_failed", failure=failure, exc_info=error)
