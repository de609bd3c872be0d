"""Home timelines while Redis hangs or is gone: they are pulled and complete, and become warm again after its return."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from roost.timeline.v1 import timeline_service_pb2

from services.platform.redis.connection import RedisConnection
from services.platform.redis.node_pool import Node
from tests import redis_servers
from tests.conftest import SETTLE_WITHIN_S, Mesh, MeshFactory

pytestmark = pytest.mark.cluster

# Read timeouts in seconds, of a running Redis and of one that hangs.
PATIENT_S, SHORT_S = 5.0, 0.2
READS = 20
# Each connection that is open when Redis hangs costs one read timeout; then the circuit breaker rejects calls at once.
MAX_TIMEOUTS = READS // 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[redis_servers.Server]:
    with redis_servers.server(tmp_path / "redis") as one:
        yield one


async def label(mesh: Mesh, reader: int) -> str:
    """Returns how the home timeline was read: `warm` from Redis, or `pull`."""
    with mesh.as_user(reader):
        call = mesh.timelines.ListHomeTimeline(timeline_service_pb2.ListHomeTimelineRequest())
        await call
    return str(dict(await call.trailing_metadata())["roost-timeline"])


async def becomes_warm(mesh: Mesh, reader: int) -> None:
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while await label(mesh, reader) != "warm":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("outage", ["hangs", "gone"])
async def test_home_without_redis_is_pulled_and_becomes_warm_again(
    start_mesh: MeshFactory, server: redis_servers.Server, outage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts: list[Node] = []
    on_timeout = Node._on_read_timeout

    def count_timeout(node: Node) -> None:
        timeouts.append(node)
        on_timeout(node)

    monkeypatch.setattr(Node, "_on_read_timeout", count_timeout)
    # The read timeout is short only while Redis hangs, because on a busy machine even a running Redis is late at times.
    timeout_s = PATIENT_S
    monkeypatch.setattr(
        RedisConnection, "_read_timeout_s", property(lambda _: timeout_s, lambda _, __: None), raising=False
    )
    mesh = await start_mesh(redis_url=server.url, redis_timeout_s=PATIENT_S, clock_margin_s=0.0)
    ann, bob = await mesh.people("ann", "bob")
    await mesh.follow(ann, bob)
    posted = [await mesh.post(bob, "before")]
    await mesh.settled()
    await becomes_warm(mesh, ann)
    assert not timeouts
    if outage == "hangs":
        timeout_s = SHORT_S
        server.pause()
    else:
        server.kill()
    posted.insert(0, await mesh.post(bob, "meanwhile"))
    for _ in range(READS):
        assert [tweet.id for tweet in await mesh.home(ann)] == posted
    assert await label(mesh, ann) == "pull"
    assert len(timeouts) <= MAX_TIMEOUTS
    timeout_s = PATIENT_S
    if outage == "hangs":
        server.resume()
    else:
        server.start()
    # Fan-out delivers the tweets of the outage now.
    await mesh.settled()
    await becomes_warm(mesh, ann)
    assert [tweet.id for tweet in await mesh.home(ann)] == posted
    posted.insert(0, await mesh.post(bob, "after"))
    await mesh.settled()
    assert await label(mesh, ann) == "warm"
    assert [tweet.id for tweet in await mesh.home(ann)] == posted
