"""A process of the mesh: builds the services it is told to, connects them, serves them, and takes them down in order.

`wire` says how the services of one process reach each other: "inprocess" without sockets, "grpc" over the process's own address,
which is how separate processes do it. The same tests run over both.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Literal

import grpc.aio
import structlog
from prometheus_client import Gauge
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc
from roost.options.v1 import options_pb2 as options

from services.platform.auth.tokens import MAX_TOKEN_TTL_S, TOPICS, Revocations, Verifier
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
    "roost_snowflake_clock_behind_seconds", "How far the clock is behind the ids given out; writes are refused above 0."
)
_ids_available = Gauge(
    "roost_snowflake_available", "1 if ids can be minted, 0 if every write is refused for want of one."
)

log = structlog.get_logger()

Wire = Literal["inprocess", "grpc"]

_BATCH = "roost.batch.v1.BatchService"
# The service that keeps the addresses of the others; processes reach it by the setting `registry`.
_REGISTRY = "registry"
# Packages that need no address among the peers: each process serves batches itself, and the registry has its own setting.
_WITHOUT_PEER = frozenset({_BATCH.split(".")[1], _REGISTRY})
# Whoever serves users asks for it: access tokens are verified with these keys.
_SIGNING_KEYS = "/roost.identity.v1.AuthService/GetSigningKeys"

# A worker or store that has not stopped by then is left behind, and said so.
STOP_WITHIN_S = 20.0


def callees_of(name: str) -> frozenset[str]:
    """The services that the service `name` calls, and its process for it: those whose internal methods the contract opens to it, and
    whoever signs access tokens if it serves users."""
    signer = methods()[_SIGNING_KEYS].service_name
    serves_users = any(m.service_name == name and m.policy.access != options.ACCESS_MESH for m in methods().values())
    return called_by(name) | ({signer} if serves_users else frozenset())


class Process:
    """One running process. Start it with `start`, end it with `stop`, or use it as an async context."""

    def __init__(
        self, settings: Settings, wire: Wire, checker: MutationGuard | None, remote_services: Collection[str]
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
        self._endpoints: dict[str, InterceptedMethod] = {}
        self._mesh_secret = settings.mesh_secret or secrets.token_urlsafe(32)
        self._remote: dict[str, grpc.aio.Channel] = {}
        self._remote_services = remote_services if settings.registry else ()
        self._watches: dict[str, Watch] = {}
        self._registrar: Registrar | None = None
        self._workers: list[Worker] = []
        self._started: list[Worker] = []
        self._resources: list[Closable] = []
        self._ids_fault: Callable[[], str] = str
        self._stack = AsyncExitStack()
        self._server: GrpcServer | None = None
        # One for both protocols: an allowance is not doubled by mixing them.
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
        wire: Wire = "inprocess",
        checker: MutationGuard | None = None,
        remote_services: Collection[str] = (),
    ) -> Process:
        """Starts the services of `builds`, in order, on the ground of a family; what was started is taken down again where one fails.

        `remote_services` are the services that the registry finds, where the settings name one. A process that builds
        none is the mesh's door:
        it passes every call on.
        """
        process = cls(settings, wire, checker, remote_services)
        try:
            await process._start(builds, backend)
        except BaseException:
            await process.stop()
            raise
        return process

    def channel(self, caller: str = "") -> grpc.aio.Channel:
        """A channel to every service of the mesh, as `caller`: a service's name, `operator`, `gateway`, or a client outside ("")."""
        local = InProcessChannel(self._endpoints, caller, self.checker)
        if self._wire == "grpc" and caller != OPERATOR:
            own = self._peer_channel("self", f"127.0.0.1:{self.grpc_port}", caller)
            return RoutingChannel(local, dict.fromkeys(self.states, own))
        remote = self._remotes(caller)
        return RoutingChannel(local, remote) if remote else local

    @property
    def unaddressed(self) -> list[str]:
        """The services that this process calls and that nobody told it where to find. A door calls every service."""
        called = self._callees() if self.states else {method.service_name for method in methods().values()}
        return sorted(called - _WITHOUT_PEER - {*self.states, *self._watches, *self._peers()})

    def target_of(self, name: str) -> str:
        """Where a service elsewhere is, as gRPC's target or addresses; "" if the registry knows no address yet."""
        watch = self._watches.get(name)
        return self._peers().get(name) or (",".join(watch.addresses) if watch else "")

    def _callees(self) -> frozenset[str]:
        return frozenset().union(*map(callees_of, self.states))

    def _remotes(self, caller: str) -> dict[str, grpc.aio.Channel]:
        found = {name: self._discovered_channel(watch, caller) for name, watch in self._watches.items()}
        return found | {name: self._peer_channel(name, target, caller) for name, target in self._peers().items()}

    def _called(self) -> dict[str, grpc.aio.Channel]:
        """Channels to the services elsewhere that this process calls, all of them if it serves none. Others may well be out of its
        reach, by a network policy."""
        callees = self._callees()
        return {name: channel for name, channel in self._remotes("").items() if not self.states or name in callees}

    def health(self) -> Health:
        """How the process, its services and its connections to other processes are now."""
        fault = self._ids_fault()
        return Health(self._state, dict(self.states), self.peers.states(), {"ids": fault} if fault else {})

    def _peers(self) -> dict[str, str]:
        """The targets that the settings name, but for what is served here: one list may serve every process."""
        return {name: target for name, target in self.settings.peers.items() if name not in self.states}

    async def drain(self, request_full_sweep: asyncio.Event | None = None) -> None:
        """Tells everybody that this process is to get no more calls, and goes on serving for the settings' `drain_s` seconds, or until
        `request_full_sweep` is set: so long it takes load balancers and callers to follow. Returns at once if it has drained before.
        """
        if self._state == NOT_SERVING:
            return
        self._state = NOT_SERVING
        for name in self.states:
            self.states[name] = NOT_SERVING
        if self._registrar is not None:
            # Before anything else ends: nobody new is to be told of this process.
            await _within(self._registrar.stop(), "the registrar did not stop")
            self._registrar = None
        if self._server is not None:
            self._server.withdraw()
            with suppress(TimeoutError):
                await asyncio.wait_for((request_full_sweep or asyncio.Event()).wait(), self.settings.drain_s)

    async def stop(self) -> None:
        """Drains, stops workers, servers and stores, in that order. Safe to call twice."""
        await self.drain()
        # Side by side: each may have a batch to end and its place to store, and a process has a dozen.
        stopping = [_within(worker.stop(), f"{type(worker).__name__} did not stop") for worker in self._started[::-1]]
        self._started.clear()
        await asyncio.gather(*stopping)
        for watch in self._watches.values():
            # What they heard stays good; their streams would keep the registry's own server from stopping.
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

    async def _start(self, builds: Mapping[str, ServiceFactory], open_ground: BackendFactory) -> None:
        settings = self.settings
        backend = await open_ground(settings, self._stack)
        self._ids_fault = backend.ids_fault
        _clock_behind_s.set_function(lambda: backend.ids.behind_ms() / 1000)
        _ids_available.set_function(lambda: not backend.ids_fault())
        if fault := backend.ids_fault():
            log.error("degraded", fault=fault)
        cursors = Cursors(backend.cursor_key)
        self.states = dict.fromkeys(builds, STARTING)
        authenticator = Authenticator(self.verifier, self.operator_token, self._mesh_secret)
        log_calls = settings.log_level == "debug"
        server = GrpcServer(
            authenticator, self.rate_limits, self.proxies, reflect=settings.reflection, log_calls=log_calls
        )
        # Bound before the services are built, for their channels need the port; it takes calls only once all are.
        self.grpc_port = server.bind(settings.grpc)
        await self._follow_registry()
        if not builds:
            self._endpoints.update(intercepted_methods(forwarders({*self._watches, *self._peers()}, self.channel)))
        self._endpoints.update(
            intercepted_methods({_BATCH: BatchServicer(self._endpoints, authenticator.identify, log_calls=log_calls)})
        )
        for name, build in builds.items():
            kit = ServiceContext(
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
            service = await build(kit)
            self.services[name] = service
            self._resources.extend(service.resources)
            self._workers.extend(service.workers)
            self._endpoints.update(intercepted_methods(service.servicers))
        # What nobody implements yet still checks who calls; the door does so for every service of the contract.
        folders = set(builds) or {method.service_name for method in methods().values()}
        self._endpoints.update(unserved(folders, self._endpoints))
        await server.start(self._endpoints)
        self._server = server
        tokens = backend.log.consumer("tokens", TOPICS, self.revocations.apply, broadcast=True)
        # What was revoked before this start is still to be refused: tokens may outlive a restart.
        await tokens.seek(time_ms=int((time.time() - MAX_TOKEN_TTL_S) * 1000))
        self.peers = Peers(self._called())
        for worker in (*self._workers, tokens, self.peers):
            await worker.start()
            self._started.append(worker)
        if settings.registry and builds:
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
        return self._peer_channel(f"registry for {user}", self.settings.registry, _REGISTRY)

    def _advertised(self) -> str:
        host, _, port = (self.settings.advertise or self.settings.grpc).rpartition(":")
        return f"{host}:{int(port) or self.grpc_port}"

    def _discovered_channel(self, watch: Watch, caller: str) -> grpc.aio.Channel:
        key = f"{caller}>{watch.service}"
        if key not in self._remote:
            self._remote[key] = DiscoveredChannel(watch, lambda target: self._connected(target, caller))
            self._stack.push_async_callback(self._remote[key].close)
        return self._remote[key]

    async def _signing_keys(self) -> auth_service_pb2.GetSigningKeysResponse:
        # Asked in nobody's name: the token at hand is the very one that is being verified.
        current_call.set(Call())
        stub = auth_service_pb2_grpc.AuthServiceStub(self.channel())
        return await stub.GetSigningKeys(auth_service_pb2.GetSigningKeysRequest())

    def _connected(self, target: str, caller: str) -> grpc.aio.Channel:
        if caller == OPERATOR:
            # The operator is known by its token alone, which every process of the mesh has.
            return MeshChannel(target, "", self._mesh_secret, self.operator_token)
        channel = MeshChannel(target, caller, self._mesh_secret)
        # Envelopes are for services: those of a client outside would be refused.
        return BatchingChannel(channel) if caller else channel

    def _peer_channel(self, name: str, target: str, caller: str) -> grpc.aio.Channel:
        key = f"{caller}>{name}"
        if key not in self._remote:
            self._remote[key] = self._connected(target, caller)
            self._stack.push_async_callback(self._remote[key].close)
        return self._remote[key]


async def _within(stopping: object, complaint: str) -> None:
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await stopping  # type: ignore[misc]
    except Exception as error:
        # One that fails to stop must not keep the others from stopping.
        log.error("stop.failed", what=complaint, exc_info=error)
