"""Loads users, follows and tweets into a mesh through its RPCs. `roost load` and the demo use it.

Loading the same data again adds nothing: users are recognised by their usernames, a follow is idempotent, and a tweet
with a known idempotency key is not posted again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.identity.v1 import user_pb2, user_service_pb2, user_service_pb2_grpc
from roost.timeline.v1 import timeline_service_pb2, timeline_service_pb2_grpc
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli.connection import Metadata
from roost_cli.exit_codes import FAULTS, CommandError, call_error
from roost_cli.load.impersonation import Actors
from roost_cli.progress import Progress
from roost_cli.rate_control import batches, deadline_s, for_each, with_retries
from roost_cli.scans import scan_users
from services.platform.rpc import errors

Q = TypeVar("Q")
R = TypeVar("R")

# Number of users per ImportUsers call: a quarter of the maximum, because a call with the maximum exceeded its deadline
# on a machine that also ran Cassandra.
IMPORT_BATCH = 250
# Default for the maximum number of concurrent calls. It is enough to keep one server process busy.
CONCURRENCY = 64
# Maximum number of home timelines that are read concurrently. Reading a cold home timeline builds it, which takes
# longer if more are built at the same time; with this number, every build meets its deadline.
WARM_CONCURRENCY = 16
# Maximum number of reads of a home timeline that is still being built, and the number of seconds between two reads.
PARTIAL_TRIES = 100
PARTIAL_PAUSE_S = 0.1

IMPORT_USERS = "/roost.identity.v1.UserService/ImportUsers"
FOLLOW = "/roost.graph.v1.GraphService/Follow"
LIST_HOME = "/roost.timeline.v1.TimelineService/ListHomeTimeline"
CREATE_TWEET = "/roost.tweet.v1.TweetService/CreateTweet"


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to import. The account has no password, so a log-in to it is not possible."""

    username: str
    display_name: str
    bio: str = ""


@dataclass(frozen=True, slots=True)
class Post:
    """A tweet to post. `key` is the idempotency key. `source` names the origin of the tweet in reports, such as `line
    7`."""

    author_id: int
    text: str
    key: str
    source: str


@dataclass(slots=True)
class PostOutcome:
    """The outcome of posting tweets: how many were created, how many existed already, and the sources (such as `line
    7`) of those that the mesh refused, by reason."""

    created: int = 0
    existing: int = 0
    refused: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operator:
    """A channel for calls as the operator, and the call metadata with the operator token (empty for an in-process
    channel)."""

    channel: grpc.aio.Channel
    metadata: Metadata


