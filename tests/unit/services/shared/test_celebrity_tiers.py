"""The view of tiers: snapshot, changes, silence and reconnection."""

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
from services.shared.celebrity_tiers import SILENCE_S, CelebritySubscriber

ANN, BOB, CAT = 2, 3, 4
MARGIN_S = 5.0
Message = graph.StreamTiersResponse


def celebrity(user_id: int, at_ms: int = 1_000) -> graph.TierEntry:
    return graph.TierEntry(user_id=user_id, tier=graph.TIER_CELEBRITY, changed_at_ms=at_ms)


def normal(user_id: int, at_ms: int = 1_000) -> graph.TierEntry:
    return graph.TierEntry(user_id=user_id, tier=graph.TIER_NORMAL, changed_at_ms=at_ms)


class Graph(GraphServiceServicer):
    """Streams what is put into `messages`; None breaks the stream."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self.streams = 0

    async def StreamTiers(self, request: Any, context: Any) -> AsyncIterator[Message]:
        self.streams += 1
        while (message := await self.messages.get()) is not None:
            yield message
        raise errors.unavailable("gone")

    def say(self, *entries: graph.TierEntry, end: bool = False) -> None:
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
async def view(server: Graph, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CelebritySubscriber]:
    monkeypatch.setattr(celebrity_tiers, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(celebrity_tiers, "START_WITHIN_S", 0.01)
    view = CelebritySubscriber(
        InProcessChannel(intercepted_methods({"roost.graph.v1.GraphService": server}), "fanout"), MARGIN_S, clock
    )
    await view.start()
    yield view
    await view.stop()


class CutOnce(AbstractChannel):
    """Its first call is cancelled, as those of a channel that is closed."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.cut = False

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        start = getattr(self._channel, kind)(method, *args, **kwargs)

        def begin(request: Any, **options: Any) -> Any:
            if self.cut:
                return start(request, **options)
            self.cut = True
            return _Cut()

        return begin


class _Cut:
    async def read(self) -> Message:
        raise asyncio.CancelledError

    def cancel(self) -> None:
        pass


async def test_a_channel_that_is_closed_ends_nothing(server: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celebrity_tiers, "RETRY_FIRST_S", 0.001)
    channel = CutOnce(InProcessChannel(intercepted_methods({"roost.graph.v1.GraphService": server}), "fanout"))
    view = CelebritySubscriber(channel, MARGIN_S)
    await view.start()
    assert channel.cut
    async with asyncio.timeout(5):
        while not view.fresh():
            server.say(celebrity(ANN), end=True)
            await asyncio.sleep(0.01)
    await view.stop()


async def quiet(server: Graph) -> None:
    """Until everything said is heard."""
    for _ in range(200):
        if server.messages.empty():
            break
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.005)


async def test_nothing_is_known_before_the_snapshot_ends(view: CelebritySubscriber, server: Graph) -> None:
    assert not view.fresh()
    server.say(celebrity(ANN))
    await quiet(server)
    assert not view.fresh()
    assert not view.is_celebrity(ANN)
    server.say(celebrity(BOB), end=True)
    await quiet(server)
    assert view.fresh()
    assert set(view.celebrities) == {ANN, BOB}


async def test_changes_are_taken_in_and_told_by_the_version(view: CelebritySubscriber, server: Graph) -> None:
    server.say(celebrity(ANN), normal(BOB, 500), end=True)
    await quiet(server)
    before = view.version
    server.say(normal(ANN, 2_000), celebrity(CAT, 3_000))
    await quiet(server)
    assert set(view.celebrities) == {CAT}
    assert list(view.demoted_since(499)) == [BOB, ANN]
    assert list(view.demoted_since(500)) == [ANN]
    assert list(view.demoted_since(2_000)) == []
    assert view.version != before
    before = view.version
    server.say()
    await quiet(server)
    assert view.version == before


async def test_one_who_becomes_a_celebrity_again_is_no_longer_one_who_ceased(
    view: CelebritySubscriber, server: Graph
) -> None:
    server.say(normal(ANN, 500), end=True)
    server.say(celebrity(ANN, 600))
    await quiet(server)
    assert list(view.demoted_since(0)) == []
    assert view.is_celebrity(ANN)


async def test_a_new_celebrity_is_pushed_for_the_margin(view: CelebritySubscriber, server: Graph) -> None:
    server.say(celebrity(ANN, 10_000), end=True)
    await quiet(server)
    assert view.is_celebrity(ANN)
    assert not view.is_excluded_from_fanout(ANN, 10_000 + int(MARGIN_S * 1000) - 1)
    assert view.is_excluded_from_fanout(ANN, 10_000 + int(MARGIN_S * 1000))
    assert not view.is_excluded_from_fanout(BOB, 10**15)


async def test_silence_makes_it_stale_and_a_heartbeat_fresh_again(
    view: CelebritySubscriber, server: Graph, clock: Clock
) -> None:
    server.say(celebrity(ANN), end=True)
    await quiet(server)
    clock.now += SILENCE_S
    assert view.fresh()
    clock.now += 0.1
    assert not view.fresh()
    server.messages.put_nowait(Message(heartbeat=True))
    await quiet(server)
    assert view.fresh()
    assert view.is_celebrity(ANN)


async def test_a_lost_stream_is_stale_after_half_the_margin_and_starts_again_from_a_snapshot(
    view: CelebritySubscriber, server: Graph, clock: Clock
) -> None:
    server.say(celebrity(ANN), end=True)
    await quiet(server)
    server.messages.put_nowait(None)
    await quiet(server)
    assert view.fresh()
    clock.now += MARGIN_S / 2 + 0.1
    assert not view.fresh()
    for _ in range(100):
        if server.streams == 2:
            break
        await asyncio.sleep(0.005)
    server.say(celebrity(BOB))
    server.say(celebrity(CAT), end=True)
    await quiet(server)
    assert view.fresh()
    assert set(view.celebrities) == {BOB, CAT}
