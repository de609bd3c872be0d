"""Tests the client: errors become exceptions, lists request their pages, and safe methods are retried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc, user_pb2
from roost.timeline.v1 import timeline_service_pb2, timeline_service_pb2_grpc
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from roost_client import ApiError, Client, client, connect
from roost_client.transport import policy


@dataclass
class Seen:
    """The requests that the server received, and how often it fails first."""

    requests: list[Any] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    unavailable: int = 0
    partial: int = 0

    def note(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.tokens.append(str(dict(context.invocation_metadata()).get("authorization", "")))
        self.deadlines.append(context.time_remaining())
        if self.unavailable:
            self.unavailable -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


class Auth(auth_service_pb2_grpc.AuthServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def Login(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        return auth_service_pb2.LoginResponse(
            user=user_pb2.User(id=7, username="alice"), access_token="first", refresh_token="buys second"
        )

    def RefreshToken(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        return auth_service_pb2.RefreshTokenResponse(access_token="second", refresh_token="buys third")


class Graph(graph_service_pb2_grpc.GraphServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def Follow(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        relationship = graph_service_pb2.Relationship(user_id=request.user_id, following=True)
        return graph_service_pb2.FollowResponse(relationship=relationship)

    def ListFollowers(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        first = int(request.cursor or 0)
        users = [user_pb2.User(id=first + number) for number in (1, 2)]
        return graph_service_pb2.ListFollowersResponse(users=users, next_cursor=str(first + 2) if first < 4 else "")


class Tweets(tweet_service_pb2_grpc.TweetServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def CreateTweet(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        status = status_pb2.Status(code=3, message="text: too long")
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason="TOO_LONG", domain="roost"))
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="text", description="too long")
        status.details.add().Pack(bad)
        context.abort_with_status(rpc_status.to_status(status))

    def DeleteTweet(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        return tweet_service_pb2.DeleteTweetResponse()


class Timelines(timeline_service_pb2_grpc.TimelineServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def ListHomeTimeline(self, request: Any, context: Any) -> Any:
        self.seen.note(request, context)
        if self.seen.partial:
            self.seen.partial -= 1
            part = [tweet_pb2.Tweet(id=9)]
            return timeline_service_pb2.ListHomeTimelineResponse(tweets=part, next_cursor="again", partial=True)
        tweets = [tweet_pb2.Tweet(id=9), tweet_pb2.Tweet(id=8)]
        return timeline_service_pb2.ListHomeTimelineResponse(tweets=tweets)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def roost(seen: Seen) -> Iterator[Client]:
    """Returns a client of a server that runs in threads."""
    server = grpc.server(ThreadPoolExecutor(2))
    auth_service_pb2_grpc.add_AuthServiceServicer_to_server(Auth(seen), server)
    graph_service_pb2_grpc.add_GraphServiceServicer_to_server(Graph(seen), server)
    tweet_service_pb2_grpc.add_TweetServiceServicer_to_server(Tweets(seen), server)
    timeline_service_pb2_grpc.add_TimelineServiceServicer_to_server(Timelines(seen), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with connect(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(None).wait()


def test_client_login_stores_and_refreshes_tokens(roost: Client, seen: Seen) -> None:
    assert roost.login("alice", "correct horse").username == "alice"
    roost.follow(8)
    roost.refresh()
    roost.follow(8)
    assert seen.tokens == ["", "Bearer first", "Bearer first", "Bearer second"]
    assert seen.requests[2].refresh_token == "buys second"


def test_client_login_accepts_username_or_email(roost: Client, seen: Seen) -> None:
    roost.login("alice", "correct horse")
    roost.login("alice@example.com", "correct horse")
    assert [(request.username, request.email) for request in seen.requests] == [
        ("alice", ""),
        ("", "alice@example.com"),
    ]


def test_client_lists_request_pages_on_demand(roost: Client, seen: Seen) -> None:
    followers = roost.followers(7)
    assert next(followers).id == 1
    assert len(seen.requests) == 1
    assert [user.id for user in followers] == [2, 3, 4, 5, 6]
    assert [request.cursor for request in seen.requests] == ["", "2", "4"]


def test_client_refused_call_raises_with_details(roost: Client) -> None:
    with pytest.raises(ApiError, match="INVALID_ARGUMENT: text: too long") as refusal:
        roost.create_tweet("x" * 300)
    error = refusal.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_LONG")
    assert list(error.violations) == [("text", "too long")]


def test_client_create_tweet_without_key_generates_key(roost: Client, seen: Seen) -> None:
    for key in ("", "", "mine"):
        with pytest.raises(ApiError):
            roost.create_tweet("x", idempotency_key=key)
    first, second, third = (request.idempotency_key for request in seen.requests)
    assert first
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize(
    ("ask", "calls"),
    [(lambda roost: roost.follow(8), 3), (lambda roost: roost.delete_tweet(5), 3)],
    ids=["follow", "delete"],
)
def test_client_retries_safe_method(roost: Client, seen: Seen, ask: Callable[[Client], Any], calls: int) -> None:
    seen.unavailable = 2
    ask(roost)
    assert len(seen.requests) == calls


def test_client_never_retries_unsafe_method(roost: Client, seen: Seen) -> None:
    seen.unavailable = 1
    with pytest.raises(ApiError, match="UNAVAILABLE"):
        roost.create_tweet("x")
    assert len(seen.requests) == 1


# gRPC rounds a deadline up when it sends it.
ROUNDING_S = 0.1


def test_client_uses_deadlines_of_contract(roost: Client, seen: Seen) -> None:
    roost.follow(8)
    assert 0 < seen.deadlines[0] <= policy(client._GRAPH["Follow"]).deadline_ms / 1000 + ROUNDING_S


def test_client_home_timeline_waits_for_build(roost: Client, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PARTIAL_PAUSE_S", 0.001)
    seen.partial = 2
    assert [tweet.id for tweet in roost.home_timeline()] == [9, 8]
    seen.partial = 1_000
    with pytest.raises(TimeoutError):
        next(roost.home_timeline())


def test_client_acting_as_shares_connection(roost: Client, seen: Seen) -> None:
    roost.login("alice", "correct horse")
    roost.acting_as("bens").follow(8)
    roost.follow(9)
    assert seen.tokens[1:] == ["Bearer bens", "Bearer first"]


def test_client_without_server_raises_unavailable() -> None:
    with connect("127.0.0.1:1") as nobody, pytest.raises(ApiError) as refusal:
        nobody.get_user(1)
    assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
