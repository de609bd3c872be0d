"""Ranks the best matches of a query by text, recency, followed authors and trends together.

An index can sort matches by text score or by time, but not by a sum of both and of boosts. So this module reads the
first MATCHES_PER_LIST matches of several lists (of all matches, and of those that get a boost, each by text score and
by time) and ranks them together. Of a match that is in no list it is known that at least MATCHES_PER_LIST matches have
a better text score, and that as many are newer. Matches in no list come after the ranked ones, newest first.
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

# Maximum number of matches read from each list; an index returns them in a few milliseconds. If a query has fewer
# matches, all of them are ranked. Matches that are only in the lists by time (one of all matches, three of boosted
# ones) get their text scores from one more search, of at most MAX_FOUND ids.
MATCHES_PER_LIST = 300
# Maximum number of followees whose tweets get the boost for followed authors: as many terms as a query of the index may
# have (`MAX_ANY`). If the reader follows more users, only those that graph's StreamFollowingIds returns first count.
MAX_FOLLOWEES = 2_000


class RankedMatches(NamedTuple):
    """The ids of the ranked matches, best first. Matches that were not ranked have ids below `others_below`; it is 0 if
    all matches were ranked."""

    ids: Sequence[int]
    others_below: int


class BestMatches:
    """Reads and ranks the matches of a query. The ranking depends on the reader, because tweets of followed authors get
    a boost. `trending` returns the strengths, from 0 to 1, of trending tweets by tweet id."""

    def __init__(
        self, channel: grpc.aio.Channel, index: SearchIndex, trending: Callable[[], Mapping[int, float]]
    ) -> None:
        self._stream_following: Any = GraphServiceStub(channel).StreamFollowingIds
        self._index = index
        self._trending = trending

    async def ranked(self, query: Query, hashtags: Sequence[str], reader_id: int, as_of_ms: int) -> RankedMatches:
        """Returns the best matches posted until `as_of_ms` (Unix milliseconds), at most 8 × MATCHES_PER_LIST.

        `hashtags` are exact terms; a tweet with one of them gets a boost. `reader_id` is 0 for an anonymous reader.
        Raises UNAVAILABLE if the index cannot answer, AioRpcError if graph does not return the reader's followees.
        """
        below = first_id_at(as_of_ms + 1)
        trending = self._trending()
        newest, hits, followees = await asyncio.gather(
            self._index.newest(Collection.TWEETS, query, below, MATCHES_PER_LIST),
            self._index.best(query, below, MATCHES_PER_LIST, hashtags),
            self._followees(reader_id),
        )
        others_below = 0
        # If the list by time is not full, it has all matches, so no other list is needed.
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
        """Reads the two lists (by time and by text score) of each query in `boosted`, and returns their hits together
        with the hits of `newest` and `best`, the two lists of `query`."""
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
        """Returns the ids of up to MAX_FOLLOWEES users whom the reader follows, none for an anonymous reader. Raises
        AioRpcError if graph does not answer."""
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
    """Returns up to three queries, one for each boost: tweets by followed authors, tweets with one of the hashtags, and
    trending tweets. Each query matches the matches of `query` that get this boost."""
    parts = []
    if followees:
        parts.append(query._replace(any_exact=tuple(map(author_term, followees))))
    if hashtags:
        parts.append(query._replace(any_exact=tuple(hashtags)))
    if trending:
        parts.append(query._replace(ids=tuple(trending)))
    return parts


def _without_cutoff_ties(hits: Sequence[Hit]) -> Sequence[Hit]:
    """`hits` are the matches with the best text scores, at most MATCHES_PER_LIST. Returns all of them if there are
    fewer. If `hits` is full, leaves out the hits with the lowest score in it: more matches may have this score, and
    which of these matches are in `hits` is arbitrary."""
    if len(hits) < MATCHES_PER_LIST:
        return hits
    least = min((hit.score for hit in hits if hit.score is not None), default=0.0)
    return [hit for hit in hits if hit.score is None or hit.score > least]
