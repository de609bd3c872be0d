"""Finding tweets: a question, and pages of those that the reader may see."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub

from services.common.cursor import Cursors
from services.common.snowflake import first_id_at
from services.hydration.hydrate import Hydrator, Joined
from services.search.people import PeopleSearch
from services.search.query import Asked, author_term, hashtag_term
from services.search.ranking import rank
from services.search.store import Collection, Query, SearchIndex

# A page looks at some 1,200 ids at most before it answers short: many hidden tweets in a row must not hold up a call.
MAX_ROUNDS = 5
ROUND_IDS = 300
# How far pages in the order of the best reach.
MAX_BEST = 400

Page = tuple[list[bytes], str]
_NOTHING: Page = ([], "")


class TweetSearch:
    """Finds tweets. `trending` gives tweets a strength from 0 to 1, `clock` unix seconds.

    Raises AioRpcError where an owner cannot answer: nothing is shown unchecked.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        index: SearchIndex,
        people: PeopleSearch,
        hydrator: Hydrator,
        cursors: Cursors,
        trending: Callable[[], Mapping[int, float]],
        clock: Callable[[], float],
    ) -> None:
        self._get_filter: Any = GraphServiceStub(channel).GetVisibilityFilter
        self._index = index
        self._people = people
        self._hydrator = hydrator
        self._cursors = cursors
        self._trending = trending
        self._clock = clock

    async def latest(self, asked: Asked, cursor: str, size: int, reader_id: int) -> Page:
        """A page of matches, newest first, and the cursor behind it."""
        name = f"search_latest/{_digest(asked)}"
        before_id = int(self._cursors.open(cursor, name, 0)[0]) if cursor else 0
        query = await self._resolved(asked)
        if query is None:
            return _NOTHING
        found: list[Joined] = []
        # One more than the page holds tells whether there is a next page.
        wanted = take = size + 1
        for _ in range(MAX_ROUNDS):
            ids = await self._index.newest(Collection.TWEETS, query, before_id, take)
            found += await self._hydrator.visible(reader_id, ids, limit=wanted - len(found))
            if len(found) == wanted:
                before_id = found[size - 1].id
                break
            if len(ids) < take:
                before_id = 0
                break
            before_id, take = ids[-1], ROUND_IDS
        next_cursor = self._cursors.seal(name, 0, before_id) if before_id else ""
        return [tweet.data for tweet in found[:size]], next_cursor

    async def top(self, asked: Asked, cursor: str, size: int, reader_id: int) -> Page:
        """A page of the MAX_BEST best matches, best first, and the cursor behind it.

        The cursor holds the moment of the first page: what was posted later stays out, and ages do not change from page to page.
        """
        name = f"search_top/{_digest(asked)}"
        start, as_of_ms = 0, int(self._clock() * 1000)
        if cursor:
            start, as_of_ms = (int(value) for value in self._cursors.open(cursor, name, reader_id))
        query = await self._resolved(asked)
        if query is None:
            return _NOTHING
        preferred = [hashtag_term(phrase[0]) for phrase in asked.phrases if len(phrase) == 1]
        hits = await self._index.best(query, first_id_at(as_of_ms + 1), MAX_BEST, preferred)
        followed = await self._followed(reader_id, {hit.author_id for hit in hits})
        ranked = [tweet_id for _, tweet_id in rank(hits, followed, self._trending(), as_of_ms)]

        def seal(place: int) -> str:
            return self._cursors.seal(name, reader_id, place, as_of_ms)

        return await self.in_order(ranked, start, size, reader_id, seal)

    async def in_order(
        self, ids: Sequence[int], start: int, size: int, reader_id: int, seal: Callable[[int], str]
    ) -> Page:
        """A page of the ids from the place `start` on, as the reader may see them; `seal` makes a cursor of a place."""
        found = await self._hydrator.visible(reader_id, ids[start:], limit=size + 1)
        if len(found) <= size:
            return [tweet.data for tweet in found], ""
        return [tweet.data for tweet in found[:size]], seal(ids.index(found[size - 1].id, start) + 1)

    async def _resolved(self, asked: Asked) -> Query | None:
        """The question as terms of the index; None where nothing can match."""
        authors = [await self._people.user_id(name) for name in asked.authors]
        if not asked or 0 in authors:
            return None
        return Query((*asked.exact, *map(author_term, authors)), asked.phrases)

    async def _followed(self, reader_id: int, authors: set[int]) -> set[int]:
        if not reader_id or not authors:
            return set()
        request = graph.GetVisibilityFilterRequest(user_id=reader_id, candidate_ids=authors, want_following=True)
        return set((await self._get_filter(request)).following_ids)


def _digest(asked: Asked) -> str:
    """Names the question in its cursors: those of another question are refused."""
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:32]
