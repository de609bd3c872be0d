"""The tweet service on its own in-process channel, with fakes of the services that it calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer, GraphServiceStub
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceServicer, UserServiceStub
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as pb
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.platform.ids.snowflake import Snowflake, wall_clock_ms
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
from services.tweet.pages import TweetPages
from services.tweet.service import TweetServicer
from services.tweet.store.sqlite.stores import SqliteTweetStores, open_stores
from services.tweet.writer import TweetWriter
from tests.versions import UnknownVersions
from tests.waiting import forever

ANN, BOB, CAT = 1, 2, 3
GRACE_S = 100
WINDOW_S = 60


@dataclass
class People(UserServiceServicer, GraphServiceServicer):
    """Fakes of identity and graph. Users are active unless a test sets another state."""

    known: set[int] = field(default_factory=lambda: {ANN, BOB, CAT})
    suspended: set[int] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    down: bool = False
    silent: bool = False

    async def BatchGetUserRefs(self, request: Any, context: Any) -> Any:
        if self.silent:
            await forever()
        if self.down:
            raise errors.unavailable("identity is down")
        response = identity.BatchGetUserRefsResponse()
        for user_id in self.known.intersection(request.ids):
            state = user_pb2.USER_STATE_SUSPENDED if user_id in self.suspended else user_pb2.USER_STATE_ACTIVE
            ref = user_pb2.UserRef(id=user_id, username=f"user{user_id}").SerializeToString()
            response.refs.add(user_id=user_id, ref=ref, state=state)
        return response

    async def GetVisibilityFilter(self, request: Any, context: Any) -> Any:
        return graph.GetVisibilityFilterResponse(
            blocked_ids=[target for by, target in self.blocks if by == request.user_id],
            blocked_by_ids=[i for i in request.candidate_ids if (i, request.user_id) in self.blocks],
        )


@dataclass
class Bench:
    people: People
    stores: SqliteTweetStores
    now_s: float = 2_000_000_000.0

    def __post_init__(self) -> None:
        endpoints: dict[str, Any] = {}
        channel: Any = InProcessChannel(endpoints, "tweet")
        hydrator = Hydrator(channel, HydrationCache(UnknownVersions()))
        cursors = Cursors(b"k" * 32)
        ids = Snowflake(0, wall_clock_ms)
        writes = TweetWriter(self.stores, hydrator, ids, lambda: self.now_s, WINDOW_S)
        people = VisibleUserPages(UserServiceStub(channel), GraphServiceStub(channel).GetVisibilityFilter, cursors)
        lists = TweetPages(self.stores, hydrator, people, cursors)
        servicer = TweetServicer(self.stores, writes, lists, hydrator, lambda: self.now_s, GRACE_S)
        endpoints |= intercepted_methods(
            {
                "roost.tweet.v1.TweetService": servicer,
                "roost.identity.v1.UserService": self.people,
                "roost.graph.v1.GraphService": self.people,
            }
        )
        self.tweets: Any = TweetServiceStub(InProcessChannel(endpoints, "", MutationGuard()))
        self.operator: Any = TweetServiceStub(InProcessChannel(endpoints, "operator", MutationGuard()))
        self.moderation: Any = TweetServiceStub(InProcessChannel(endpoints, "moderation", MutationGuard()))

    async def post(self, author: int = ANN, text: str = "hello", **fields: Any) -> tweet_pb2.Tweet:
        with acting(author):
            tweet: tweet_pb2.Tweet = (await self.tweets.CreateTweet(pb.CreateTweetRequest(text=text, **fields))).tweet
        return tweet

    async def delete(self, user: int, tweet_id: int) -> None:
        with acting(user):
            await self.tweets.DeleteTweet(pb.DeleteTweetRequest(tweet_id=tweet_id))

    async def get(self, tweet_id: int, reader: int = 0) -> tweet_pb2.Tweet:
        with acting(reader):
            tweet: tweet_pb2.Tweet = (await self.tweets.GetTweet(pb.GetTweetRequest(tweet_id=tweet_id))).tweet
        return tweet

    async def list_user(self, user_id: int, reader: int = 0, **fields: Any) -> pb.ListUserTweetsResponse:
        with acting(reader):
            page: pb.ListUserTweetsResponse = await self.tweets.ListUserTweets(
                pb.ListUserTweetsRequest(user_id=user_id, **fields)
            )
        return page

    async def list_recent(self, reader: int = 0, **fields: Any) -> pb.ListRecentTweetsResponse:
        with acting(reader):
            page: pb.ListRecentTweetsResponse = await self.tweets.ListRecentTweets(pb.ListRecentTweetsRequest(**fields))
        return page

    async def events(self) -> list[event_pb2.Event]:
        rows = await self.stores.db.read(lambda c: c.execute("SELECT payload FROM outbox ORDER BY seq").fetchall())
        return [event_pb2.Event.FromString(payload) for (payload,) in rows]

    async def stored(self) -> int:
        return len(await self.stores.tweets.scan(0, 1_000))


@contextmanager
def acting(user_id: int) -> Iterator[None]:
    token = current_call.set(Call(actor=Actor(user_id), traceparent="00-trace"))
    try:
        yield
    finally:
        current_call.reset(token)


def refused(code: grpc.StatusCode) -> Any:
    return pytest.raises(grpc.aio.AioRpcError, match=code.name)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    stores = await open_stores(tmp_path / "tweet.db", MemoryVersions())
    yield Bench(People(), stores)
    await stores.close()
