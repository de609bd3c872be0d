"""Finds the other processes of a mesh through the registry, for deployments without Kubernetes.

A process registers its services under leases and watches the addresses of the services that it calls. If the registry
is not reachable, the last known addresses remain in use: gRPC skips addresses that do not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog
from roost.registry.v1 import registry_service_pb2 as pb
from roost.registry.v1 import registry_service_pb2_grpc as pb_grpc

from services.platform.background import BackgroundWorker
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.stream_subscriber import StreamSubscriber
from services.platform.transport.base import AbstractChannel
from services.platform.transport.inprocess_calls import rpc_error

# Number of renewals within the duration of a lease: one lost renewal does not remove an instance.
RENEWALS_A_LEASE = 3
# Seconds until the next attempt after a failure; also the deadline of a deregistration.
RETRY_S = 0.3
# If no message arrives for this many seconds, a watch counts as lost. The registry sends a message at least every 5 s.
SILENCE_S = 15.0
# Seconds after which a replaced channel begins to close: the longest deadline of a unary call. Until then the channel
# can start retries of its calls in progress, which a closing channel cannot.
RETIRE_S = 10.0
# Seconds for which the streams of a replaced channel may continue after the RETIRE_S seconds. Most streams end by
# themselves, and an endless one when its server stops; the channel is closed when its last stream has ended.
STREAMS_S = 24 * 3600.0

_log = structlog.get_logger(__name__)


class Registrar(BackgroundWorker):
    """A worker that registers the services of this process and renews their leases. Retries every RETRY_S seconds if
    the registry does not answer.

    `channel` is a channel to the registry, `services` are names such as `tweet`, `address` (host:port) is where other
    processes call these services.
    """

    def __init__(self, channel: grpc.aio.Channel, services: Sequence[str], address: str) -> None:
        super().__init__("registrar")
        # The type is Any, because the generated types of the stub allow grpc.aio's own call class only.
        self._stub: Any = pb_grpc.RegistryServiceStub(channel)
        self._services = services
        self._address = address
        self._instance_id = f"{address.rpartition(':')[2]}-{secrets.token_hex(4)}"

    async def stop(self) -> None:
        """Stops the renewals and deregisters the services, so other processes no longer call them.

        Ignores errors of the registry: the leases expire by themselves.
        """
        if not self.is_started:
            return
        await super().stop()
        for service in self._services:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._stub.DeregisterInstance(
                    pb.DeregisterInstanceRequest(service=service, instance_id=self._instance_id), timeout=RETRY_S
                )

    async def _run(self) -> None:
        listed: set[str] = set()
        while True:
            delay_s = RETRY_S
            try:
                for service in self._services:
                    lease_ms = await self._extend(service, service in listed)
                    delay_s = lease_ms / 1000 / RENEWALS_A_LEASE
                    listed.add(service)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    # The registry restarted or the lease expired: registers all services again.
                    listed.clear()
                    continue
                _log.info(LogEvent.REGISTRATION_FAILED, address=self._address, reason=error.details())
            await asyncio.sleep(delay_s)

    async def _extend(self, service: str, listed: bool) -> int:
        if listed:
            request = pb.RenewLeaseRequest(service=service, instance_id=self._instance_id)
            return int((await self._stub.RenewLease(request)).lease_ms)
        entry = pb.RegisterInstanceRequest(service=service, instance_id=self._instance_id, address=self._address)
        return int((await self._stub.RegisterInstance(entry)).lease_ms)


class Watch(StreamSubscriber[pb.WatchInstancesResponse]):
    """A worker that watches the addresses (host:port) of one service, over a channel to the registry.

    `version` grows with each change of `addresses`, which keep their last value after `stop` or while the registry does
    not answer. `ready` is set when the first addresses are known.
    """

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        super().__init__(f"watch-{service}", silence_s=SILENCE_S, retry_first_s=RETRY_S, retry_max_s=RETRY_S)
        self._stub: Any = pb_grpc.RegistryServiceStub(channel)
        self.service = service
        self.addresses: tuple[str, ...] = ()
        self.version = 0
        self.ready = asyncio.Event()

    def _open(self) -> Any:
        return self._stub.WatchInstances(pb.WatchInstancesRequest(service=self.service))

    def _receive(self, message: pb.WatchInstancesResponse) -> None:
        addresses = tuple(sorted({instance.address for instance in message.instances}))
        # An empty list means that the registry has just restarted or that the service is down. The old addresses stay
        # in use: after a restart of the registry they are valid, and if the service is down, calls fail anyway.
        if addresses and addresses != self.addresses:
            self.addresses = addresses
            self.version += 1
            self.ready.set()


class DiscoveredChannel(AbstractChannel):
    """A channel to the current instances of one service. A call fails with UNAVAILABLE if no instance has ever been
    known.

    `connect` returns a channel to a gRPC target such as `ipv4:a:1,b:2`. When the addresses change, new calls use a new
    channel; the old one is closed after its calls have ended.
    """

    def __init__(self, watch: Watch, connect: Callable[[str], grpc.aio.Channel]) -> None:
        self._watch = watch
        self._connect = connect
        self._channel: grpc.aio.Channel | None = None
        self._version = 0
        self._retiring: set[asyncio.Task[None]] = set()

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        made: list[Any] = [None, None]

        def begin(request: Any = None, **options: Any) -> Any:
            channel = self._current()
            if made[0] is not channel:
                made[:] = [channel, getattr(channel, kind)(method, *args, **kwargs)]
            return made[1](request, **options)

        return begin

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Returns the state of the connections to the known addresses, TRANSIENT_FAILURE if no address is known."""
        if not self._watch.addresses:
            return grpc.ChannelConnectivity.TRANSIENT_FAILURE
        return self._current().get_state(try_to_connect)

    def _current(self) -> grpc.aio.Channel:
        watch = self._watch
        if self._channel is None or self._version != watch.version:
            if not watch.addresses:
                raise rpc_error(errors.unavailable(f"no instance of {watch.service} is known: retry later"), ())
            if self._channel is not None:
                self._retire(self._channel)
            self._version = watch.version
            self._channel = self._connect("ipv4:" + ",".join(watch.addresses))
        return self._channel

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(_close_later(channel))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self, grace: float | None = None) -> None:
        """Closes the current channel, whose calls get `grace` seconds to end, and closes the replaced channels at
        once."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close(grace)
            self._channel = None


async def _close_later(channel: grpc.aio.Channel) -> None:
    try:
        # A channel that is closing starts no calls, not even the retry of a call in progress. So the old channel is
        # closed only RETIRE_S seconds after it was replaced.
        await asyncio.sleep(RETIRE_S)
        await channel.close(STREAMS_S)
    except asyncio.CancelledError:
        await channel.close()
        raise
