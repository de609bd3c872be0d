"""Fakes for search tests: the owning services behind an in-process channel, and an index in a dictionary."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceServicer
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceServicer

from services.platform.events.log import ConsumedEvent
from services.platform.rpc import errors
from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.transport.inprocess import InProcessChannel
from services.platform.transport.message_guard import MutationGuard
from services.search.store import BuildStatus, Collection, Document, IndexChange

A_MESSAGE = 2


@dataclass
class Owners(TweetServiceServicer, UserServiceServicer, GraphServiceServicer):
    """Serves tweets, users and follower counts from dictionaries. The next `failures` calls or scan messages raise
    UNAVAILABLE.
    """

    tweets: dict[int, tweet_pb2.TweetCore] = field(default_factory=dict)
    people: dict[int, identity.ScannedUser] = field(default_factory=dict)
    followers: dict[int, int] = field(default_factory=dict)
    failures: int = 0
    scanned: list[int] = field(default_factory=list)

    def post(self, tweet_id: int, text: str, *tags: str, author: int = 1, edited_ms: int = 0, **head: int) -> None:
        entities = tweet_pb2.Entities(hashtags=[tweet_pb2.TagEntity(tag=tag) for tag in tags])
        body = tweet_pb2.Tweet(id=tweet_id, author_id=author, text=text, entities=entities)
        if edited_ms:
            body.edited = True
            body.edited_at.FromMilliseconds(edited_ms)
        made = tweet_pb2.TweetHead(id=tweet_id, author_id=author, **head)
        self.tweets[tweet_id] = tweet_pb2.TweetCore(head=made, core=body.SerializeToString())

    def delete(self, tweet_id: int) -> None:
        head = tweet_pb2.TweetHead(id=tweet_id, author_id=1, deleted=True)
        self.tweets[tweet_id] = tweet_pb2.TweetCore(head=head)

    def sign_up(self, user_id: int, username: str, state: Any = user_pb2.USER_STATE_ACTIVE, version: int = 1) -> None:
        user = user_pb2.User(id=user_id, username=username, display_name=username)
        self.people[user_id] = identity.ScannedUser(user=user, state=state, version=version)

    def fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise errors.unavailable("down for now", 0)

    async def BatchGetTweetCores(self, request: Any, context: Any) -> Any:
        self.fail()
        return tweet.BatchGetTweetCoresResponse(cores=[self.tweets[i] for i in request.ids if i in self.tweets])

    async def BatchGetUserRefs(self, request: Any, context: Any) -> Any:
        self.fail()
        response = identity.BatchGetUserRefsResponse()
        for user_id in request.ids:
            if one := self.people.get(user_id):
                ref = user_pb2.UserRef(id=user_id, username=one.user.username, display_name=one.user.display_name)
                response.refs.add(user_id=user_id, ref=ref.SerializeToString(), state=one.state, version=one.version)
        return response

    async def BatchGetUserCounts(self, request: Any, context: Any) -> Any:
        counts = {i: graph.UserCounts(followers=self.followers[i]) for i in request.ids if i in self.followers}
        return graph.BatchGetUserCountsResponse(counts=counts)

    async def ScanTweets(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.scanned.append(request.after_id)
        ids = sorted(i for i in self.tweets if i > request.after_id)
        for start in range(0, len(ids), A_MESSAGE):
            yield tweet.ScanTweetsResponse(cores=[self.tweets[i] for i in ids[start : start + A_MESSAGE]])
            self.fail()

    async def ScanUsers(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for user_id in sorted(i for i in self.people if i > request.after_id):
            yield identity.ScanUsersResponse(users=[self.people[user_id]])


class MemoryIndex:
    """Implements the parts of SearchIndex that consumers and rebuilds use."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.documents: dict[tuple[Collection, int], Document] = {}
        self.begun: dict[tuple[Collection, int], Document] | None = None
        self.touched: set[tuple[Collection, int]] = set()
        self.finished = 0

    async def build_status(self) -> BuildStatus:
        return BuildStatus(self.finished, self.position is not None, None)

    async def apply(self, changes: Sequence[IndexChange], position: int = 0) -> None:
        for documents in filter(lambda one: one is not None, (self.documents, self.begun)):
            assert documents is not None
            for collection, key, document in changes:
                self.touched.add((collection, key))
                documents.pop((collection, key), None)
                if document is not None:
                    documents[collection, key] = document
        self.position = position or self.position

    async def begin(self) -> None:
        self.begun = {}
        self.touched.clear()

    async def fill(self, changes: Sequence[IndexChange]) -> None:
        assert self.begun is not None
        for collection, key, document in changes:
            if document is not None and (collection, key) not in self.touched:
                self.begun[collection, key] = document

    async def finish(self) -> None:
        assert self.begun is not None
        self.documents, self.begun = self.begun, None
        self.position = self.position or 0
        self.finished += 1

    def words(self) -> dict[int, tuple[str, ...]]:
        """Returns the words of each tweet by id."""
        return {key: found.words for (kind, key), found in self.documents.items() if kind is Collection.TWEETS}

    def ranks(self) -> dict[int, int]:
        """Returns the rank of each user by id."""
        return {key: found.rank for (kind, key), found in self.documents.items() if kind is Collection.USERS}

    def people(self) -> set[int]:
        """Returns the ids of the users in the index."""
        return {key for kind, key in self.documents if kind is Collection.USERS}


@pytest.fixture
def owners() -> Owners:
    return Owners()


def channel_to(owners: Owners) -> InProcessChannel:
    """Returns an in-process channel to the fake owners."""
    names = ("tweet.v1.TweetService", "identity.v1.UserService", "graph.v1.GraphService")
    served = {f"roost.{name}": owners for name in names}
    return InProcessChannel(intercepted_methods(served), "search", MutationGuard())


@pytest.fixture
def channel(owners: Owners) -> InProcessChannel:
    return channel_to(owners)


@pytest.fixture
def memory() -> MemoryIndex:
    return MemoryIndex()


def event(offset: int, appended_ms: int = 0, **body: Any) -> ConsumedEvent:
    """Returns a consumed event with the given body, for example `tweet_created=TweetCreated(…)`."""
    made = event_pb2.Event(event_id=offset, **body)
    topic = next(iter(body)).replace("_", ".", 1)
    return ConsumedEvent(offset, appended_ms, topic, 1, offset, made.SerializeToString(), "")
