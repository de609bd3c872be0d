"""The servicer of roost.registry.v1.RegistryService: leases of instances, and streams of the instances of a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from roost.registry.v1 import registry_service_pb2 as pb
from roost.registry.v1 import registry_service_pb2_grpc as pb_grpc

from services.platform.background import BackgroundWorker
from services.platform.rpc import errors

# A lease expires this many milliseconds after its last renewal; its instance is then removed. Instances renew three
# times within this time, so one lost renewal does not remove an instance.
LEASE_MS = 6_000
# If no instance changes for this many seconds, a stream sends the instances again. A watcher that gets no response for
# three times this long treats the stream as lost.
HEARTBEAT_S = 5.0
# Seconds between sweeps for expired leases.
SWEEP_INTERVAL_S = 0.5
# Maximum number of instances per service. Beyond it registrations are rejected with RESOURCE_EXHAUSTED. A registry
# serves one or a few machines, so more instances mean that a process registers in a loop.
MAX_INSTANCES = 1_000


@dataclass(slots=True)
class _Lease:
    instance: pb.Instance
    # In seconds of the monotonic clock: with the wall clock, all leases would expire at once if that clock jumped
    # ahead.
    expires_s: float


class RegistryServicer(pb_grpc.RegistryServiceServicer, BackgroundWorker):
    """The registry of one mesh, in memory. As a worker it removes instances whose lease expired, every SWEEP_INTERVAL_S
    seconds.

    `clock` returns Unix seconds, `monotonic` returns seconds of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        super().__init__("registry-sweep")
        self._clock = clock
        self._monotonic = monotonic
        self._services: dict[str, dict[str, _Lease]] = {}
        self._change_events: dict[str, asyncio.Event] = {}
        self._stopping = False

    async def stop(self) -> None:
        """Stops the sweeps and ends every stream. Watchers continue with the instances that they received last."""
        self._stopping = True
        for service in list(self._change_events):
            self._notify_watchers(service)
        await super().stop()

    async def RegisterInstance(self, request: pb.RegisterInstanceRequest, context: Any) -> pb.RegisterInstanceResponse:
        """Registers the instance for LEASE_MS milliseconds. A second call for the same instance id renews its lease
        and replaces its address. Raises RESOURCE_EXHAUSTED if the instance is new and the service already has
        MAX_INSTANCES instances."""
        leases = self._services.setdefault(request.service, {})
        known = leases.get(request.instance_id)
        if known is None and len(leases) >= MAX_INSTANCES:
            raise errors.resource_exhausted(f"{request.service} already has {MAX_INSTANCES} instances: stop some first")
        if known is None or known.instance.address != request.address:
            instance = pb.Instance(service=request.service, instance_id=request.instance_id, address=request.address)
            instance.registered_at.FromMilliseconds(int(self._clock() * 1000))
            leases[request.instance_id] = known = _Lease(instance, 0)
            self._notify_watchers(request.service)
        self._extend(known)
        return pb.RegisterInstanceResponse(lease_ms=LEASE_MS)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:
        """Extends the lease to LEASE_MS milliseconds from now. Raises NOT_FOUND if the instance has no lease; it must
        then register again."""
        lease = self._services.get(request.service, {}).get(request.instance_id)
        if lease is None:
            raise errors.not_found("the instance has no lease: register it again")
        self._extend(lease)
        return pb.RenewLeaseResponse(lease_ms=LEASE_MS)

    async def DeregisterInstance(
        self, request: pb.DeregisterInstanceRequest, context: Any
    ) -> pb.DeregisterInstanceResponse:
        """Removes the instance. Does nothing if the instance is not registered."""
        if self._services.get(request.service, {}).pop(request.instance_id, None) is not None:
            self._notify_watchers(request.service)
        return pb.DeregisterInstanceResponse()

    async def WatchInstances(
        self, request: pb.WatchInstancesRequest, context: Any
    ) -> AsyncIterator[pb.WatchInstancesResponse]:
        """Yields all instances of the service immediately, after each change, and every HEARTBEAT_S seconds without a
        change."""
        while not self._stopping:
            # The event is created before the instances are read, so a change in between ends the wait below
            # immediately.
            changed = self._change_events.setdefault(request.service, asyncio.Event())
            yield pb.WatchInstancesResponse(instances=self._instances(request.service))
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await changed.wait()
            except TimeoutError:
                continue

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Any) -> pb.ListInstancesResponse:
        """Returns all instances, ordered by service name and instance id."""
        return pb.ListInstancesResponse(
            instances=[instance for service in sorted(self._services) for instance in self._instances(service)]
        )

    def _instances(self, service: str) -> list[pb.Instance]:
        leases = self._services.get(service, {})
        return [leases[instance_id].instance for instance_id in sorted(leases)]

    def _extend(self, lease: _Lease) -> None:
        lease.expires_s = self._monotonic() + LEASE_MS / 1000
        renewed = pb.Instance()
        # Copied, because a message that was returned to a caller in this process must not change.
        renewed.CopyFrom(lease.instance)
        renewed.lease_expires_at.FromMilliseconds(int(self._clock() * 1000) + LEASE_MS)
        lease.instance = renewed

    def _notify_watchers(self, service: str) -> None:
        changed = self._change_events.pop(service, None)
        if changed is not None:
            changed.set()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            self.expire()

    def expire(self) -> None:
        """Removes the instances whose lease has expired, and notifies watchers."""
        now = self._monotonic()
        for service, leases in self._services.items():
            ended = [instance_id for instance_id, lease in leases.items() if lease.expires_s <= now]
            for instance_id in ended:
                del leases[instance_id]
            if ended:
                self._notify_watchers(service)
