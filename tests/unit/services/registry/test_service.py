"""Leases expire by the monotonic clock, and watchers receive every change."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from roost.registry.v1 import registry_service_pb2 as pb

from services.platform.rpc.errors import RoostError
from services.registry.service import LEASE_MS, MAX_INSTANCES, RegistryServicer
from tests.waiting import WITHIN_S


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> RegistryServicer:
    return RegistryServicer(clock, clock)


async def register(registry: RegistryServicer, instance_id: str, address: str = "127.0.0.1:1") -> None:
    request = pb.RegisterInstanceRequest(service="tweet", instance_id=instance_id, address=address)
    assert (await registry.RegisterInstance(request, None)).lease_ms == LEASE_MS


async def listed(registry: RegistryServicer) -> list[tuple[str, str]]:
    answer = await registry.ListInstances(pb.ListInstancesRequest(), None)
    return [(instance.instance_id, instance.address) for instance in answer.instances]


async def test_list_instances_during_lease_contains_instance(registry: RegistryServicer, clock: Clock) -> None:
    await register(registry, "a")
    clock.now += LEASE_MS / 1000 - 1
    await registry.RenewLease(pb.RenewLeaseRequest(service="tweet", instance_id="a"), None)
    clock.now += LEASE_MS / 1000 - 1
    registry.expire()
    assert await listed(registry) == [("a", "127.0.0.1:1")]
    clock.now += 2
    registry.expire()
    assert await listed(registry) == []


async def test_renew_lease_after_expiry_is_not_found(registry: RegistryServicer) -> None:
    with pytest.raises(RoostError) as caught:
        await registry.RenewLease(pb.RenewLeaseRequest(service="tweet", instance_id="a"), None)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_register_instance_again_replaces_address(registry: RegistryServicer) -> None:
    await register(registry, "a")
    await register(registry, "a", "127.0.0.1:2")
    assert await listed(registry) == [("a", "127.0.0.1:2")]


async def test_watch_instances_yields_list_and_each_change(registry: RegistryServicer) -> None:
    await register(registry, "a")
    stream = registry.WatchInstances(pb.WatchInstancesRequest(service="tweet"), None)

    async def seen() -> list[str]:
        async with asyncio.timeout(WITHIN_S):
            return [instance.instance_id for instance in (await anext(stream)).instances]

    assert await seen() == ["a"]
    waiting = asyncio.ensure_future(seen())
    await asyncio.sleep(0)
    await register(registry, "b")
    assert await waiting == ["a", "b"]
    # A change while no watcher waits is not lost.
    await registry.DeregisterInstance(pb.DeregisterInstanceRequest(service="tweet", instance_id="a"), None)
    assert await seen() == ["b"]
    await stream.aclose()  # type: ignore[attr-defined]


async def test_watch_instances_lease_expiry_yields_change(registry: RegistryServicer, clock: Clock) -> None:
    await register(registry, "a")
    stream = registry.WatchInstances(pb.WatchInstancesRequest(service="tweet"), None)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    clock.now += LEASE_MS
    registry.expire()
    assert not (await asyncio.wait_for(waiting, WITHIN_S)).instances
    await stream.aclose()  # type: ignore[attr-defined]


async def test_register_instance_above_bound_is_resource_exhausted(registry: RegistryServicer) -> None:
    for number in range(MAX_INSTANCES):
        await register(registry, f"i{number}")
    with pytest.raises(RoostError) as caught:
        await register(registry, "one-more")
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Registered instances can still renew.
    await register(registry, "i0")
