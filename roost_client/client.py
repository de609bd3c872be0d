"""The synchronous client: one method for each RPC that programs commonly need."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from roost.graph.v1 import graph_service_pb2 as graph
from roost.identity.v1 import auth_service_pb2 as auth
from roost.identity.v1 import user_pb2, user_service_pb2
from roost.timeline.v1 import timeline_service_pb2 as timeline
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweets

from roost_client.transport import Transport, service_config

PAGE_SIZE = 100
# Maximum number of reads of a home timeline that is still being built, and the number of seconds between two reads.
# After the last one, TimeoutError is raised.
PARTIAL_TRIES = 50
PARTIAL_PAUSE_S = 0.1

_FILES = (auth.DESCRIPTOR, user_service_pb2.DESCRIPTOR, graph.DESCRIPTOR, tweets.DESCRIPTOR, timeline.DESCRIPTOR)
_AUTH = auth.DESCRIPTOR.services_by_name["AuthService"].methods_by_name
_USER = user_service_pb2.DESCRIPTOR.services_by_name["UserService"].methods_by_name
_GRAPH = graph.DESCRIPTOR.services_by_name["GraphService"].methods_by_name
_TWEET = tweets.DESCRIPTOR.services_by_name["TweetService"].methods_by_name
_TIMELINE = timeline.DESCRIPTOR.services_by_name["TimelineService"].methods_by_name

T = TypeVar("T")


class _Page(Protocol):
    next_cursor: str


P = TypeVar("P", bound=_Page)


def connect(target: str, *, token: str = "", channel: grpc.Channel | None = None) -> Client:
    """Returns a client of the mesh at the address `target` (HOST:PORT). It connects at the first call.

    `token` is an access token; with "", calls are anonymous until `login`. `channel` replaces the default channel,
    which uses no TLS.
    """
    if channel is None:
        channel = grpc.insecure_channel(target, options=[("grpc.service_config", service_config(_FILES))])
    return Client(Transport(channel, token))


class Client:
    """Calls the mesh as one user, or anonymously before `login`. Every method raises ApiError if the call fails.

    Threads must not use a client while another thread calls `sign_up`, `login` or `refresh`, which change its tokens.
    `acting_as` creates clients for other threads over the same connection.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        # Set by `sign_up` and `login`. When the access token has expired, `refresh` exchanges it for new tokens.
        self.refresh_token = ""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. The clients that `acting_as` returned share it, so they can make no more calls."""
        self._transport.channel.close()

    def acting_as(self, token: str) -> Client:
        """Returns another client that uses the access token `token`, over the same connection."""
        return Client(Transport(self._transport.channel, token))

    def sign_up(self, username: str, email: str, password: str, *, display_name: str = "") -> user_pb2.User:
        """Creates an account and returns its user. Later calls of this client are made as this user."""
        request = auth.SignUpRequest(
            username=username, email=email, password=password, profile=user_pb2.Profile(display_name=display_name)
        )
        answer = self._transport.call(_AUTH["SignUp"], request, auth.SignUpResponse)
        self._set_tokens(answer.access_token, answer.refresh_token)
        return answer.user

    def login(self, account: str, password: str, *, reactivate: bool = False) -> user_pb2.User:
        """Logs in and returns the user. Later calls of this client are made as this user. `account` is a username or an
        e-mail address.

        If `reactivate` is true, an account that its owner deactivated becomes active again, unless it is purged
        already.
        """
        # Usernames never contain an @.
        username, email = ("", account) if "@" in account else (account, "")
        request = auth.LoginRequest(username=username, email=email, password=password, reactivate=reactivate)
        answer = self._transport.call(_AUTH["Login"], request, auth.LoginResponse)
        self._set_tokens(answer.access_token, answer.refresh_token)
        return answer.user

    def refresh(self) -> None:
        """Exchanges the refresh token for a new access token and a new refresh token. The old refresh token becomes
        invalid."""
        request = auth.RefreshTokenRequest(refresh_token=self.refresh_token)
        answer = self._transport.call(_AUTH["RefreshToken"], request, auth.RefreshTokenResponse)
        self._set_tokens(answer.access_token, answer.refresh_token)

    def get_user(self, user_id: int) -> user_pb2.User:
        """Returns the user with this id."""
        request = user_service_pb2.GetUserRequest(user_id=user_id)
        return self._transport.call(_USER["GetUser"], request, user_service_pb2.GetUserResponse).user

    def get_user_by_username(self, username: str) -> user_pb2.User:
        """Returns the user with this username. Upper and lower case are equal."""
        request = user_service_pb2.GetUserByUsernameRequest(username=username)
        method = _USER["GetUserByUsername"]
        return self._transport.call(method, request, user_service_pb2.GetUserByUsernameResponse).user

    # The methods from `follow` to `unmute` are idempotent. They return the relationship of the caller to the user after
    # the change.

    def follow(self, user_id: int) -> graph.Relationship:
        """Follows a user."""
        return self._relate("Follow", graph.FollowRequest(user_id=user_id), graph.FollowResponse)

    def unfollow(self, user_id: int) -> graph.Relationship:
        """Unfollows a user."""
        return self._relate("Unfollow", graph.UnfollowRequest(user_id=user_id), graph.UnfollowResponse)

    def block(self, user_id: int) -> graph.Relationship:
        """Blocks a user: hides both users from each other, and removes their follows."""
        return self._relate("Block", graph.BlockRequest(user_id=user_id), graph.BlockResponse)

    def unblock(self, user_id: int) -> graph.Relationship:
        """Removes a block. The follows that the block removed are not restored."""
        return self._relate("Unblock", graph.UnblockRequest(user_id=user_id), graph.UnblockResponse)

    def mute(self, user_id: int) -> graph.Relationship:
        """Mutes a user: hides the user's tweets in the caller's home timeline. The user is not notified."""
        return self._relate("Mute", graph.MuteRequest(user_id=user_id), graph.MuteResponse)

    def unmute(self, user_id: int) -> graph.Relationship:
        """Removes a mute."""
        return self._relate("Unmute", graph.UnmuteRequest(user_id=user_id), graph.UnmuteResponse)

    def followers(self, user_id: int) -> Iterator[user_pb2.User]:
        """Yields the followers of the user, newest follow first."""
        method = _GRAPH["ListFollowers"]
        return _pages(
            lambda cursor: self._transport.call(
                method,
                graph.ListFollowersRequest(user_id=user_id, page_size=PAGE_SIZE, cursor=cursor),
                graph.ListFollowersResponse,
            ),
            lambda page: page.users,
        )

    def following(self, user_id: int) -> Iterator[user_pb2.User]:
        """Yields the users that the user follows, newest follow first."""
        method = _GRAPH["ListFollowing"]
        return _pages(
            lambda cursor: self._transport.call(
                method,
                graph.ListFollowingRequest(user_id=user_id, page_size=PAGE_SIZE, cursor=cursor),
                graph.ListFollowingResponse,
            ),
            lambda page: page.users,
        )

    def create_tweet(self, text: str, *, idempotency_key: str = "") -> tweet_pb2.Tweet:
        """Posts a tweet and returns it. A call with the idempotency key of an earlier call within 24 hours returns the
        tweet of the earlier call. Without a key, each call posts a new tweet."""
        request = tweets.CreateTweetRequest(text=text, idempotency_key=idempotency_key or str(uuid.uuid4()))
        return self._transport.call(_TWEET["CreateTweet"], request, tweets.CreateTweetResponse).tweet

    def get_tweet(self, tweet_id: int) -> tweet_pb2.Tweet:
        """Returns the tweet with this id."""
        request = tweets.GetTweetRequest(tweet_id=tweet_id)
        return self._transport.call(_TWEET["GetTweet"], request, tweets.GetTweetResponse).tweet

    def delete_tweet(self, tweet_id: int) -> None:
        """Deletes a tweet of the caller. Does nothing if the tweet is deleted already."""
        self._transport.call(
            _TWEET["DeleteTweet"], tweets.DeleteTweetRequest(tweet_id=tweet_id), tweets.DeleteTweetResponse
        )

    def user_tweets(self, user_id: int) -> Iterator[tweet_pb2.Tweet]:
        """Yields the tweets, retweets and replies of one user, newest first."""
        method = _TWEET["ListUserTweets"]
        return _pages(
            lambda cursor: self._transport.call(
                method,
                tweets.ListUserTweetsRequest(user_id=user_id, page_size=PAGE_SIZE, cursor=cursor),
                tweets.ListUserTweetsResponse,
            ),
            lambda page: page.tweets,
        )

    def home_timeline(self, page_size: int = PAGE_SIZE) -> Iterator[tweet_pb2.Tweet]:
        """Yields the tweets of the caller's home timeline, newest first. If the mesh is still building the home
        timeline, waits. Raises TimeoutError if it is not built after PARTIAL_TRIES reads."""
        return _pages(lambda cursor: self._home_page(cursor, page_size), lambda page: page.tweets)

    def _home_page(self, cursor: str, page_size: int) -> timeline.ListHomeTimelineResponse:
        for _ in range(PARTIAL_TRIES):
            request = timeline.ListHomeTimelineRequest(cursor=cursor, page_size=page_size)
            page = self._transport.call(_TIMELINE["ListHomeTimeline"], request, timeline.ListHomeTimelineResponse)
            if not page.partial:
                return page
            cursor = page.next_cursor
            time.sleep(PARTIAL_PAUSE_S)
        raise TimeoutError("the home timeline is still being built")

    def _relate(self, name: str, request: _Relating, response: type[R]) -> graph.Relationship:
        method: MethodDescriptor = _GRAPH[name]
        return self._transport.call(method, request, response).relationship

    def _set_tokens(self, access_token: str, refresh_token: str) -> None:
        self._transport.token = access_token
        self.refresh_token = refresh_token


_Relating = (
    graph.FollowRequest
    | graph.UnfollowRequest
    | graph.BlockRequest
    | graph.UnblockRequest
    | graph.MuteRequest
    | graph.UnmuteRequest
)
R = TypeVar(
    "R",
    graph.FollowResponse,
    graph.UnfollowResponse,
    graph.BlockResponse,
    graph.UnblockResponse,
    graph.MuteResponse,
    graph.UnmuteResponse,
)


def _pages(ask: Callable[[str], P], items: Callable[[P], Iterable[T]]) -> Iterator[T]:
    """Yields the items of all pages. `ask` returns the page at a cursor, `items` the items of a page. Requests a page
    when the items of the previous one are used up."""
    cursor = ""
    while True:
        page = ask(cursor)
        yield from items(page)
        cursor = page.next_cursor
        if not cursor:
            return