class Loader:
    """Creates users, follows and tweets with at most `concurrency` concurrent calls. `channels` lead to the same mesh;
    `actors` lets the loader make calls as the users."""

    def __init__(
        self,
        channels: Sequence[grpc.aio.Channel],
        operator: Operator,
        actors: Actors,
        progress: Progress,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self._channels = channels
        self._operator = operator
        self._actors = actors
        self._progress = progress
        self._concurrency = concurrency

    async def import_users(self, people: Sequence[NewUser]) -> dict[str, int]:
        """Creates the users that do not exist yet, and admits all of them to `actors`, so that calls can be made as
        them. Returns the user ids by username.

        Raises CommandError if a call fails, or if one of the users is suspended or deactivated.
        """
        ids = await self._known(people)
        missing = [person for person in people if person.username not in ids]
        stub = user_service_pb2_grpc.UserServiceStub(self._operator.channel)
        with self._progress.phase("people", len(missing)) as phase:
            for batch in batches(missing, IMPORT_BATCH):
                request = user_service_pb2.ImportUsersRequest(users=[_imported(person) for person in batch])
                doing = f"importing people from {batch[0].username} on"
                answer = await _call_or_raise(
                    stub.ImportUsers, request, self._operator.metadata, deadline_s(IMPORT_USERS), doing
                )
                ids.update(zip((person.username for person in batch), answer.user_ids, strict=True))
                phase.advance(len(batch))
        await self._actors.admit(ids.values())
        barred = [name for name, user_id in ids.items() if user_id not in self._actors]
        if barred:
            listed = f"{barred[0]} among them"
            raise CommandError(
                f"{len(barred)} of these users are suspended or deactivated in the mesh, {listed}", FAULTS
            )
        return ids

    async def follow(self, follows: Sequence[tuple[int, int]]) -> int:
        """Creates a follow for each (follower id, followee id) in `follows`. Returns how many the mesh refused because
        one of the two users blocks the other.

        Raises CommandError if a call fails for another reason.
        """
        stubs = [graph_service_pb2_grpc.GraphServiceStub(channel) for channel in self._channels]
        timeout = deadline_s(FOLLOW)
        barred = 0

        async def one(edge: tuple[int, int]) -> None:
            nonlocal barred
            follower, followee = edge
            call = stubs[follower % len(stubs)].Follow
            request = graph_service_pb2.FollowRequest(user_id=followee)
            metadata = await self._actors.act_as(follower)
            try:
                await with_retries(lambda: call(request, metadata=metadata, timeout=timeout))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.PERMISSION_DENIED:
                    raise call_error(error, "following") from error
                barred += 1

        with self._progress.phase("follows", len(follows)) as phase:
            await for_each(follows, one, concurrency=self._concurrency, done=phase.advance)
        return barred

    async def settle(self, seconds: float) -> None:
        """Waits `seconds` seconds. If this is at least the margin, the home timelines that are built afterwards have no
        late followees. The tweets of a late followee would be pulled at every read."""
        self._progress.say(f"waiting {seconds:g} s: homes are built once the follows are older than the clock margin")
        await asyncio.sleep(seconds)

    async def warm(self, user_ids: Sequence[int]) -> int:
        """Makes the home timelines of the users warm: reads the first page of each, up to PARTIAL_TRIES times, until
        the mesh has built the home timeline.

        Returns how many are built. Raises CommandError if a call fails.
        """
        stubs = [timeline_service_pb2_grpc.TimelineServiceStub(channel) for channel in self._channels]
        timeout = deadline_s(LIST_HOME)
        whole = 0

        async def one(user_id: int) -> None:
            nonlocal whole
            request = timeline_service_pb2.ListHomeTimelineRequest()
            for _ in range(PARTIAL_TRIES):
                call = stubs[user_id % len(stubs)].ListHomeTimeline
                answer = await _call_or_raise(
                    call, request, await self._actors.act_as(user_id), timeout, "reading a home"
                )
                if not answer.partial:
                    break
                await asyncio.sleep(PARTIAL_PAUSE_S)
            whole += not answer.partial

        with self._progress.phase("homes read", len(user_ids)) as phase:
            await for_each(user_ids, one, concurrency=min(WARM_CONCURRENCY, self._concurrency), done=phase.advance)
        return whole

    async def post(self, posts: Sequence[Post], began_at: float) -> PostOutcome:
        """Posts the tweets and returns how many were created, existed already, or were refused with INVALID_ARGUMENT.

        A tweet that was created before `began_at` (Unix seconds) counts as existing. Raises CommandError if a call
        fails with another status.
        """
        stubs = [tweet_service_pb2_grpc.TweetServiceStub(channel) for channel in self._channels]
        timeout = deadline_s(CREATE_TWEET)
        posted = PostOutcome()

        async def one(post: Post) -> None:
            request = tweet_service_pb2.CreateTweetRequest(text=post.text, idempotency_key=post.key)
            metadata = await self._actors.act_as(post.author_id)
            call = stubs[post.author_id % len(stubs)].CreateTweet
            try:
                answer = await with_retries(lambda: call(request, metadata=metadata, timeout=timeout))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise call_error(error, f"posting {post.source}") from error
                posted.refused.setdefault(_reason(error), []).append(post.source)
                return
            if answer.tweet.created_at.ToMilliseconds() < int(began_at * 1000):
                posted.existing += 1
            else:
                posted.created += 1

        with self._progress.phase("tweets", len(posts)) as phase:
            await for_each(posts, one, concurrency=self._concurrency, done=phase.advance)
        return posted

    async def _known(self, people: Sequence[NewUser]) -> dict[str, int]:
        wanted = {person.username.lower(): person.username for person in people}
        found: dict[str, int] = {}
        async for user in scan_users(self._operator.channel, self._operator.metadata):
            username = wanted.get(user.user.username.lower())
            if username is not None:
                found[username] = user.user.id
        return found


async def _call_or_raise(
    call: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, metadata: Metadata, timeout_s: float, doing: str
) -> R:
    try:
        return await with_retries(lambda: call(request, metadata=metadata, timeout=timeout_s))
    except grpc.aio.AioRpcError as error:
        raise call_error(error, doing) from error


def _imported(person: NewUser) -> user_service_pb2.ImportedUser:
    return user_service_pb2.ImportedUser(
        username=person.username,
        # The top-level domain `.invalid` is reserved, so no mail can be delivered to the address.
        email=f"{person.username.lower()}@people.invalid",
        profile=user_pb2.Profile(display_name=person.display_name, bio=person.bio),
    )


def _reason(error: grpc.aio.AioRpcError) -> str:
    found = errors.from_rpc(error)
    return "; ".join(violation.message for violation in found.violations) or found.message
