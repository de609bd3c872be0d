"""Tests the subscriber of celebrity tiers: snapshot, changes, silence and reconnection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer

from services.platform.rpc import errors
from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.transport.base import AbstractChannel
from services.platform.transport.inprocess import InProcessChannel
from services.shared import celebrity_tiers
from services.shared.celebrity_tiers import STREAM_TIMEOUT_S, CelebritySubscriber
from tests.waiting import run_ready_tasks, wait_until

ANN, BOB, CAT = 2, 3, 4
MARGIN_S = 5.0
Message = graph.StreamTiersResponse


def celebrity(user_id: int, at_ms: int = 1_000) -> graph.TierEntry:
    return graph.TierEntry(user_id=user_id, tier=graph.TIER_CELEBRITY, changed_at_ms=at_ms)


def normal(user_id: int, at_ms: int = 1_000) -> graph.TierEntry:
    return graph.TierEntry(user_id=user_id, tier=graph.TIER_NORMAL, changed_at_ms=at_ms)


class Graph(GraphServiceServicer):
    """Streams the messages put into `messages`; None breaks the stream."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self.streams = 0

    async def StreamTiers(self, request: Any, context: Any) -> AsyncIterator[Message]:
        self.streams += 1
        while (message := await self.messages.get()) is not None:
            yield message
        raise errors.unavailable("gone")

    def send(self, *entries: graph.TierEntry, end: bool = False) -> None:
        self.messages.put_nowait(Message(entries=entries, snapshot_end=end))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Graph:
    return Graph()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def subscriber(
    server: Graph, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CelebritySubscriber]:
    monkeypatch.setattr(celebrity_tiers, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(celebrity_tiers, "START_WAIT_S", 0.01)
    subscriber = CelebritySubscriber(
        InProcessChannel(intercepted_methods({"roost.graph.v1.GraphService": server}), "fanout"), MARGIN_S, clock
    )
    await subscriber.start()
    yield subscriber
    await subscriber.stop()


class CancelFirstCall(AbstractChannel):
    """A channel whose first call is cancelled, like the calls of a closed channel."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.cut = False

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        start = getattr(self._channel, kind)(method, *args, **kwargs)

        def begin(request: Any, **options: Any) -> Any:
            if self.cut:
                return start(request, **options)
            self.cut = True
            return _CancelledCall()

        return begin


class _CancelledCall:
    async def read(self) -> Message:
        raise asyncio.CancelledError

    def cancel(self) -> None:
        pass


async def test_subscriber_closed_channel_reconnects(server: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celebrity_tiers, "RETRY_FIRST_S", 0.001)
    channel = CancelFirstCall(InProcessChannel(intercepted_methods({"roost.graph.v1.GraphService": server}), "fanout"))
    subscriber = CelebritySubscriber(channel, MARGIN_S)
    await subscriber.start()
    assert channel.cut
    server.send(celebrity(ANN), end=True)
    await wait_until(subscriber.fresh)
    await subscriber.stop()


async def until_received(server: Graph) -> None:
    """Waits until every message sent was received."""
    await wait_until(server.messages.empty)
    await run_ready_tasks()


async def test_subscriber_before_snapshot_end_knows_no_celebrities(
    subscriber: CelebritySubscriber, server: Graph
) -> None:
    assert not subscriber.fresh()
    server.send(celebrity(ANN))
    await until_received(server)
    assert not subscriber.fresh()
    assert not subscriber.is_celebrity(ANN)
    server.send(celebrity(BOB), end=True)
    await until_received(server)
    assert subscriber.fresh()
    assert set(subscriber.celebrities) == {ANN, BOB}


async def test_subscriber_change_updates_tiers_and_version(subscriber: CelebritySubscriber, server: Graph) -> None:
    server.send(celebrity(ANN), normal(BOB, 500), end=True)
    await until_received(server)
    before = subscriber.version
    server.send(normal(ANN, 2_000), celebrity(CAT, 3_000))
    await until_received(server)
    assert set(subscriber.celebrities) == {CAT}
    assert list(subscriber.demoted_since(499)) == [BOB, ANN]
    assert list(subscriber.demoted_since(500)) == [ANN]
    assert list(subscriber.demoted_since(2_000)) == []
    assert subscriber.version != before
    before = subscriber.version
    server.send()
    await until_received(server)
    assert subscriber.version == before


async def test_demoted_since_user_promoted_again_is_left_out(subscriber: CelebritySubscriber, server: Graph) -> None:
    server.send(normal(ANN, 500), end=True)
    server.send(celebrity(ANN, 600))
    await until_received(server)
    assert list(subscriber.demoted_since(0)) == []
    assert subscriber.is_celebrity(ANN)


async def test_new_celebrity_stays_in_fanout_for_margin(subscriber: CelebritySubscriber, server: Graph) -> None:
    server.send(celebrity(ANN, 10_000), end=True)
    await until_received(server)
    assert subscriber.is_celebrity(ANN)
    assert not subscriber.is_excluded_from_fanout(ANN, 10_000 + int(MARGIN_S * 1000) - 1)
    assert subscriber.is_excluded_from_fanout(ANN, 10_000 + int(MARGIN_S * 1000))
    assert not subscriber.is_excluded_from_fanout(BOB, 10**15)


async def test_subscriber_silence_is_stale_and_heartbeat_fresh(
    subscriber: CelebritySubscriber, server: Graph, clock: Clock
) -> None:
    server.send(celebrity(ANN), end=True)
    await until_received(server)
    clock.now += STREAM_TIMEOUT_S
    assert subscriber.fresh()
    clock.now += 0.1
    assert not subscriber.fresh()
    server.messages.put_nowait(Message(heartbeat=True))
    await until_received(server)
    assert subscriber.fresh()
    assert subscriber.is_celebrity(ANN)


async def test_subscriber_lost_stream_is_stale_after_half_margin_and_resumes_from_snapshot(
    subscriber: CelebritySubscriber, server: Graph, clock: Clock
) -> None:
    server.send(celebrity(ANN), end=True)
    await until_received(server)
    server.messages.put_nowait(None)
    await until_received(server)
    assert subscriber.fresh()
    clock.now += MARGIN_S / 2 + 0.1
    assert not subscriber.fresh()
    await wait_until(lambda: server.streams == 2)
    server.send(celebrity(BOB))
    server.send(celebrity(CAT), end=True)
    await until_received(server)
    assert subscriber.fresh()
    assert set(subscriber.celebrities) == {BOB, CAT}
