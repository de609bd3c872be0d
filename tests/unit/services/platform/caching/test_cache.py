"""Tests the cache: one load for many callers, no cached errors, and no value older than its TTL."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Mapping, Sequence

import pytest

from services.platform.caching.cache import Cache, SingleFlight


class Source:
    """Loads values 1, 2, 3, …; each load waits until `gate` is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.absent: set[str] = set()

    async def one(self, key: str) -> int:
        return (await self.many((key,)))[key]

    async def many(self, keys: Sequence[str]) -> Mapping[str, int]:
        self.calls.append(tuple(keys))
        value = len(self.calls)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {key: value for key in keys if key not in self.absent}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> Cache[str, int]:
    return Cache(3, ttl_s=10, stale_s=5, clock=clock)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_load_concurrent_callers_share_one_load(cache: Cache[str, int], source: Source) -> None:
    assert await asyncio.gather(*(cache.get_or_load("a", source.one) for _ in range(20))) == [1] * 20
    assert source.calls == [("a",)]


async def test_load_cancelled_waiter_does_not_affect_others(cache: Cache[str, int], source: Source) -> None:
    source.gate.clear()
    first, second = (asyncio.create_task(cache.get_or_load("a", source.one)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    source.gate.set()
    assert await second == 1
    assert cache.get("a") == 1
    assert len(source.calls) == 1


async def test_load_continues_after_all_waiters_are_cancelled(cache: Cache[str, int], source: Source) -> None:
    source.gate.clear()
    waiter = asyncio.create_task(cache.get_or_load("a", source.one))
    await settle()
    waiter.cancel()
    source.gate.set()
    await settle()
    assert cache.get("a") == 1


async def test_load_runs_in_empty_context() -> None:
    actor = contextvars.ContextVar("actor", default="nobody")
    actor.set("alice")

    async def load() -> str:
        return actor.get()

    assert await SingleFlight[int, str]().run(1, load) == "nobody"


async def test_load_error_reaches_all_waiters_and_is_not_cached(cache: Cache[str, int], source: Source) -> None:
    source.error = ConnectionError("down")
    results = await asyncio.gather(*(cache.get_or_load("a", source.one) for _ in range(3)), return_exceptions=True)
    assert results == [source.error] * 3
    assert len(source.calls) == 1
    source.error = None
    assert await cache.get_or_load("a", source.one) == 2


async def test_get_expired_value_returns_none(cache: Cache[str, int], source: Source, clock: Clock) -> None:
    assert await cache.get_or_load("a", source.one) == 1
    clock.now += 9.9
    assert cache.get("a") == 1
    clock.now += 0.1
    assert cache.get("a") is None
    clock.now += 5
    assert await cache.get_or_load("a", source.one) == 2


async def test_stale_value_is_returned_during_single_refresh(
    cache: Cache[str, int], source: Source, clock: Clock
) -> None:
    await cache.get_or_load("a", source.one)
    clock.now += 14.9
    source.gate.clear()
    assert [await cache.get_or_load("a", source.one) for _ in range(3)] == [1, 1, 1]
    await settle()
    assert len(source.calls) == 2
    source.gate.set()
    await settle()
    assert cache.get("a") == 2


async def test_stale_value_after_failed_refresh_is_kept_until_expiry(
    cache: Cache[str, int], source: Source, clock: Clock
) -> None:
    await cache.get_or_load("a", source.one)
    clock.now += 11
    source.error = ConnectionError("down")
    for _ in range(2):
        assert await cache.get_or_load("a", source.one) == 1
        await settle()
    assert len(source.calls) == 3
    clock.now += 4
    with pytest.raises(ConnectionError):
        await cache.get_or_load("a", source.one)


async def test_put_above_bound_evicts_least_recently_used(cache: Cache[str, int]) -> None:
    for key in "abc":
        cache.put(key, 1)
    cache.get("a")
    cache.put("d", 1)
    assert [cache.get(key) for key in "abcd"] == [1, None, 1, 1]
    assert len(cache) == 3


@pytest.mark.parametrize("newer", [None, 99])
async def test_load_overtaken_by_change_is_not_cached(
    cache: Cache[str, int], source: Source, newer: int | None
) -> None:
    source.gate.clear()
    early = asyncio.create_task(cache.get_or_load("a", source.one))
    await settle()
    if newer is None:
        cache.invalidate("a")
    else:
        cache.put("a", newer)
    late = asyncio.create_task(cache.get_or_load("a", source.one))
    await settle()
    source.gate.set()
    assert await early == 1
    assert await late == (newer or 2)
    assert cache.get("a") == (newer or 2)


async def test_batch_loads_missing_keys_once_and_joins_loads_in_progress(
    cache: Cache[str, int], source: Source
) -> None:
    cache.put("a", 50)
    source.gate.clear()
    single = asyncio.create_task(cache.get_or_load("b", source.one))
    await settle()
    batch = asyncio.create_task(cache.batch_get_or_load(["a", "b", "c", "c", "d"], source.many))
    await settle()
    source.gate.set()
    assert await batch == {"a": 50, "b": 1, "c": 2, "d": 2}
    assert await single == 1
    assert source.calls == [("b",), ("c", "d")]


async def test_batch_missing_key_is_absent_and_loaded_again(cache: Cache[str, int], source: Source) -> None:
    source.absent = {"x"}
    assert await cache.batch_get_or_load(["a", "x"], source.many) == {"a": 1}
    assert await cache.batch_get_or_load(["a", "x"], source.many) == {"a": 1}
    assert source.calls == [("a", "x"), ("x",)]


async def test_load_joined_to_batch_without_value_runs_own_load(cache: Cache[str, int], source: Source) -> None:
    source.gate.clear()
    source.absent = {"x"}
    batch = asyncio.create_task(cache.batch_get_or_load(["x"], source.many))
    await settle()

    async def own(_: str) -> int:
        return 7

    single = asyncio.create_task(cache.get_or_load("x", own))
    await settle()
    source.gate.set()
    assert await batch == {}
    assert await single == 7


async def test_refresh_without_value_evicts_key(cache: Cache[str, int], source: Source, clock: Clock) -> None:
    await cache.batch_get_or_load(["a"], source.many)
    clock.now += 11
    source.absent = {"a"}
    assert await cache.batch_get_or_load(["a"], source.many) == {"a": 1}
    await settle()
    assert await cache.batch_get_or_load(["a"], source.many) == {}
