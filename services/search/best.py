"""Ranks the best matches of a query by text, recency, followed authors and trends together.

An index sorts matches by text score or by time, but not by a sum of both and further parts. So this module reads the
first MATCHES_PER_LIST matches of several lists and ranks the matches of all lists together. If a match is in none of
the lists, at least MATCHES_PER_LIST matches have a better text score and at least as many are newer. Such matches
follow after the ranked ones, newest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Collection as AbstractCollection
from typing import Any, NamedTuple

import grpc
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub

from services.platform.ids.snowflake import first_id_at
from services.search.query import author_term
from services.search.ranking import rank
from services.search.store import MAX_FOUND, Collection, Hit, Query, SearchIndex

# Matches read from each list. A query with fewer matches is ranked completely. An index lists this many in a few
# milliseconds. The ids that only the time lists contain (at most three further lists) must fit into one search of
# MAX_FOUND ids.
MATCHES_PER_LIST = 300
# Maximum of followed authors whose tweets get the boost of followed authors: as many as one query of the index may name
# (`MAX_ANY`). If a reader follows more users, those that graph's StreamFollowingIds returns first get the boost, and
# tweets of the others are ranked without the boost.
MAX_FOLLOWEES = 2_000


class RankedMatches(NamedTuple):
    """Tweet ids, best first, and the id below which there are more matches; 0 if there are none."""

    ids: Sequence[int]
    others_below: int


class BestMatches:
    """Ranks the tweets that match a query for one reader. `trending` returns the strength of each trending tweet by id,
    from 0 to 1. `channel` reaches the graph service.
    """

    def __init__(
        self, channel: grpc.aio.Channel, index: SearchIndex, trending: Callable[[], Mapping[int, float]]
    ) -> None:
        self._stream_following: Any = GraphServiceStub(channel).StreamFollowingIds
        self._index = index
        self._trending = trending

    async def ranked(self, query: Query, hashtags: Sequence[str], reader_id: int, as_of_ms: int) -> RankedMatches:
        """Returns the best matches posted until `as_of_ms` (Unix milliseconds), at most 8 × MATCHES_PER_LIST.

        `hashtags` are index terms; a tweet that has one gets a boost. `reader_id` is 0 for an anonymous reader.
        Raises UNAVAILABLE if the index cannot answer, and grpc.aio.AioRpcError, with the status code of the call, if
        the call of graph for the reader's followees fails.
        """
        below = first_id_at(as_of_ms + 1)
        trending = self._trending()
        newest, hits, followees = await asyncio.gather(
            self._index.newest(Collection.TWEETS, query, below, MATCHES_PER_LIST),
            self._index.best(query, below, MATCHES_PER_LIST, hashtags),
            self._followees(reader_id),
        )
        others_below = 0
        # If the list of newest matches is not full, it holds all matches, so no further list is read.
        if len(newest) >= MATCHES_PER_LIST:
            others_below = newest[-1]
            boosted = _boosted_parts(query, followees, hashtags, trending)
            hits = await self._merge_lists(query, boosted, newest, hits, below, hashtags)
        best = rank(hits, followees, trending, as_of_ms)
        return RankedMatches([tweet_id for _, tweet_id in best], others_below)

    async def _merge_lists(
        self,
        query: Query,
        boosted: Sequence[Query],
        newest: Sequence[int],
        best: Sequence[Hit],
        below: int,
        hashtags: Sequence[str],
    ) -> list[Hit]:
        """Returns the hits of all lists: `newest` and `best` of the whole query, and the same two lists of each
        boosted part of it.
        """
        more_newest, more_best = await asyncio.gather(
            asyncio.gather(*(self._index.newest(Collection.TWEETS, part, below, MATCHES_PER_LIST) for part in boosted)),
            asyncio.gather(*(self._index.best(part, below, MATCHES_PER_LIST, hashtags) for part in boosted)),
        )
        hits = {hit.id: hit for found in (best, *more_best) for hit in _without_cutoff_ties(found)}
        listed = dict.fromkeys(key for ids in (newest, *more_newest) for key in ids)
        if missing := [key for key in listed if key not in hits][:MAX_FOUND]:
            found = await self._index.best(query._replace(ids=tuple(missing)), below, len(missing), hashtags)
            hits |= {hit.id: hit for hit in found}
        return list(hits.values())

    async def _followees(self, reader_id: int) -> frozenset[int]:
        """Returns the ids of up to MAX_FOLLOWEES users whom the reader follows; none for an anonymous reader.

        Raises grpc.aio.AioRpcError if the call of graph fails.
        """
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


def _boosted_parts(
    query: Query, followees: AbstractCollection[int], hashtags: Sequence[str], trending: AbstractCollection[int]
) -> list[Query]:
    """Returns up to three narrower queries: the matches of `query` by followed authors, those with one of the hashtags,
    and those that are trending. Leaves out a query if there are no followees, hashtags or trending tweets for it.
    """
    parts = []
    if followees:
        parts.append(query._replace(any_exact=tuple(map(author_term, followees))))
    if hashtags:
        parts.append(query._replace(any_exact=tuple(hashtags)))
    if trending:
        parts.append(query._replace(ids=tuple(trending)))
    return parts


def _without_cutoff_ties(hits: Sequence[Hit]) -> Sequence[Hit]:
    """Returns the hits of a list. If the list is full (MATCHES_PER_LIST hits), drops the hits with the lowest score.

    The index cuts a full list somewhere among the matches with its lowest score. Which of these matches are in the list
    is arbitrary, so none of them is used.
    """
    if len(hits) < MATCHES_PER_LIST:
        return hits
    least = min((hit.score for hit in hits if hit.score is not None), default=0.0)
    return [hit for hit in hits if hit.score is None or hit.score > least]
