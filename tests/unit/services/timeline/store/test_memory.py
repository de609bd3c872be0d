"""Tests the in-memory store of home timelines beyond the port's contract: eviction and trimming."""

from __future__ import annotations

from services.timeline.store.memory import EmbeddedHomeTimelines


async def make_warm(store: EmbeddedHomeTimelines, user_id: int) -> None:
    build = await store.open_build(user_id, 0, "hybrid")
    assert build is not None
    await store.close_build(build, [user_id], 0)


async def test_memory_store_evicts_least_recently_read() -> None:
    store = EmbeddedHomeTimelines(2)
    await make_warm(store, 1)
    await make_warm(store, 2)
    assert await store.read(1) is not None
    # An append does not count as a read.
    await store.append([(9, [2])])
    await make_warm(store, 3)
    assert await store.read(2) is None
    assert await store.read(1) is not None
    assert await store.read(3) is not None
    assert len(store) == 2


async def test_memory_store_trim_raises_floor_to_largest_removed_id() -> None:
    store = EmbeddedHomeTimelines(1, keep=4, trim_above=6)
    build = await store.open_build(1, 0, "hybrid")
    assert build is not None
    await store.close_build(build, [10, 20, 30, 40], 0)
    await store.append([(50, [1]), (60, [1])])
    home = await store.read(1)
    assert home is not None
    assert (list(home.ids), home.floor) == ([10, 20, 30, 40, 50, 60], 0)
    await store.append([(25, [1])])
    home = await store.read(1)
    assert home is not None
    assert (list(home.ids), home.floor) == ([30, 40, 50, 60], 25)


async def test_memory_store_close_build_trims() -> None:
    store = EmbeddedHomeTimelines(1, keep=4, trim_above=6)
    build = await store.open_build(1, 0, "hybrid")
    assert build is not None
    await store.append([(tweet_id, [1]) for tweet_id in (50, 60, 70)])
    home = await store.close_build(build, [10, 20, 30], 5)
    assert home is not None
    assert (list(home.ids), home.floor) == ([30, 50, 60, 70], 20)
