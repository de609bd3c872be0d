"""Contract of every home timeline store."""

from __future__ import annotations

import random

from services.timeline.store import SERVED, TRIM_ABOVE, HomeList, HomeTimelineStore, OpenBuild

ANN, BOB = 1, 2
OPENED_MS = 1_800_000_000_000


async def opened(store: HomeTimelineStore, user_id: int = ANN) -> OpenBuild:
    build = await store.open_build(user_id, OPENED_MS, "hybrid")
    assert build is not None
    return build


async def warm(store: HomeTimelineStore, ids: list[int], floor: int = 0, user_id: int = ANN) -> HomeList:
    home = await store.close_build(await opened(store, user_id), ids, floor)
    assert home is not None
    return home


async def ids_of(store: HomeTimelineStore, user_id: int = ANN) -> list[int]:
    home = await store.read(user_id)
    assert home is not None
    return list(home.ids)


async def test_read_unknown_home_is_cold_and_accepts_no_append(store: HomeTimelineStore) -> None:
    assert await store.append([(7, [ANN])]) == [0]
    assert await store.read(ANN) is None


async def test_close_build_returns_warm_home(store: HomeTimelineStore) -> None:
    await warm(store, [5, 7], 3)
    home = await store.read(ANN)
    assert home is not None
    assert (list(home.ids), home.floor, home.opened_ms, home.mode) == ([5, 7], 3, OPENED_MS, "hybrid")


async def test_close_build_without_ids_is_warm(store: HomeTimelineStore) -> None:
    await warm(store, [])
    assert await ids_of(store) == []
    assert await store.append([(9, [ANN])]) == [1]
    assert await ids_of(store) == [9]


async def test_open_build_is_cold_and_collects_appends(store: HomeTimelineStore) -> None:
    build = await opened(store)
    assert await store.append([(9, [ANN, BOB]), (4, [ANN])]) == [1, 1]
    assert await store.read(ANN) is None
    await store.close_build(build, [4, 5], 0)
    assert await ids_of(store) == [4, 5, 9]


async def test_open_build_makes_warm_home_cold(store: HomeTimelineStore) -> None:
    await warm(store, [5])
    await opened(store)
    assert await store.read(ANN) is None


async def test_append_keeps_order_and_unique_ids(store: HomeTimelineStore) -> None:
    await warm(store, [10, 20])
    assert await store.append([(30, [ANN, BOB]), (15, [ANN]), (30, [ANN]), (20, [ANN])]) == [1, 1, 1, 1]
    assert await ids_of(store) == [10, 15, 20, 30]


async def test_append_at_or_below_floor_is_ignored(store: HomeTimelineStore) -> None:
    await warm(store, [10], 5)
    assert await store.append([(5, [ANN]), (3, [ANN])]) == [1, 1]
    assert await ids_of(store) == [10]
    build = await opened(store, BOB)
    await store.append([(5, [BOB]), (6, [BOB])])
    await store.close_build(build, [10], 5)
    assert await ids_of(store, BOB) == [6, 10]


async def test_read_returns_snapshot(store: HomeTimelineStore) -> None:
    await warm(store, [10])
    home = await store.read(ANN)
    await store.append([(11, [ANN])])
    assert home is not None
    assert list(home.ids) == [10]


async def test_append_to_long_home_stays_complete_above_floor(store: HomeTimelineStore) -> None:
    await warm(store, [])
    ids = list(range(10, 10 + 3 * TRIM_ABOVE))
    late = random.Random(1)
    # Some arrive late, so the order of arrival is not the order of ids.
    arrived = sorted(ids, key=lambda i: i + late.choice((0, 0, 0, 40)))
    for tweet_id in arrived:
        await store.append([(tweet_id, [ANN])])
    home = await store.read(ANN)
    # A store may drop a list instead of trimming it; what it returns is complete.
    if home is not None:
        assert home.floor > 0
        assert list(home.ids) == [i for i in ids if i > home.floor]
        assert SERVED <= len(home.ids) <= TRIM_ABOVE


async def test_close_build_superseded_installs_nothing(store: HomeTimelineStore) -> None:
    first, second = await opened(store), await opened(store)
    assert await store.close_build(first, [1], 0) is None
    assert await store.read(ANN) is None
    assert await store.close_build(second, [2], 0) is not None
    assert await store.close_build(second, [3], 0) is None
    assert await ids_of(store) == [2]


async def test_close_build_dropped_installs_nothing(store: HomeTimelineStore) -> None:
    build = await opened(store)
    await store.drop(ANN)
    assert await store.close_build(build, [1], 0) is None
    build = await opened(store)
    await store.clear()
    assert await store.close_build(build, [1], 0) is None
    assert await store.read(ANN) is None


async def test_close_build_too_many_appends_installs_nothing(store: HomeTimelineStore) -> None:
    build = await opened(store)
    for tweet_id in range(1, TRIM_ABOVE + 2):
        await store.append([(tweet_id, [ANN])])
    assert await store.close_build(build, [], 0) is None
    assert await store.read(ANN) is None


async def test_append_several_entries_returns_count_of_each(store: HomeTimelineStore) -> None:
    readers = list(range(1, 2_500))
    for user_id in readers[::2]:
        await warm(store, [5], user_id=user_id)
    # The same page of readers twice, another one that overlaps it, and a separate one.
    entries = [(30, readers), (10, readers), (20, readers[:10]), (40, [readers[0]])]
    assert await store.append(entries) == [1_250, 1_250, 5, 1]
    assert await ids_of(store, readers[0]) == [5, 10, 20, 30, 40]
    assert await ids_of(store, readers[2]) == [5, 10, 20, 30]
    assert await ids_of(store, readers[-1]) == [5, 10, 30]
    assert await store.append([]) == []
    assert await store.append([(50, []), (60, [readers[0]])]) == [0, 1]
    assert await store.append([(50, [])]) == [0]


async def test_abandon_build_leaves_home_cold(store: HomeTimelineStore) -> None:
    build = await opened(store)
    await store.abandon_build(build)
    assert await store.append([(1, [ANN])]) == [0]
    assert await store.close_build(build, [1], 0) is None


async def test_abandon_build_superseded_changes_nothing(store: HomeTimelineStore) -> None:
    first, second = await opened(store), await opened(store)
    await store.abandon_build(first)
    assert await store.close_build(second, [2], 0) is not None
    await store.abandon_build(second)
    assert await ids_of(store) == [2]


async def test_drop_affects_one_home(store: HomeTimelineStore) -> None:
    await warm(store, [1], user_id=ANN)
    await warm(store, [2], user_id=BOB)
    await store.drop(ANN)
    assert await store.read(ANN) is None
    assert await ids_of(store, BOB) == [2]
    await store.clear()
    assert await store.read(BOB) is None
