"""Fixtures: the composed timeline service on fake owners behind a real channel."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceServicer
from roost.timeline.v1 import timeline_service_pb2 as pb
from roost.timeline.v1 import timeline_service_pb2_grpc as pb_grpc
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceServicer

from services.platform.config import Settings
from services.platform.pagination.cursors import Cursors
from services.platform.rpc import errors
from services.platform.rpc.context import Actor, Call, current_call
from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.service import ServiceContext
from services.platform.transport.inprocess import InProcessChannel
from services.platform.transport.message_guard import MutationGuard
from services.platform.versions import Kind, MemoryVersions, key_of
from services.timeline.home import reader as home_reader
from services.timeline.server import build

READER = 1
MARGIN_S = 5.0


@dataclass
class World:
    """State of the fakes: what the owners know, and the calls they received."""

    now_s: float = 1_800_000_000.0
    heads: dict[int, tweet_pb2.TweetHead] = field(default_factory=dict)
    followed_ms: dict[int, dict[int, int]] = field(default_factory=dict)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    mutes: set[tuple[int, int]] = field(default_factory=set)
    suspended: set[int] = field(default_factory=set)
    tiers: dict[int, graph.TierEntry] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    pulled: list[list[int]] = field(default_factory=list)
    down: str = ""
    # While cleared, the fake answers with the reader's ids only.
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Queue[graph.TierEntry] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.answering.set()
        # The versions of other kinds are unknown, so the fakes need not publish changes of tweets.
        self.versions = MemoryVersions()
        self.publisher = self.versions.publisher(Kind.RELATIONS)

    @property
    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def post(self, author: int, *ids: int, **head: int) -> None:
        for tweet_id in ids:
            self.heads[tweet_id] = tweet_pb2.TweetHead(id=tweet_id, author_id=author, **head)  # type: ignore[arg-type]

    def delete(self, tweet_id: int) -> None:
        self.heads[tweet_id].deleted = True

    def relations_changed(self, reader: int = READER) -> None:
        """Publishes a change of `followed_ms`, `blocks` or `mutes` of a reader."""
        self.publisher.changed([key_of(Kind.RELATIONS, reader)])

    def follow(self, followee: int, follower: int = READER) -> None:
        self.followed_ms.setdefault(follower, {})[followee] = self.now_ms
        self.relations_changed(follower)

    def unfollow(self, followee: int, follower: int = READER) -> None:
        del self.followed_ms[follower][followee]
        self.relations_changed(follower)

    def classify(self, user_id: int, tier: graph.Tier.ValueType) -> None:
        self.tiers[user_id] = graph.TierEntry(user_id=user_id, tier=tier, changed_at_ms=self.now_ms)
        self.news.put_nowait(self.tiers[user_id])

    def count(self, method: str) -> None:
        self.calls[method] += 1
        if self.down == method:
            raise errors.unavailable("down")


class Graph(GraphServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def GetVisibilityFilter(self, request: Any, context: Any) -> graph.GetVisibilityFilterResponse:
        self.world.count("GetVisibilityFilter")
        reader, asked = request.user_id, set(request.candidate_ids)
        return graph.GetVisibilityFilterResponse(
            blocked_ids=[b for a, b in self.world.blocks if a == reader],
            muted_ids=[b for a, b in self.world.mutes if a == reader],
            blocked_by_ids=[a for a, b in self.world.blocks if b == reader and a in asked],
        )

    async def StreamFollowingIds(self, request: Any, context: Any) -> AsyncIterator[graph.StreamFollowingIdsResponse]:
        self.world.count("StreamFollowingIds")
        edges = list(self.world.followed_ms.get(request.user_id, {}).items())
        for start in range(0, len(edges) or 1, 500):
            page = [graph.Followee(user_id=u, followed_at_ms=ms) for u, ms in edges[start : start + 500]]
            yield graph.StreamFollowingIdsResponse(followees=page)

    async def StreamTiers(self, request: Any, context: Any) -> AsyncIterator[graph.StreamTiersResponse]:
        yield graph.StreamTiersResponse(entries=list(self.world.tiers.values()), snapshot_end=True)
        while True:
            yield graph.StreamTiersResponse(entries=[await self.world.news.get()])


class Tweets(TweetServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def BatchListAuthorTweetIds(self, request: Any, context: Any) -> tweet.BatchListAuthorTweetIdsResponse:
        self.world.count("BatchListAuthorTweetIds")
        self.world.pulled.append(list(request.author_ids))
        if list(request.author_ids) != [READER]:
            await self.world.answering.wait()
        answer = tweet.BatchListAuthorTweetIdsResponse()
        for author in request.author_ids:
            ids = [
                i
                for i, head in self.world.heads.items()
                if head.author_id == author and not head.deleted and (not request.before_id or i < request.before_id)
            ]
            if ids:
                answer.authors.add(author_id=author, ids=sorted(ids, reverse=True)[: request.per_author])
        return answer

    async def BatchGetTweetCores(self, request: Any, context: Any) -> tweet.BatchGetTweetCoresResponse:
        self.world.count("BatchGetTweetCores")
        cores = [
            tweet_pb2.TweetCore(
                head=self.world.heads[i], core=tweet_pb2.Tweet(id=i, text=f"tweet {i}").SerializeToString()
            )
            for i in request.ids
            if i in self.world.heads
        ]
        return tweet.BatchGetTweetCoresResponse(cores=cores)


class Users(UserServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def BatchGetUserRefs(self, request: Any, context: Any) -> identity.BatchGetUserRefsResponse:
        answer = identity.BatchGetUserRefsResponse()
        for user_id in request.ids:
            gone = user_id in self.world.suspended
            state = user_pb2.USER_STATE_SUSPENDED if gone else user_pb2.USER_STATE_ACTIVE
            answer.refs.add(user_id=user_id, state=state, ref=user_pb2.UserRef(id=user_id).SerializeToString())
        return answer


@dataclass
class Timeline:
    """The service under test and a client of it."""

    world: World
    channel: Any
    service: Any

    def __post_init__(self) -> None:
        self.stub = pb_grpc.TimelineServiceStub(self.channel(""))
        self.fanout = pb_grpc.TimelineServiceStub(self.channel("fanout"))
        self.operator = pb_grpc.TimelineServiceStub(self.channel("operator"))

    @contextmanager
    def as_user(self, user_id: int) -> Iterator[None]:
        token = current_call.set(Call(actor=Actor(user_id)))
        try:
            yield
        finally:
            current_call.reset(token)

    async def read(
        self, cursor: str = "", size: int = 20, reader: int = READER
    ) -> tuple[list[int], pb.ListHomeTimelineResponse, str]:
        """Returns the ids of a page, the page, and the trailer `roost-timeline`."""
        with self.as_user(reader):
            call = self.stub.ListHomeTimeline(pb.ListHomeTimelineRequest(cursor=cursor, page_size=size))
            page = await call
            trailer = dict(await call.trailing_metadata())
        return [entry.id for entry in page.tweets], page, str(trailer["roost-timeline"])

    async def whole(self, size: int = 100, reader: int = READER) -> list[int]:
        found, page, _ = await self.read("", size, reader)
        while page.next_cursor:
            more, page, _ = await self.read(page.next_cursor, size, reader)
            found += more
        return found

    async def append(self, *tweet_ids: int, reader: int = READER) -> list[int]:
        """Appends entries as fan-out does."""
        entries = [pb.HomeEntry(tweet_id=tweet_id, user_ids=[reader]) for tweet_id in tweet_ids]
        return list((await self.fanout.AppendHomeEntries(pb.AppendHomeEntriesRequest(entries=entries))).warm)

    async def explain(self, tweet_id: int) -> pb.ExplainTimelineEntryResponse:
        with self.as_user(READER):
            return await self.stub.ExplainTimelineEntry(pb.ExplainTimelineEntryRequest(tweet_id=tweet_id))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def mode() -> str:
    """The timeline mode; tests override it by parametrization."""
    return "hybrid"


@pytest.fixture
async def timeline(world: World, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Timeline]:
    """The running service, with short waits."""
    monkeypatch.setattr(home_reader, "BUILD_WAIT_S", 0.2)
    servicers: dict[str, object] = {
        "roost.graph.v1.GraphService": Graph(world),
        "roost.tweet.v1.TweetService": Tweets(world),
        "roost.identity.v1.UserService": Users(world),
    }
    endpoints = dict(intercepted_methods(servicers))
    checker = MutationGuard()

    def channel(caller: str) -> Any:
        return InProcessChannel(endpoints, caller, checker)

    kit: Any = ServiceContext(
        name="timeline",
        settings=Settings(timeline_mode=mode, clock_margin_s=MARGIN_S, data_dir=tmp_path),  # type: ignore[arg-type]
        clock=lambda: world.now_s,
        random=random.Random(1),
        ids=None,  # type: ignore[arg-type]
        cursors=Cursors(b"k" * 32),
        log=None,  # type: ignore[arg-type]
        channel=channel("timeline"),
        data_dir=tmp_path,
        versions=world.versions,
        process_objects={},
    )
    service = await build(kit)
    endpoints.update(intercepted_methods(service.servicers))
    for worker in service.workers:
        await worker.start()
    yield Timeline(world, channel, service)
    world.answering.set()
    for worker in reversed(service.workers):
        await worker.stop()
    checker.verify()
