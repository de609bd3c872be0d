"""The registry: instances under leases, and streams of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from roost.registry.v1 import registry_service_pb2 as pb
from roost.registry.v1 import registry_service_pb2_grpc as pb_grpc

from services.platform.rpc import errors

# Renewed three times within it: one lost renewal delists nobody, and a process that died is gone before its callers' patience is.
LEASE_MS = 6_000
# Readers take a longer silence for a lost stream.
HEARTBEAT_S = 5.0
# How often leases that ended are looked for.
SWEEP_S = 0.5
# A service on one machine, or a few: more is somebody registering in a loop.
MAX_INSTANCES = 1_000


@dataclass(slots=True)
class _Lease:
    instance: pb.Instance
    # By the loop's clock: a wall clock that jumps would delist everybody.
    expires_s: float


class RegistryServicer(pb_grpc.RegistryServiceServicer):
    """The registry of one mesh, in memory. `clock` gives unix seconds, `monotonic` seconds that never go back."""

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._services: dict[str, dict[str, _Lease]] = {}
        self._changed: dict[str, asyncio.Event] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Begins to take off the list whose lease ended."""
        self._sweeper = asyncio.create_task(self._sweep(), name="registry-sweep")

    async def stop(self) -> None:
        """Ends it, and every stream: their readers go on with what they heard last."""
        self._stopping = True
        for service in list(self._changed):
            self._tell(service)
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None

    async def RegisterInstance(self, request: pb.RegisterInstanceRequest, context: Any) -> pb.RegisterInstanceResponse:
        """Lists the instance; RESOURCE_EXHAUSTED where the service has MAX_INSTANCES."""
        leases = self._services.setdefault(request.service, {})
        known = leases.get(request.instance_id)
        if known is None and len(leases) >= MAX_INSTANCES:
            raise errors.resource_exhausted(f"{request.service} has {MAX_INSTANCES} instances")
        if known is None or known.instance.address != request.address:
            instance = pb.Instance(service=request.service, instance_id=request.instance_id, address=request.address)
            instance.registered_at.FromMilliseconds(int(self._clock() * 1000))
            leases[request.instance_id] = known = _Lease(instance, 0)
            self._tell(request.service)
        self._extend(known)
        return pb.RegisterInstanceResponse(lease_ms=LEASE_MS)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> pb.RenewLeaseResponse:
        """Extends the lease; NOT_FOUND where there is none."""
        lease = self._services.get(request.service, {}).get(request.instance_id)
        if lease is None:
            raise errors.not_found("no such lease: register again")
        self._extend(lease)
        return pb.RenewLeaseResponse(lease_ms=LEASE_MS)

    async def DeregisterInstance(
        self, request: pb.DeregisterInstanceRequest, context: Any
    ) -> pb.DeregisterInstanceResponse:
        """Takes the instance off the list."""
        if self._services.get(request.service, {}).pop(request.instance_id, None) is not None:
            self._tell(request.service)
        return pb.DeregisterInstanceResponse()

    async def WatchInstances(
        self, request: pb.WatchInstancesRequest, context: Any
    ) -> AsyncIterator[pb.WatchInstancesResponse]:
        """All instances, at once and whenever they change; the same again as a sign of life."""
        while not self._stopping:
            # Taken before the list is: a change in between wakes the wait below at once.
            changed = self._changed.setdefault(request.service, asyncio.Event())
            yield pb.WatchInstancesResponse(instances=self._instances(request.service))
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await changed.wait()
            except TimeoutError:
                continue

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Any) -> pb.ListInstancesResponse:
        """Every instance of every service."""
        return pb.ListInstancesResponse(
            instances=[instance for service in sorted(self._services) for instance in self._instances(service)]
        )

    def _instances(self, service: str) -> list[pb.Instance]:
        leases = self._services.get(service, {})
        return [leases[instance_id].instance for instance_id in sorted(leases)]

    def _extend(self, lease: _Lease) -> None:
        lease.expires_s = self._monotonic() + LEASE_MS / 1000
        renewed = pb.Instance()
        # A message that was handed out is never changed.
        renewed.CopyFrom(lease.instance)
        renewed.lease_expires_at.FromMilliseconds(int(self._clock() * 1000) + LEASE_MS)
        lease.instance = renewed

    def _tell(self, service: str) -> None:
        changed = self._changed.pop(service, None)
        if changed is not None:
            changed.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.expire()

    def expire(self) -> None:
        """Takes off the list whose lease ended."""
        now = self._monotonic()
        for service, leases in self._services.items():
            ended = [instance_id for instance_id, lease in leases.items() if lease.expires_s <= now]
            for instance_id in ended:
                del leases[instance_id]
            if ended:
                self._tell(service)
