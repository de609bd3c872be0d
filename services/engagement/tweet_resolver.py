"""Resolves the tweet that a reaction refers to, and checks whether the reader may see it."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import grpc.aio
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.shared.hydration.hydrator import Hydrator


class _ResolvedTweet(NamedTuple):
    """The id of the original, and the authors who must be visible: the original's and, for a retweet, the retweeter."""

    id: int
    author_ids: AbstractSet[int]


class TweetResolver:
    """Resolves tweet ids to originals. `channel` reaches the tweet service. Methods raise UNAVAILABLE if a service that
    they call cannot answer."""

    def __init__(self, channel: grpc.aio.Channel, hydrator: Hydrator) -> None:
        # Any, because the types of the generated stubs accept only grpc.aio calls, and the in-process channel returns
        # others.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._hydrator = hydrator

    async def known(self, tweet_id: int) -> int:
        """Returns the id of the original, also if the tweet is deleted or hidden, so that a reaction can still be
        undone. Raises NOT_FOUND if the tweet never existed."""
        head = await self._head(tweet_id)
        return head.retweet_of_id or head.id

    async def visible(self, reader_id: int, tweet_id: int) -> int:
        """Returns the id of the original. Raises NOT_FOUND if the tweet is missing, deleted or hidden from the reader
        (0: not signed in)."""
        resolved = await self._live(tweet_id)
        if not await self._may_see(reader_id, resolved):
            raise _no_such_tweet()
        return resolved.id

    async def likeable(self, user_id: int, tweet_id: int) -> int:
        """Returns the id of the original. Raises PERMISSION_DENIED (BLOCKED) if a block between the user and an author
        is all that hides the tweet, else NOT_FOUND as `visible`."""
        resolved = await self._live(tweet_id)
        if await self._may_see(user_id, resolved):
            return resolved.id
        if await self._may_see(0, resolved):
            raise errors.permission_denied(
                "you cannot like this tweet because one of you blocks the other", Reason.BLOCKED
            )
        raise _no_such_tweet()

    async def _may_see(self, reader_id: int, resolved: _ResolvedTweet) -> bool:
        return len(await self._hydrator.author_fragments(reader_id, resolved.author_ids)) == len(resolved.author_ids)

    async def _live(self, tweet_id: int) -> _ResolvedTweet:
        head = await self._head(tweet_id)
        author_ids = {head.author_id}
        if head.retweet_of_id and not head.deleted:
            head = await self._head(head.retweet_of_id)
            author_ids.add(head.author_id)
        if head.deleted:
            raise _no_such_tweet()
        return _ResolvedTweet(head.id, author_ids)

    async def _head(self, tweet_id: int) -> tweet_pb2.TweetHead:
        cores = (await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=[tweet_id]))).cores
        if not cores:
            raise _no_such_tweet()
        head: tweet_pb2.TweetHead = cores[0].head
        return head


def _no_such_tweet() -> errors.RoostError:
    return errors.not_found("no such tweet")
