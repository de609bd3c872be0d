"""Searches tweets. A page has only the matches that the reader may see."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

from services.platform.pagination.cursors import Cursors
from services.search.best import BestMatches
from services.search.query import ParsedQuery, author_term, hashtag_term
from services.search.store import Collection, Query, SearchIndex
from services.search.users import UserSearch
from services.shared.hydration.fill_page import IdBatch, StoredList, fill_page
from services.shared.hydration.hydrator import Hydrator

# A value in cursors of `top`: all ranked matches were returned, and the next page begins among the other matches,
# newest first. Any other value is an index in the ranked matches.
AFTER_RANKED = -1

TweetPage = tuple[list[bytes], str]
_EMPTY_PAGE: TweetPage = ([], "")


class TweetSearch:
    """Searches tweets. `clock` returns Unix seconds.

    All methods raise AioRpcError if tweet, identity or graph does not answer, and UNAVAILABLE if the index cannot
    answer. A tweet whose visibility cannot be checked is never returned.
    """

    def __init__(
        self,
        index: SearchIndex,
        best: BestMatches,
        people: UserSearch,
        hydrator: Hydrator,
        cursors: Cursors,
        clock: Callable[[], float],
    ) -> None:
        self._index = index
        self._user_search = people
        self._hydrator = hydrator
        self._cursors = cursors
        self._best = best
        self._clock = clock

    async def latest(self, parsed: ParsedQuery, cursor: str, size: int, reader_id: int) -> TweetPage:
        """Returns a page of matches, newest first, as serialized tweets, and the next cursor (empty on the last page).
        `reader_id` is 0 for an anonymous reader. Raises INVALID_ARGUMENT if the cursor belongs to another query."""
        name = f"search_latest/{_digest(parsed)}"
        before_id = int(self._cursors.open(cursor, name, 0)[0]) if cursor else 0
        query = await self._resolve(parsed)
        if query is None:
            return _EMPTY_PAGE
        page = await fill_page(
            self._newest(query, before_id, size + 1), partial(self._hydrator.visible, reader_id), size
        )
        next_cursor = self._cursors.seal(name, 0, page.next_position) if page.next_position else ""
        return [tweet.data for tweet in page.tweets], next_cursor

    async def top(self, parsed: ParsedQuery, cursor: str, size: int, reader_id: int) -> TweetPage:
        """Returns a page of matches, best first, as serialized tweets, and the next cursor (empty on the last page).
        The ranked matches come first, then all others, newest first.

        The cursor contains the time of the first page: later pages leave out newer tweets and compute recency for this
        time. Each page ranks again and begins after the last tweet of the previous page, so a match whose rank changed
        between two pages may appear twice or be missing. Raises INVALID_ARGUMENT if the cursor belongs to another query
        or reader.
        """
        name = f"search_best/{_digest(parsed)}"
        start, last_id, as_of_ms = 0, 0, int(self._clock() * 1000)
        if cursor:
            start, last_id, as_of_ms = (int(value) for value in self._cursors.open(cursor, name, reader_id))
        query = await self._resolve(parsed)
        if query is None:
            return _EMPTY_PAGE
        hashtags = [hashtag_term(phrase[0]) for phrase in parsed.phrases if len(phrase) == 1]
        ids, others_below = await self._best.ranked(query, hashtags, reader_id, as_of_ms)
        places = {tweet_id: place for place, tweet_id in enumerate(ids)}
        if start == AFTER_RANKED:
            ranked: Sequence[int] = ()
            others_below = last_id
        else:
            # `start` is the index after the last tweet of the previous page. If this tweet was deleted since, the
            # tweets after it have moved up by one, so the page starts one index earlier.
            ranked = ids[places.get(last_id, start - 2) + 1 if last_id else 0 :]

        async def ranked_then_others() -> AsyncGenerator[IdBatch, None]:
            yield IdBatch(ranked, others_below)
            if others_below:
                async for batch in self._newest(query, others_below, size + 1):
                    yield batch._replace(ids=[tweet_id for tweet_id in batch.ids if tweet_id not in places])

        async with aclosing(ranked_then_others()) as batches:
            page = await fill_page(batches, partial(self._hydrator.visible, reader_id), size)
        last_id = page.next_position
        place = places[last_id] + 1 if page.is_followed and last_id in places else AFTER_RANKED
        next_cursor = self._cursors.seal(name, reader_id, place, last_id, as_of_ms) if last_id else ""
        return [tweet.data for tweet in page.tweets], next_cursor

    async def in_order(
        self, ids: Sequence[int], start: int, size: int, reader_id: int, seal: Callable[[int], str]
    ) -> TweetPage:
        """Returns a page of the tweets `ids` that the reader may see, from the index `start` on, and the next cursor
        (empty on the last page). `seal` returns the cursor for an index in `ids`."""
        found = await self._hydrator.visible(reader_id, ids[start:], size + 1)
        if len(found) <= size:
            return [tweet.data for tweet in found], ""
        return [tweet.data for tweet in found[:size]], seal(ids.index(found[size - 1].id, start) + 1)

    async def _resolve(self, parsed: ParsedQuery) -> Query | None:
        """Returns the query for the index, with user ids in place of usernames. Returns None if no tweet can match: the
        query is empty, or an author does not exist."""
        authors = [await self._user_search.user_id(name) for name in parsed.authors]
        if not parsed or 0 in authors:
            return None
        exact, phrases, names = parsed.excluded
        # An excluded author who does not exist excludes nothing.
        excluded = [user_id for user_id in [await self._user_search.user_id(name) for name in names] if user_id]
        return Query(
            (*parsed.exact, *map(author_term, authors)), parsed.phrases, (*exact, *map(author_term, excluded)), phrases
        )

    def _newest(self, query: Query, before_id: int, first_ids: int) -> StoredList:
        """Returns the list of matches with ids below `before_id` (0: no bound), newest first. `first_ids` is the size
        of its first batch."""

        def read(before_id: int, limit: int) -> Awaitable[Sequence[int]]:
            return self._index.newest(Collection.TWEETS, query, before_id, limit)

        return StoredList(read, before_id, first_ids)


def _digest(parsed: ParsedQuery) -> str:
    """Returns a hash of the query. It is part of the list name in cursors, so that a cursor of another query is
    rejected."""
    return hashlib.sha256(repr(parsed).encode()).hexdigest()[:32]
