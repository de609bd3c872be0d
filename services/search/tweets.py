"""Finding tweets: a question, and pages of those that the reader may see."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Sequence

from services.platform.pagination.cursors import Cursors
from services.search.best import BestMatches
from services.search.people import PeopleSearch
from services.search.query import ParsedQuery, author_term, hashtag_term
from services.search.store import Collection, Query, SearchIndex
from services.shared.hydration.hydrator import HydratedTweet, Hydrator

# A page looks at some 1,200 ids at most before it answers short: many hidden tweets in a row must not hold up a call.
MAX_ROUNDS = 5
ROUND_IDS = 300
# In a cursor of the best: the pages have come to the others, behind those that are ranked.
BEHIND_RANKED = -1

Page = tuple[list[bytes], str]
_NOTHING: Page = ([], "")


class TweetSearch:
    """Finds tweets. `clock` gives unix seconds.

    Raises AioRpcError where an owner cannot answer: nothing is shown unchecked.
    """

    def __init__(
        self,
        index: SearchIndex,
        best: BestMatches,
        people: PeopleSearch,
        hydrator: Hydrator,
        cursors: Cursors,
        clock: Callable[[], float],
    ) -> None:
        self._index = index
        self._people = people
        self._hydrator = hydrator
        self._cursors = cursors
        self._best = best
        self._clock = clock

    async def latest(self, asked: ParsedQuery, cursor: str, size: int, reader_id: int) -> Page:
        """A page of matches, newest first, and the cursor behind it."""
        name = f"search_latest/{_digest(asked)}"
        before_id = int(self._cursors.open(cursor, name, 0)[0]) if cursor else 0
        query = await self._resolved(asked)
        if query is None:
            return _NOTHING
        found: list[HydratedTweet] = []
        # One more than the page holds tells whether there is a next page.
        before_id = await self._newest(query, before_id, size + 1, reader_id, found)
        if len(found) > size:
            before_id = found[size - 1].id
        next_cursor = self._cursors.seal(name, 0, before_id) if before_id else ""
        return [tweet.data for tweet in found[:size]], next_cursor

    async def top(self, asked: ParsedQuery, cursor: str, size: int, reader_id: int) -> Page:
        """A page of matches, the best first, and the cursor behind it. Pages reach every match: behind those that are ranked come the
        others, newest first.

        The cursor holds the moment of the first page: what was posted later stays out, and ages do not change from page to page. Each
        page ranks anew; it goes on behind the tweet that was last, and what was ranked otherwise meanwhile may come twice or not.
        """
        name = f"search_best/{_digest(asked)}"
        start, last_id, as_of_ms = 0, 0, int(self._clock() * 1000)
        if cursor:
            start, last_id, as_of_ms = (int(value) for value in self._cursors.open(cursor, name, reader_id))
        query = await self._resolved(asked)
        if query is None:
            return _NOTHING
        hashtags = [hashtag_term(phrase[0]) for phrase in asked.phrases if len(phrase) == 1]
        ids, others_below = await self._best.ranked(query, hashtags, reader_id, as_of_ms)
        places = {tweet_id: place for place, tweet_id in enumerate(ids)}
        found: list[HydratedTweet] = []
        if start == BEHIND_RANKED:
            others_below = last_id
        else:
            # Deletions move the places; where the last one is gone itself, those behind it have moved up by one.
            start = places.get(last_id, start - 2) + 1 if last_id else 0
            found = await self._hydrator.visible(reader_id, ids[start:], limit=size + 1)
        if len(found) <= size and others_below:
            others_below = await self._newest(query, others_below, size + 1, reader_id, found, places)
        place, last_id = BEHIND_RANKED, others_below
        if len(found) > size:
            last_id = found[size - 1].id
            place = places[last_id] + 1 if last_id in places else BEHIND_RANKED
        next_cursor = self._cursors.seal(name, reader_id, place, last_id, as_of_ms) if last_id else ""
        return [tweet.data for tweet in found[:size]], next_cursor

    async def in_order(
        self, ids: Sequence[int], start: int, size: int, reader_id: int, seal: Callable[[int], str]
    ) -> Page:
        """A page of the ids from the place `start` on, as the reader may see them; `seal` makes a cursor of a place."""
        found = await self._hydrator.visible(reader_id, ids[start:], limit=size + 1)
        if len(found) <= size:
            return [tweet.data for tweet in found], ""
        return [tweet.data for tweet in found[:size]], seal(ids.index(found[size - 1].id, start) + 1)

    async def _resolved(self, asked: ParsedQuery) -> Query | None:
        """The question as terms of the index; None where nothing can match."""
        authors = [await self._people.user_id(name) for name in asked.authors]
        if not asked or 0 in authors:
            return None
        exact, phrases, names = asked.excluded
        # Names of nobody leave out nobody.
        excluded = [user_id for user_id in [await self._people.user_id(name) for name in names] if user_id]
        return Query(
            (*asked.exact, *map(author_term, authors)), asked.phrases, (*exact, *map(author_term, excluded)), phrases
        )

    async def _newest(
        self,
        query: Query,
        before_id: int,
        wanted: int,
        reader_id: int,
        found: list[HydratedTweet],
        passed_over: Container[int] = (),
    ) -> int:
        """Adds to `found`, up to `wanted`, what the reader may see of the matches below `before_id` (0: no bound), newest first, but
        those passed over. Returns the id below which to go on; 0 where nothing is left."""
        take = wanted - len(found)
        for _ in range(MAX_ROUNDS):
            ids = await self._index.newest(Collection.TWEETS, query, before_id, take)
            fresh = [tweet_id for tweet_id in ids if tweet_id not in passed_over]
            found += await self._hydrator.visible(reader_id, fresh, limit=wanted - len(found))
            if len(found) == wanted:
                return found[-1].id
            if len(ids) < take:
                return 0
            before_id, take = ids[-1], ROUND_IDS
        return before_id


def _digest(asked: ParsedQuery) -> str:
    """Names the question in its cursors: those of another question are refused."""
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:32]
