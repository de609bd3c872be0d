"""Fake services behind a real gRPC server: they keep data in dictionaries and can be made to fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.identity.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)
from roost.timeline.v1 import timeline_service_pb2, timeline_service_pb2_grpc
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli.connection import MeshTarget, bearer
from roost_cli.load.loader import Operator

OPERATOR_TOKEN = "the-operator"
LONGEST = 280


@dataclass
class State:
    """The data of the fake services and the failures to inject."""

    usernames: dict[int, str] = field(default_factory=dict)
    hidden: set[int] = field(default_factory=set)
    follows: list[tuple[int, int]] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    mutes: list[tuple[int, int]] = field(default_factory=list)
    heads: list[tweet_pb2.TweetHead] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    keys: dict[tuple[int, str], int] = field(default_factory=dict)
    # Home timelines to return instead of the correct ones, by user id.
    homes: dict[int, list[int]] = field(default_factory=dict)
    # The same, after a replay.
    after_replay: dict[int, list[int]] = field(default_factory=dict)
    timeline_state: str = "warm"
    # Successive responses of GetFanoutLag; the last one repeats.
    lags: list[int] = field(default_factory=lambda: [0])
    paused: bool = False
    partial_answers: int = 0
    # By method: the number of calls that fail first, and their status.
    failing: dict[str, tuple[int, grpc.StatusCode]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    rebuilt: list[int] = field(default_factory=list)

    def add_user(self, username: str) -> int:
        user_id = 100 + len(self.usernames)
        self.usernames[user_id] = username
        return user_id

    def add_tweet(self, author_id: int, **head: Any) -> int:
        tweet_id = 1_000 + len(self.heads)
        self.heads.append(tweet_pb2.TweetHead(id=tweet_id, author_id=author_id, **head))
        return tweet_id

    def right_home(self, user_id: int) -> list[int]:
        authors = {user_id} | {followee for follower, followee in self.follows if follower == user_id}
        return sorted((head.id for head in self.heads if head.author_id in authors and not head.deleted), reverse=True)

    async def enter(self, context: Any, method: str) -> None:
        self.calls[method] = self.calls.get(method, 0) + 1
        left, code = self.failing.get(method, (0, grpc.StatusCode.OK))
        if left:
            self.failing[method] = (left - 1, code)
            await context.abort(code, f"{method} fails")


def caller(context: Any) -> str:
    return str(dict(context.invocation_metadata()).get("authorization", "")).removeprefix("Bearer ")


async def operator_only(context: Any) -> None:
    if caller(context) != OPERATOR_TOKEN:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "for the operator")


async def signed_in(context: Any) -> int:
    if not caller(context).startswith("token-"):
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "sign in first")
    return int(caller(context).removeprefix("token-"))


class Auth(auth_service_pb2_grpc.AuthServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def MintTokens(self, request: Any, context: Any) -> Any:
        await operator_only(context)
        await self.state.enter(context, "MintTokens")
        tokens = [
            auth_service_pb2.MintedToken(user_id=user_id, access_token=f"token-{user_id}")
            for user_id in request.user_ids
            if user_id in self.state.usernames and user_id not in self.state.hidden
        ]
        return auth_service_pb2.MintTokensResponse(tokens=tokens)


class Users(user_service_pb2_grpc.UserServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def ImportUsers(self, request: Any, context: Any) -> Any:
        await operator_only(context)
        await self.state.enter(context, "ImportUsers")
        ids = [self.state.add_user(user.username) for user in request.users]
        return user_service_pb2.ImportUsersResponse(user_ids=ids)

    async def GetUserByUsername(self, request: Any, context: Any) -> Any:
        ids = {username: user_id for user_id, username in self.state.usernames.items()}
        if request.username not in ids:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such user")
        user = user_pb2.User(id=ids[request.username], username=request.username)
        return user_service_pb2.GetUserByUsernameResponse(user=user)

    async def ScanUsers(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await operator_only(context)
        for user_id, username in self.state.usernames.items():
            suspended = user_id in self.state.hidden
            yield user_service_pb2.ScanUsersResponse(
                users=[
                    user_service_pb2.ScannedUser(
                        user=user_pb2.User(id=user_id, username=username),
                        state=user_pb2.USER_STATE_SUSPENDED if suspended else user_pb2.USER_STATE_ACTIVE,
                    )
                ]
            )


class Graph(graph_service_pb2_grpc.GraphServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def Follow(self, request: Any, context: Any) -> Any:
        follower = await signed_in(context)
        await self.state.enter(context, "Follow")
        if (request.user_id, follower) in self.state.blocks:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "blocked")
        if (follower, request.user_id) not in self.state.follows:
            self.state.follows.append((follower, request.user_id))
        return graph_service_pb2.FollowResponse()

    async def ScanEdges(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await operator_only(context)
        kinds = {
            graph_service_pb2.EDGE_KIND_FOLLOW: self.state.follows,
            graph_service_pb2.EDGE_KIND_BLOCK: self.state.blocks,
            graph_service_pb2.EDGE_KIND_MUTE: self.state.mutes,
        }
        edges = [graph_service_pb2.Edge(from_id=one, to_id=other) for one, other in kinds.get(request.kind, [])]
        yield graph_service_pb2.ScanEdgesResponse(edges=edges)


class Tweets(tweet_service_pb2_grpc.TweetServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def CreateTweet(self, request: Any, context: Any) -> Any:
        author = await signed_in(context)
        await self.state.enter(context, "CreateTweet")
        if len(request.text) > LONGEST:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too long")
        made = (author, request.idempotency_key) not in self.state.keys
        if made:
            tweet_id = self.state.add_tweet(author)
            self.state.texts[tweet_id] = request.text
            self.state.keys[author, request.idempotency_key] = tweet_id
        tweet = tweet_pb2.Tweet(id=self.state.keys[author, request.idempotency_key], author_id=author)
        tweet.created_at.FromMilliseconds(int(time.time() * 1000) if made else 1)
        return tweet_service_pb2.CreateTweetResponse(tweet=tweet)

    async def GetTweet(self, request: Any, context: Any) -> Any:
        if request.tweet_id not in self.state.texts:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such tweet")
        tweet = tweet_pb2.Tweet(id=request.tweet_id, text=self.state.texts[request.tweet_id])
        return tweet_service_pb2.GetTweetResponse(tweet=tweet)

    async def ScanTweets(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await operator_only(context)
        cores = [tweet_pb2.TweetCore(head=head) for head in self.state.heads if head.id > request.after_id]
        yield tweet_service_pb2.ScanTweetsResponse(cores=cores)


class Timelines(timeline_service_pb2_grpc.TimelineServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def ListHomeTimeline(self, request: Any, context: Any) -> Any:
        reader = await signed_in(context)
        await self.state.enter(context, "ListHomeTimeline")
        context.set_trailing_metadata((("roost-timeline", self.state.timeline_state),))
        ids = self.state.homes.get(reader, self.state.right_home(reader))
        first = int(request.cursor or 0)
        if self.state.partial_answers:
            self.state.partial_answers -= 1
            half = [tweet_pb2.Tweet(id=tweet_id) for tweet_id in ids[first : first + 1]]
            return timeline_service_pb2.ListHomeTimelineResponse(tweets=half, next_cursor=str(first), partial=True)
        last = first + (request.page_size or 20)
        return timeline_service_pb2.ListHomeTimelineResponse(
            tweets=[tweet_pb2.Tweet(id=tweet_id) for tweet_id in ids[first:last]],
            next_cursor=str(last) if last < len(ids) else "",
        )

    async def RebuildHomeTimeline(self, request: Any, context: Any) -> Any:
        await operator_only(context)
        self.state.rebuilt.append(request.user_id)
        return timeline_service_pb2.RebuildHomeTimelineResponse(warm=True)


class Fanout(fanout_service_pb2_grpc.FanoutServiceServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    async def GetFanoutLag(self, request: Any, context: Any) -> Any:
        await operator_only(context)
        self.state.calls["GetFanoutLag"] = self.state.calls.get("GetFanoutLag", 0) + 1
        events = self.state.lags.pop(0) if len(self.state.lags) > 1 else self.state.lags[0]
        return fanout_service_pb2.GetFanoutLagResponse(events=events, paused=self.state.paused)

    async def ReplayFanout(self, request: Any, context: Any) -> Any:
        await operator_only(context)
        await self.state.enter(context, "ReplayFanout")
        self.state.homes |= self.state.after_replay
        return fanout_service_pb2.ReplayFanoutResponse(events=len(self.state.heads))


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def fake_mesh(state: State) -> AsyncIterator[MeshTarget]:
    """Serves the fake services on a free port."""
    server = grpc.aio.server()
    auth_service_pb2_grpc.add_AuthServiceServicer_to_server(Auth(state), server)
    user_service_pb2_grpc.add_UserServiceServicer_to_server(Users(state), server)
    graph_service_pb2_grpc.add_GraphServiceServicer_to_server(Graph(state), server)
    tweet_service_pb2_grpc.add_TweetServiceServicer_to_server(Tweets(state), server)
    timeline_service_pb2_grpc.add_TimelineServiceServicer_to_server(Timelines(state), server)
    fanout_service_pb2_grpc.add_FanoutServiceServicer_to_server(Fanout(state), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield MeshTarget(f"127.0.0.1:{port}", OPERATOR_TOKEN)
    await server.stop(None)


@pytest.fixture
async def channel(fake_mesh: MeshTarget) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(fake_mesh.address) as opened:
        yield opened


@pytest.fixture
def operator(channel: grpc.aio.Channel) -> Operator:
    return Operator(channel, bearer(OPERATOR_TOKEN))
