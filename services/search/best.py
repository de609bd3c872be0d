"""The best matches: found by each thing that lifts a tweet, and ranked by all of them together.

An index can list matches by text or by time, not by the sum of both and of what the reader's people and the trends add. So the first of
each list are taken, and ranked. A match in none of them fits worse than RANKED_FROM others, is older than RANKED_FROM others, and, up
to the same bounds, has no boost: it comes behind them, newest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as AnyOf
from typing import Any, NamedTuple

import grpc
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub

from services.platform.ids.snowflake import first_id_at
from services.search.query import author_term
from services.search.ranking import rank
from services.search.store import MAX_FOUND, Collection, Hit, Query, SearchIndex

# Of each list. If no more match, all are ranked; and the index lists so many in some milliseconds. Three times as many, what is listed
# by time alone, must be below what one search may hold.
RANKED_FROM = 300
# Followees of the reader who lift a tweet, as graph lists them. Tweets of others whom the reader follows are found as strangers' are.
MAX_FOLLOWEES = 2_000


class Ranked(NamedTuple):
    """The best matches in order, and the id below which there are others; 0 where there are none."""

    ids: Sequence[int]
    others_below: int


class BestMatches:
    """Ranks matches for readers. `trending` gives tweets a strength from 0 to 1. Raises AioRpcError where graph cannot answer."""

    def __init__(
        self, channel: grpc.aio.Channel, index: SearchIndex, trending: Callable[[], Mapping[int, float]]
    ) -> None:
        self._stream_following: Any = GraphServiceStub(channel).StreamFollowingIds
        self._index = index
        self._trending = trending

    async def ranked(self, query: Query, hashtags: Sequence[str], reader_id: int, as_of_ms: int) -> Ranked:
        """The best of what was posted up to `as_of_ms`, at most 8 × RANKED_FROM. `hashtags` are index terms that lift a tweet."""
        below = first_id_at(as_of_ms + 1)
        trending = self._trending()
        newest, hits, followees = await asyncio.gather(
            self._index.newest(Collection.TWEETS, query, below, RANKED_FROM),
            self._index.best(query, below, RANKED_FROM, hashtags),
            self._followees(reader_id),
        )
        others_below = 0
        # Else these are all matches.
        if len(newest) >= RANKED_FROM:
            others_below = newest[-1]
            narrowed = _narrowed(query, followees, hashtags, trending)
            hits = await self._of_many(query, narrowed, newest, hits, below, hashtags)
        best = rank(hits, followees, trending, as_of_ms)
        return Ranked([tweet_id for _, tweet_id in best], others_below)

    async def _of_many(
        self,
        query: Query,
        narrowed: Sequence[Query],
        newest: Sequence[int],
        best: Sequence[Hit],
        below: int,
        hashtags: Sequence[str],
    ) -> list[Hit]:
        """The hits of all lists: of the query's own, `newest` and `best`, and of those of its parts that are lifted."""
        more_newest, more_best = await asyncio.gather(
            asyncio.gather(*(self._index.newest(Collection.TWEETS, part, below, RANKED_FROM) for part in narrowed)),
            asyncio.gather(*(self._index.best(part, below, RANKED_FROM, hashtags) for part in narrowed)),
        )
        hits = {hit.id: hit for found in (best, *more_best) for hit in _fit_better(found)}
        listed = dict.fromkeys(key for ids in (newest, *more_newest) for key in ids)
        if missing := [key for key in listed if key not in hits][:MAX_FOUND]:
            found = await self._index.best(query._replace(ids=tuple(missing)), below, len(missing), hashtags)
            hits |= {hit.id: hit for hit in found}
        return list(hits.values())

    async def _followees(self, reader_id: int) -> frozenset[int]:
        if not reader_id:
            return frozenset()
        found: list[int] = []
        call = self._stream_following(graph.StreamFollowingIdsRequest(user_id=reader_id))
        async for message in call:
            found += (followee.user_id for followee in message.followees)
            if len(found) >= MAX_FOLLOWEES:
                call.cancel()
                break
        return frozenset(found[:MAX_FOLLOWEES])


def _narrowed(query: Query, followees: AnyOf[int], hashtags: Sequence[str], trending: AnyOf[int]) -> list[Query]:
    """The query's parts that are lifted: of the people followed, with the hashtags, trending."""
    parts = []
    if followees:
        parts.append(query._replace(any_exact=tuple(map(author_term, followees))))
    if hashtags:
        parts.append(query._replace(any_exact=tuple(hashtags)))
    if trending:
        parts.append(query._replace(ids=tuple(trending)))
    return parts


def _fit_better(hits: Sequence[Hit]) -> Sequence[Hit]:
    """The hits of a list; of a full one without those that fit worst: others that fit as well were cut off, whichever they were."""
    if len(hits) < RANKED_FROM:
        return hits
    least = min((hit.score for hit in hits if hit.score is not None), default=0.0)
    return [hit for hit in hits if hit.score is None or hit.score > least]
