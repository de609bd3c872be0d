"""Fixtures: fan-out's consumer on fake graph and timeline services behind a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer
from roost.timeline.v1 import timeline_service_pb2 as timeline
from roost.timeline.v1.timeline_service_pb2_grpc import TimelineServiceServicer

from services.fanout.consumer import HYBRID, Fanout
from services.fanout.delivery_status import DeliveryTracker
from services.platform.events.log import ConsumedEvent, Record
from services.platform.rpc import errors
from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.transport.inprocess import InProcessChannel
from tests.waiting import run_ready_tasks

NOW_S = 1_800_000_000.0


@dataclass
class World:
    """State of the fakes: followers by author, home timelines by user, and the calls received."""

    followers: dict[int, Sequence[int]] = field(default_factory=dict)
    homes: dict[int, set[int]] = field(default_factory=dict)
    warm: set[int] | None = None
    calls: list[list[tuple[int, int]]] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    refusals: int = 0
    # A call with more ids than this exceeds its deadline.
    max_ids_in_time: int = 10_000
    failing: set[int] = field(default_factory=set)
    is_excluded_from_fanout: set[int] = field(default_factory=set)
    tiers_fresh: bool = True
    appended: list[Record] = field(default_factory=list)

    def has(self, *pairs: tuple[int, int]) -> bool:
        return all(tweet_id in self.homes.get(user_id, ()) for user_id, tweet_id in pairs)


class Graph(GraphServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def StreamFollowerIds(self, request: Any, context: Any) -> AsyncIterator[graph.StreamFollowerIdsResponse]:
        self.world.reads.append(request.user_id)
        if request.user_id in self.world.failing:
            raise errors.unavailable("not this one")
        ids = list(self.world.followers.get(request.user_id, ()))
        for start in range(0, len(ids), request.page_size):
            yield graph.StreamFollowerIdsResponse(ids=ids[start : start + request.page_size])


class Homes(TimelineServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def AppendHomeEntries(self, request: Any, context: Any) -> timeline.AppendHomeEntriesResponse:
        world = self.world
        world.in_flight += 1
        world.most_in_flight = max(world.most_in_flight, world.in_flight)
        await run_ready_tasks()
        world.in_flight -= 1
        if world.refusals:
            world.refusals -= 1
            raise errors.unavailable("not now")
        if sum(len(entry.user_ids) for entry in request.entries) > world.max_ids_in_time:
            raise errors.deadline_exceeded()
        world.calls.append([(entry.tweet_id, len(entry.user_ids)) for entry in request.entries])
        for entry in request.entries:
            for user_id in entry.user_ids:
                world.homes.setdefault(user_id, set()).add(entry.tweet_id)
        warm = [len([u for u in e.user_ids if world.warm is None or u in world.warm]) for e in request.entries]
        return timeline.AppendHomeEntriesResponse(warm=warm)


class CelebritySubscriber:
    def __init__(self, world: World) -> None:
        self.world = world

    def fresh(self) -> bool:
        return self.world.tiers_fresh

    def is_excluded_from_fanout(self, user_id: int, now_ms: int) -> bool:
        assert now_ms == int(NOW_S * 1000)
        return user_id in self.world.is_excluded_from_fanout


class Log:
    def __init__(self, world: World) -> None:
        self.world = world

    async def append(self, records: Sequence[Record]) -> None:
        self.world.appended += records


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def tracker() -> DeliveryTracker:
    return DeliveryTracker(lambda: NOW_S)


def make_fanout(world: World, tracker: DeliveryTracker, mode: str = HYBRID, quota: int = 20_000) -> Fanout:
    channel = InProcessChannel(
        intercepted_methods(
            {"roost.graph.v1.GraphService": Graph(world), "roost.timeline.v1.TimelineService": Homes(world)}
        ),
        "fanout",
    )
    log: Any = Log(world)
    tiers: Any = CelebritySubscriber(world)
    return Fanout(channel, log, tiers, tracker, mode, lambda: NOW_S, quota)


def created(tweet_id: int, author: int, offset: int | None = None) -> ConsumedEvent:
    event = event_pb2.Event(event_id=tweet_id, key=author)
    event.tweet_created.tweet_id = tweet_id
    event.tweet_created.author_id = author
    payload = event.SerializeToString()
    return ConsumedEvent(offset or tweet_id, 0, "tweet.created", author, tweet_id, payload, "")
