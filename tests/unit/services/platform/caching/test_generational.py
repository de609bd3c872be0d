"""The cache with two generations: bounded, correct, and keeps what is used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.platform.caching.generational import GenerationalCache


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["get", "put", "pop"])), max_size=200))
def test_generational_cache_is_correct_and_bounded(steps: list[tuple[int, str]]) -> None:
    recent: GenerationalCache[int, int] = GenerationalCache(4)
    truth: dict[int, int] = {}
    for number, (key, step) in enumerate(steps, 1):
        if step == "put":
            recent.put(key, number)
            truth[key] = number
            assert recent.get(key) == number
        elif step == "pop":
            recent.pop(key)
            truth.pop(key, None)
            assert recent.get(key) is None
        else:
            assert recent.get(key) in (None, truth.get(key))
        assert all(value in (None, truth.get(key)) for key, value in enumerate(recent.get_many(range(31))))
        assert len(recent) <= 8


def test_generational_cache_keeps_used_entries() -> None:
    recent: GenerationalCache[int, str] = GenerationalCache(4)
    recent.put(0, "used")
    for key in range(1, 100):
        recent.put(key, "other")
        assert recent.get(0) == "used"


def test_generational_cache_turns_when_the_younger_is_full() -> None:
    cache: GenerationalCache[int, str] = GenerationalCache(2)
    for key in range(3):
        cache.put(key, "value")
    assert cache.turns == 1
    assert [sorted(half) for half in cache.generations] == [[2], [0, 1]]
    cache.get(0)
    assert [sorted(half) for half in cache.generations] == [[0, 2], [0, 1]]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=100))
def test_generational_cache_weighs_values(steps: list[tuple[int, int]]) -> None:
    cache: GenerationalCache[int, int] = GenerationalCache(10, lambda value: value)
    for key, weight in steps:
        cache.put(key, weight)
        assert cache.get(key) == weight
        young, old = cache.generations
        assert cache._weight == sum(young.values())
        assert max(sum(young.values()), sum(old.values())) < 10 + 9
        if weight == 9:
            cache.pop(key)
            assert cache.get(key) is None
