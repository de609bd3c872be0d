"""Which tweet a like or a bookmark is of, and whether this user may do it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import grpc.aio
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.common import errors
from services.common.hydrate import Hydrator


class _Target(NamedTuple):
    """The original, and the authors of what stands for it: its own, and a retweet's."""

    id: int
    author_ids: Collection[int]


class Targets:
    """Tweets that stand; a retweet stands for its original. `channel` reaches tweet and graph."""

    def __init__(self, channel: grpc.aio.Channel, hydrator: Hydrator) -> None:
        # Any: the generated stubs' types know the socket's call class only.
        self._get_cores: Any = TweetServiceStub(channel).BatchGetTweetCores
        self._get_filter: Any = GraphServiceStub(channel).GetVisibilityFilter
        self._hydrator = hydrator

    async def standing(self, tweet_id: int) -> int:
        """The original's id, whoever asks: what is hidden may still be left. NOT_FOUND where it is missing or deleted."""
        return (await self._find(tweet_id)).id

    async def visible(self, reader_id: int, tweet_id: int) -> int:
        """The original's id; NOT_FOUND where it is missing, deleted or hidden from the reader (0: nobody signed in)."""
        target = await self._find(tweet_id)
        if not await self._is_visible(reader_id, target):
            raise _not_found()
        return target.id

    async def likeable(self, user_id: int, tweet_id: int) -> int:
        """As `visible`, but PERMISSION_DENIED where the user and an author block each other, either way."""
        target = await self._find(tweet_id)
        if not await self._is_visible(user_id, target):
            request = graph.GetVisibilityFilterRequest(user_id=user_id, candidate_ids=target.author_ids)
            answer = await self._get_filter(request)
            if not {*answer.blocked_ids, *answer.blocked_by_ids}.isdisjoint(target.author_ids):
                raise errors.permission_denied("one of you blocks the other", "BLOCKED")
            raise _not_found()
        return target.id

    async def _is_visible(self, reader_id: int, target: _Target) -> bool:
        shown = await self._hydrator.author_fragments(reader_id, target.author_ids)
        return all(author_id in shown for author_id in target.author_ids)

    async def _find(self, tweet_id: int) -> _Target:
        head = await self._head(tweet_id)
        if not head.retweet_of_id:
            return _Target(tweet_id, {head.author_id})
        original = await self._head(head.retweet_of_id)
        return _Target(original.id, {head.author_id, original.author_id})

    async def _head(self, tweet_id: int) -> tweet_pb2.TweetHead:
        cores = (await self._get_cores(tweet.BatchGetTweetCoresRequest(ids=[tweet_id]))).cores
        if not cores or cores[0].head.deleted:
            raise _not_found()
        head: tweet_pb2.TweetHead = cores[0].head
        return head


def _not_found() -> errors.RoostError:
    return errors.not_found("no such tweet")
