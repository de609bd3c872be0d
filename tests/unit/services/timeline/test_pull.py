"""Tests the merge against brute force, and the sources of ids."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.platform.versions import Kind, key_of
from services.timeline import pull
from services.timeline.pull import (
    AUTHORS_A_CALL,
    CachedIds,
    DescendingMerge,
    IdBatches,
    Puller,
    VersionedOwnIds,
    all_ids,
    merge_for_build,
    newest_of,
)
from services.timeline.store import CAPACITY, HomeList
from tests.versions import UnknownVersions, all_versions

READER = 1


class Owner:
    """Authors and their ids, ascending; records the calls it received."""

    def __init__(self, ids: dict[int, list[int]]) -> None:
        self.ids = ids
        self.asked: list[list[int]] = []
        self.slow: set[int] = set()

    async def newest(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        self.asked.append(list(authors))
        for author in authors:
            if author in self.slow:
                await asyncio.sleep(10)
            ids = [i for i in self.ids.get(author, ()) if not before_id or i < before_id]
            if ids:
                yield {author: ids[: -depth - 1 : -1]}


async def ids_of_merge(walk: DescendingMerge) -> list[int]:
    found: list[int] = []
    async for batch in walk:
        assert list(batch.ids) == sorted(set(batch.ids), reverse=True)
        assert not found or not batch.ids or batch.ids[0] < found[-1]
        found += batch.ids
    return found


histories = st.dictionaries(st.integers(2, 12), st.sets(st.integers(1, 400), max_size=40), max_size=8)


@given(histories, st.integers(1, 10), st.integers(0, 410))
def test_merge_returns_every_id_below_bound_in_order(ids: dict[int, set[int]], depth: int, bound: int) -> None:
    owner = Owner({author: sorted(found) for author, found in ids.items()})
    walk = DescendingMerge(owner, None, (), list(ids), bound, depth)
    expected = sorted({i for found in ids.values() for i in found if not bound or i < bound}, reverse=True)
    assert asyncio.run(ids_of_merge(walk)) == expected


@given(histories, st.integers(1, 10), st.integers(0, 410), st.integers(0, 300), st.randoms(use_true_random=False))
def test_merge_continues_below_floor(
    ids: dict[int, set[int]], depth: int, bound: int, floor: int, chance: random.Random
) -> None:
    owner = Owner({author: sorted(found) for author, found in ids.items()})
    pulled = [author for author in ids if chance.random() < 0.4]
    pushed = {i for author, found in ids.items() if author not in pulled for i in found if i > floor}
    # A list may hold ids of pulled authors too, pushed before.
    pushed |= {i for author in pulled for i in ids[author] if i > floor and chance.random() < 0.5}
    home = HomeList(sorted(pushed), floor, 0, "hybrid")
    walk = DescendingMerge(owner, home, pulled, list(ids), bound, depth)
    expected = sorted({i for found in ids.values() for i in found if not bound or i < bound}, reverse=True)
    assert asyncio.run(ids_of_merge(walk)) == expected


async def test_merge_exhausted_author_is_not_asked_again() -> None:
    owner = Owner({2: list(range(1, 100)), 3: [5, 50], 4: []})
    await ids_of_merge(DescendingMerge(owner, None, (), [2, 3, 4], 0, 10))
    assert owner.asked[0] == [2, 3, 4]
    assert all(asked == [2] for asked in owner.asked[1:])


async def test_merge_above_floor_asks_pulled_authors_only() -> None:
    owner = Owner({2: [1, 2, 3], READER: [40]})
    walk = DescendingMerge(owner, HomeList([10, 20, 30], 5, 0, "hybrid"), [READER], [READER, 2], 0, 3)
    batch = await anext(walk)
    assert batch.ids == [40, 30, 20, 10]
    assert owner.asked == [[READER]]


async def test_merge_slow_first_round_is_partial() -> None:
    owner = Owner({author: [author] for author in range(1, AUTHORS_A_CALL + 3)})
    owner.slow = {AUTHORS_A_CALL + 1}
    until = asyncio.get_running_loop().time() + 0.05
    walk = DescendingMerge(owner, None, (), list(owner.ids), 0, 5, until)
    batch = await anext(walk)
    assert batch.ids == list(range(AUTHORS_A_CALL, 0, -1))
    assert walk.partial
    assert await anext(walk, None) is None


async def test_merge_slow_later_round_ends_merge() -> None:
    owner = Owner({2: list(range(1, 100))})
    walk = DescendingMerge(owner, None, (), [2], 0, 10, asyncio.get_running_loop().time() + 0.05)
    first = await anext(walk)
    owner.slow = {2}
    assert first.next_position == 90
    assert await anext(walk, None) is None
    assert not walk.partial


async def test_merge_rounds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "MAX_ROUNDS", 3)
    monkeypatch.setattr(pull, "MAX_DEPTH", 2)
    owner = Owner({2: list(range(1, 100))})
    assert await ids_of_merge(DescendingMerge(owner, None, (), [2], 0, 2)) == [99, 98, 97, 96, 95, 94]


@given(histories, st.integers(1, 30))
def test_newest_of_build_returns_newest_and_floor(ids: dict[int, set[int]], keep: int) -> None:
    owner = Owner({author: sorted(found) for author, found in ids.items()})
    everything = sorted({i for found in ids.values() for i in found})
    merge = merge_for_build(owner, list(ids), keep)
    taken, floor = asyncio.run(newest_of(merge, keep))
    assert floor == (everything[-keep] if len(everything) >= keep else 0)
    assert taken == [i for i in everything if i > floor]
    assert set(merge.first_answers) == {author for author, found in ids.items() if found}


async def test_newest_of_build_busy_author_fills_capacity() -> None:
    owner = Owner({2: list(range(1, 2_000))})
    taken, floor = await newest_of(merge_for_build(owner, [2]))
    assert (taken[-1], floor, len(taken)) == (1_999, 2_000 - CAPACITY, CAPACITY - 1)


async def test_routed_ids_of_slow_author_keep_the_readers_own() -> None:
    owner = Owner({author: [author] for author in range(1, 60)})
    owner.slow = {40}
    source = Puller(owner, lambda: 0.0, UnknownVersions()).reading_for(READER)
    until = asyncio.get_running_loop().time() + 0.05
    merge = DescendingMerge(source, None, (), range(1, 60), 0, 5, until)
    assert (await anext(merge)).ids == [READER]
    assert merge.partial


async def test_routed_ids_failure_of_one_source_is_raised_and_cancels_the_other() -> None:
    many = range(2, 60)
    owner, own = Owner({2: [1]}), Owner({})
    owner.slow = {2}

    async def fail() -> pull.IdsByAuthor:
        await asyncio.sleep(0)
        raise ConnectionError("down")

    own.newest = lambda *_: pull.SingleBatch(fail)  # type: ignore[assignment, method-assign]
    source = pull.RoutedIds(READER, owner, own, owner)
    with pytest.raises(ConnectionError):
        await all_ids(source.newest([READER, *many], 0, 5))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_puller_few_authors_ask_owner() -> None:
    owner = Owner({author: [author] for author in range(1, 60)})
    source = Puller(owner, lambda: 0.0, UnknownVersions()).reading_for(READER)
    for _ in range(2):
        await all_ids(source.newest(list(range(1, 51)), 0, 5))
    assert len(owner.asked) == 2


async def test_puller_many_authors_are_cached_except_reader() -> None:
    now = 100.0
    owner = Owner({author: [author] for author in range(1, 60)})
    source = Puller(owner, lambda: now, UnknownVersions()).reading_for(READER)
    authors = list(range(1, 60))
    await all_ids(source.newest(authors, 0, 5))
    owner.ids[2].append(200)
    owner.ids[READER].append(300)
    owner.asked.clear()
    found = await all_ids(source.newest(authors, 0, 5))
    assert [asked for asked in owner.asked if asked] == [[READER]]
    assert list(found[READER]) == [300, 1]
    assert list(found[2]) == [2]
    assert set(found) == set(authors)
    now += pull.CACHED_IDS_TTL_S
    found = await all_ids(source.newest(authors, 0, 5))
    assert list(found[2]) == [200, 2]


@given(st.integers(0, 400), st.integers(1, 200), st.integers(0, 500))
def test_cached_ids_are_complete_beyond_their_depth(bound: int, depth: int, many: int) -> None:
    owner = Owner({2: list(range(1, many + 1)), 3: [7]})
    recents = CachedIds(owner, lambda: 0.0)

    async def read_twice() -> tuple[dict[int, Sequence[int]], dict[int, Sequence[int]]]:
        await all_ids(recents.newest([2, 3], 0, 5))
        found = await all_ids(recents.newest([2, 3, 4], bound, depth))
        return found, await all_ids(owner.newest([2, 3, 4], bound, depth))

    found, expected = asyncio.run(read_twice())
    assert {author: list(ids) for author, ids in found.items()} == {a: list(ids) for a, ids in expected.items()}


async def test_own_ids_are_read_once_per_version() -> None:
    owner, (versions, publisher) = Owner({READER: [10], 2: [5]}), all_versions()
    source = Puller(owner, lambda: 0.0, versions).reading_for(READER)

    async def found() -> list[int]:
        return list((await all_ids(source.newest([READER], 0, 5))).get(READER, ()))

    assert await found() == await found() == [10]
    assert len([asked for asked in owner.asked if asked]) == 1
    owner.ids[READER].append(20)
    assert await found() == [10]
    publisher.changed([key_of(Kind.AUTHOR, READER)])
    assert await found() == [20, 10]
    # Other authors are not cached.
    ids = await all_ids(source.newest([READER, 2], 0, 5))
    assert list(ids[2]) == [5]


async def test_own_ids_of_unknown_version_are_not_cached() -> None:
    owner = Owner({READER: [10]})
    source = Puller(owner, lambda: 0.0, UnknownVersions()).reading_for(READER)
    await all_ids(source.newest([READER], 0, 5))
    owner.ids[READER].append(20)
    assert list((await all_ids(source.newest([READER], 0, 5)))[READER]) == [20, 10]


@given(st.integers(0, 400), st.integers(1, 200), st.integers(0, 500))
def test_own_ids_are_complete_beyond_their_depth(bound: int, depth: int, many: int) -> None:
    owner = Owner({READER: list(range(1, many + 1))})
    own = VersionedOwnIds(owner, all_versions()[0])

    async def read_twice() -> tuple[dict[int, Sequence[int]], dict[int, Sequence[int]]]:
        await all_ids(own.newest([READER], 0, 5))
        found = await all_ids(own.newest([READER], bound, depth))
        return found, await all_ids(owner.newest([READER], bound, depth))

    found, expected = asyncio.run(read_twice())
    assert {author: list(ids) for author, ids in found.items()} == {a: list(ids) for a, ids in expected.items()}
