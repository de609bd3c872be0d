"""Fills a page with the visible tweets of a list: reads ids in batches until enough of them are visible."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from time import monotonic
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from services.shared.hydration.cache import HydratedTweet
from services.shared.hydration.hydrator import MAX_ROUND_IDS

# Maximum number of reads of a stored list for one page, about 1,200 ids. After them, a short page with a cursor is
# returned, so that many hidden tweets in a row do not delay a call.
MAX_READS = 5
# Number of ids of the second and each later read. The first read takes as many ids as the page needs.
READ_IDS = MAX_ROUND_IDS
# Maximum number of ids hydrated at once; `fill_page` checks its deadline before it hydrates more.
HYDRATED_IDS = MAX_ROUND_IDS

NO_DEADLINE = float("inf")
_NO_POSITIONS: Mapping[int, int] = MappingProxyType({})


class IdBatch(NamedTuple):
    """The next ids of a list, in its order, and the position after which the list continues (0 if these ids are the
    last).

    `positions` maps each id to its position; it is empty if the ids themselves are the positions."""

    ids: Sequence[int]
    next_position: int
    positions: Mapping[int, int] = _NO_POSITIONS


# Reads a stored list. `read(after, limit)` returns up to `limit` entries after the position `after` (0: from the
# start), in the list's order; if it returns fewer, the list ends. Returns the ids of tweets if their positions are the
# ids, otherwise a dict of positions by id.
ReadList: TypeAlias = "Callable[[int, int], Awaitable[Sequence[int] | Mapping[int, int]]]"
# `hydrate(ids, limit)` returns the first `limit` visible tweets of the ids: `Hydrator.visible` with the reader and the
# rules of the list.
Hydrate: TypeAlias = Callable[[Sequence[int], int], Awaitable[list[HydratedTweet]]]


class FilledPage(NamedTuple):
    """A page of visible tweets. The next page begins after `next_position`; 0 if there is none.

    `is_followed` is true if the page is full and another visible tweet follows: `next_position` is then the position of
    the last tweet of the page."""

    tweets: Sequence[HydratedTweet]
    next_position: int
    is_followed: bool


class StoredList:
    """An async iterator over a stored list in batches, from the position `after` (0: from the start), that ends after
    MAX_READS batches. `first_ids` is the number of ids in the first batch."""

    def __init__(self, read: ReadList, after: int, first_ids: int) -> None:
        self._read = read
        self._after = after
        self._limit = first_ids
        self._left = MAX_READS

    def __aiter__(self) -> StoredList:
        return self

    async def __anext__(self) -> IdBatch:
        """Returns the next batch of the list's ids. Raises StopAsyncIteration at the end of the list or after MAX_READS
        batches, and the errors of the `read` function that was passed in."""
        if not self._left:
            raise StopAsyncIteration
        entries = await self._read(self._after, self._limit)
        positions = entries if isinstance(entries, Mapping) else _NO_POSITIONS
        ids = list(entries)
        self._after = positions.get(ids[-1], ids[-1]) if len(ids) >= self._limit else 0
        self._left = self._left - 1 if self._after else 0
        self._limit = READ_IDS
        return IdBatch(ids, self._after, positions)


async def fill_page(
    batches: AsyncIterable[IdBatch], hydrate: Hydrate, size: int, deadline: float = NO_DEADLINE
) -> FilledPage:
    """Returns the first `size` (≥ 1) visible tweets of the batches. Looks for one tweet more, so that the last page has
    no next position. After `deadline` (seconds of `time.monotonic`) hydrates no further ids of a batch, and returns a
    short page.

    Raises the error of a batch that cannot be read, and AioRpcError if hydration fails because tweet, identity or graph
    does not answer.
    """
    tweets: list[HydratedTweet] = []
    # The positions of the ids of all batches so far. If one tweet more than the page needs is found, the position of the
    # page's last tweet is returned, and that tweet may be from an earlier batch.
    positions: dict[int, int] = {}
    next_position = 0
    async for batch in batches:
        ids, next_position = batch.ids, batch.next_position
        if batch.positions:
            positions.update(batch.positions)
        for start in range(0, len(ids), HYDRATED_IDS):
            if start and monotonic() >= deadline:
                last_id = ids[start - 1]
                return FilledPage(tweets, positions.get(last_id, last_id), False)
            tweets += await hydrate(ids[start : start + HYDRATED_IDS], size + 1 - len(tweets))
            if len(tweets) > size:
                del tweets[size:]
                last_id = tweets[-1].id
                return FilledPage(tweets, positions.get(last_id, last_id), True)
    return FilledPage(tweets, next_position, False)
