"""Which tweet a like or a bookmark is of, and whether this reader may know of it."""

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


class _Target(NamedTuple):
    """The original, and the authors of what stands for it: its own, and a retweet's."""

    id: int
    author_ids: AbstractSet[int]


class TweetResolver:
    """Tweets; a retweet stands for its original. `channel` reaches tweet. UNAVAILABLE where an owner cannot answer."""

    def __init__(self, channel: grpc.aio.Channel, hydrator: Hydrator) -> None:
        # Any: the generated stubs' types know the socket's call class only.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._hydrator = hydrator

    async def known(self, tweet_id: int) -> int:
        """The original's id, also where it is deleted or hidden: it may still be left. NOT_FOUND if it never was."""
        head = await self._head(tweet_id)
        return head.retweet_of_id or head.id

    async def visible(self, reader_id: int, tweet_id: int) -> int:
        """The original's id; NOT_FOUND where it is missing, deleted or hidden from the reader (0: nobody signed in)."""
        target = await self._standing(tweet_id)
        if not await self._may_see(reader_id, target):
            raise _no_such_tweet()
        return target.id

    async def likeable(self, user_id: int, tweet_id: int) -> int:
        """As `visible`, but PERMISSION_DENIED (BLOCKED) where only a block hides it, whoever blocks whom."""
        target = await self._standing(tweet_id)
        if await self._may_see(user_id, target):
            return target.id
        if await self._may_see(0, target):
            raise errors.permission_denied("one of you blocks the other", Reason.BLOCKED)
        raise _no_such_tweet()

    async def _may_see(self, reader_id: int, target: _Target) -> bool:
        return len(await self._hydrator.author_fragments(reader_id, target.author_ids)) == len(target.author_ids)

    async def _standing(self, tweet_id: int) -> _Target:
        head = await self._head(tweet_id)
        author_ids = {head.author_id}
        if head.retweet_of_id and not head.deleted:
            head = await self._head(head.retweet_of_id)
            author_ids.add(head.author_id)
        if head.deleted:
            raise _no_such_tweet()
        return _Target(head.id, author_ids)

    async def _head(self, tweet_id: int) -> tweet_pb2.TweetHead:
        cores = (await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=[tweet_id]))).cores
        if not cores:
            raise _no_such_tweet()
        head: tweet_pb2.TweetHead = cores[0].head
        return head


def _no_such_tweet() -> errors.RoostError:
    return errors.not_found("no such tweet")
