"""Filling pages: from stored lists and other batches of ids, some of which are hidden."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from time import monotonic

from hypothesis import given
from hypothesis import strategies as st

from services.shared.hydration.cache import HydratedTweet
from services.shared.hydration.fill_page import (
    HYDRATED_IDS,
    MAX_READS,
    READ_IDS,
    FilledPage,
    IdBatch,
    StoredList,
    fill_page,
)


class TweetList:
    """A list of tweets, newest first, of which some are hidden; records what is read and hydrated."""

    def __init__(self, ids: Sequence[int], hidden: set[int] | None = None) -> None:
        self.ids = sorted(ids, reverse=True)
        self.hidden = hidden or set()
        self.reads: list[int] = []
        self.hydrated: list[int] = []

    async def read(self, before_id: int, limit: int) -> list[int]:
        self.reads.append(limit)
        return [i for i in self.ids if not before_id or i < before_id][:limit]

    async def read_with_positions(self, before: int, limit: int) -> Mapping[int, int]:
        # Each tweet's position is ten times its id.
        return {i: i * 10 for i in [i for i in self.ids if not before or i * 10 < before][:limit]}

    async def hydrate(self, ids: Sequence[int], limit: int) -> list[HydratedTweet]:
        self.hydrated.append(len(ids))
        return [HydratedTweet(i, 1, b"") for i in ids if i not in self.hidden][:limit]

    async def page(self, after: int, size: int) -> FilledPage:
        return await fill_page(StoredList(self.read, after, size + 1), self.hydrate, size)


def ids_of(page: FilledPage) -> list[int]:
    return [tweet.id for tweet in page.tweets]


@given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)), st.integers(1, 20))
async def test_fill_page_pages_hold_every_visible_tweet_once(ids: set[int], hidden: set[int], size: int) -> None:
    listed, shown, after = TweetList(list(ids), hidden), [], 0
    while True:
        page = await listed.page(after, size)
        shown.append(ids_of(page))
        after = page.next_position
        if not after:
            break
        assert len(page.tweets) == size
        assert page.is_followed
    assert [i for page_ids in shown for i in page_ids] == sorted(ids - hidden, reverse=True)
    assert all(shown[1:]), "a next page is announced only if it has a tweet"


async def test_fill_page_mostly_hidden_stops_after_max_reads() -> None:
    listed = TweetList(range(1, 3_000), set(range(2, 3_000)))
    page = await listed.page(0, 20)
    assert (ids_of(page), page.is_followed) == ([], False)
    assert listed.reads == [21] + [READ_IDS] * (MAX_READS - 1)
    assert page.next_position == 2_999 - 21 - READ_IDS * (MAX_READS - 1) + 1


async def test_fill_page_positions_of_their_own_begin_next_page() -> None:
    listed = TweetList([1, 2, 3, 4], {4})
    page = await fill_page(StoredList(listed.read_with_positions, 0, 3), listed.hydrate, 2)
    assert (ids_of(page), page.next_position) == ([3, 2], 20)
    page = await fill_page(StoredList(listed.read_with_positions, 20, 3), listed.hydrate, 2)
    assert (ids_of(page), page.next_position) == ([1], 0)


async def test_fill_page_after_deadline_ends_at_last_hydrated_id() -> None:
    listed = TweetList(range(1, HYDRATED_IDS * 2 + 1), set(range(2, 2_000)))

    async def batches() -> AsyncIterator[IdBatch]:
        yield IdBatch(listed.ids, 0)

    page = await fill_page(batches(), listed.hydrate, 5, deadline=monotonic())
    assert (ids_of(page), page.next_position) == ([], HYDRATED_IDS + 1)
    assert ids_of(await fill_page(batches(), listed.hydrate, 5)) == [1]
