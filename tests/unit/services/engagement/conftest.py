"""The engagement service with a real store on its own in-process channel, and one fake of the services that it calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from roost.engagement.v1 import engagement_service_pb2 as pb
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceStub
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer, GraphServiceStub
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceServicer, UserServiceStub
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceServicer

from services.engagement.service import EngagementService
from services.engagement.store.sqlite.store import SqliteEngagementStore
from services.engagement.tweet_access import access_over
from services.platform.events.records import EventBuilder
from services.platform.ids.snowflake import Snowflake
from services.platform.pagination.cursors import Cursors
from services.platform.rpc import errors
from services.platform.rpc.context import Actor, Call, current_call
from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.transport.inprocess import InProcessChannel
from services.platform.transport.message_guard import MutationGuard
from services.platform.versions import MemoryVersions
from services.shared.hydration.cache import HydrationCache
from services.shared.hydration.hydrator import Hydrator
from services.shared.hydration.user_pages import VisibleUserPages
from tests.versions import UnknownVersions


@dataclass
class World(UserServiceServicer, GraphServiceServicer, TweetServiceServicer):
    """A fake of identity, graph and tweet. Users 1 to 99 exist and are active unless a test sets another state."""

    heads: dict[int, tweet_pb2.TweetHead] = field(default_factory=dict)
    suspended: set[int] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    mutes: set[tuple[int, int]] = field(default_factory=set)
    down: bool = False

    def post(self, tweet_id: int, author_id: int, **head: int) -> int:
        self.heads[tweet_id] = tweet_pb2.TweetHead(id=tweet_id, author_id=author_id, **head)
        return tweet_id

    def delete(self, tweet_id: int) -> None:
        self.heads[tweet_id].deleted = True

    async def BatchGetTweetCores(self, request: Any, context: Any) -> Any:
        if self.down:
            raise errors.unavailable("tweet is down")
        response = tweet.BatchGetTweetCoresResponse()
        for tweet_id in request.ids:
            if (head := self.heads.get(tweet_id)) is not None:
                core = tweet_pb2.Tweet(id=tweet_id, author_id=head.author_id).SerializeToString()
                response.cores.add(head=head, core=b"" if head.deleted else core)
        return response

    async def BatchGetUserRefs(self, request: Any, context: Any) -> Any:
        response = identity.BatchGetUserRefsResponse()
        for user_id in request.ids:
            if user_id < 100:
                state = user_pb2.USER_STATE_SUSPENDED if user_id in self.suspended else user_pb2.USER_STATE_ACTIVE
                ref = user_pb2.UserRef(id=user_id).SerializeToString()
                response.refs.add(user_id=user_id, ref=ref, state=state)
        return response

    async def BatchGetUsers(self, request: Any, context: Any) -> Any:
        shown = [user_id for user_id in request.ids if user_id not in self.suspended]
        return identity.BatchGetUsersResponse(users=[user_pb2.User(id=user_id) for user_id in shown])

    async def GetVisibilityFilter(self, request: Any, context: Any) -> Any:
        return graph.GetVisibilityFilterResponse(
            blocked_ids=[target for by, target in self.blocks if by == request.user_id],
            blocked_by_ids=[i for i in request.candidate_ids if (i, request.user_id) in self.blocks],
            muted_ids=[target for by, target in self.mutes if by == request.user_id],
        )


@dataclass
class Bench:
    """An engagement service, the fake it calls, and helpers for calls."""

    world: World
    store: SqliteEngagementStore
    checker: MutationGuard = field(default_factory=MutationGuard)
    # Unix milliseconds: the clock of ids and events.
    now_ms: int = 1_800_000_000_000

    def __post_init__(self) -> None:
        endpoints: dict[str, Any] = {}
        own = InProcessChannel(endpoints, "engagement")
        hydrator, cursors = Hydrator(own, HydrationCache(UnknownVersions())), Cursors(b"k" * 32)
        people = VisibleUserPages(UserServiceStub(own), GraphServiceStub(own).GetVisibilityFilter, cursors)
        ids = Snowflake(0, lambda: self.now_ms)
        events = EventBuilder(ids, lambda: self.now_ms / 1000)
        servicer = EngagementService(self.store, access_over(own, hydrator), hydrator, people, events, ids, cursors)
        endpoints |= intercepted_methods(
            {
                "roost.engagement.v1.EngagementService": servicer,
                "roost.identity.v1.UserService": self.world,
                "roost.graph.v1.GraphService": self.world,
                "roost.tweet.v1.TweetService": self.world,
            }
        )
        self._stub: Any = EngagementServiceStub(InProcessChannel(endpoints, "", self.checker))
        self._mesh: Any = EngagementServiceStub(InProcessChannel(endpoints, "timeline", self.checker))

    async def call(self, user_id: int, method: str, /, **fields: Any) -> Any:
        """Calls a method as a user (0: not signed in) from outside the mesh."""
        token = current_call.set(Call(actor=Actor(user_id), traceparent="00-trace"))
        try:
            return await getattr(self._stub, method)(getattr(pb, f"{method}Request")(**fields))
        finally:
            current_call.reset(token)

    async def mesh(self, method: str, /, **fields: Any) -> Any:
        """Calls a method as another service."""
        return await getattr(self._mesh, method)(getattr(pb, f"{method}Request")(**fields))

    async def pages(self, user_id: int, method: str, /, **fields: Any) -> list[list[int]]:
        """Returns the ids on each page of a list."""
        pages, cursor = [], ""
        while True:
            answer = await self.call(user_id, method, cursor=cursor, **fields)
            pages.append([one.id for one in (answer.users if method == "ListLikes" else answer.tweets)])
            cursor = answer.next_cursor
            if not cursor:
                return pages

    async def events(self) -> list[event_pb2.Event]:
        rows = await self.store.db.read(lambda c: c.execute("SELECT payload FROM outbox ORDER BY seq").fetchall())
        return [event_pb2.Event.FromString(payload) for (payload,) in rows]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """An engagement service without tweets."""
    store = await SqliteEngagementStore.open(tmp_path / "engagement.db", MemoryVersions())
    bench = Bench(World(), store)
    yield bench
    await store.close()
    bench.checker.verify()
