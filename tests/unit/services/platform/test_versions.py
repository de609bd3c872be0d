"""Versions in process memory: a change of a key is noticed by every value that depends on it, and by no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.platform.versions import Kind, MemoryVersions, Versioned, key_of, split_key
from tests.versions import all_versions

TWEET, OTHER = key_of(Kind.TWEET, 10), key_of(Kind.TWEET, 11)


async def cached(versions: MemoryVersions, *keys: int) -> Versioned[str]:
    snapshot = versions.snapshot()
    await snapshot.read(keys)
    return Versioned(keys, snapshot.stamp(keys), "value")


@given(st.sampled_from(Kind), st.integers(0, (1 << 63) - 1))
def test_key_contains_kind_and_id(kind: Kind, item_id: int) -> None:
    assert split_key(key_of(kind, item_id)) == (kind, item_id)


def test_key_of_each_kind_is_another() -> None:
    assert len({key_of(kind, 7) for kind in Kind}) == len(Kind)


async def test_current_until_one_of_the_keys_changes() -> None:
    versions, publisher = all_versions()
    value = await cached(versions, TWEET, OTHER)
    for _ in range(2):
        assert await versions.current([value]) == [True]
        publisher.changed([key_of(Kind.USER, 10)])
    publisher.changed([OTHER])
    for _ in range(2):
        assert await versions.current([value]) == [False]
    assert await versions.current([await cached(versions, TWEET, OTHER), value]) == [True, False]


async def test_current_change_before_load_ended_is_noticed() -> None:
    versions, publisher = all_versions()
    snapshot = versions.snapshot()
    await snapshot.read([TWEET])
    publisher.changed([TWEET])
    assert await versions.current([Versioned((TWEET,), snapshot.stamp((TWEET,)), "loaded before the change")]) == [
        False
    ]


async def test_stamp_of_kind_without_publisher_is_unknown() -> None:
    versions = MemoryVersions()
    versions.publisher(Kind.TWEET)
    assert versions.snapshot().stamp([TWEET]) is not None
    assert versions.snapshot().stamp([TWEET, key_of(Kind.USER, 10)]) is None


def test_publisher_refuses_kind_of_another_service() -> None:
    with pytest.raises(ValueError, match="does not own"):
        MemoryVersions().publisher(Kind.TWEET).changed([key_of(Kind.USER, 10)])


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=60), st.lists(st.integers(0, 59), max_size=20))
async def test_current_after_evictions_never_misses_a_change(changes: list[list[int]], loads: list[int]) -> None:
    versions = MemoryVersions(max_keys=3)
    publisher = versions.publisher(Kind.TWEET)
    values: list[tuple[int, Versioned[str]]] = []
    for step, ids in enumerate(changes):
        if step in loads:
            values.append((step, await cached(versions, key_of(Kind.TWEET, step % 10))))
        publisher.changed([key_of(Kind.TWEET, i) for i in ids])
        for since, value in values:
            changed = any(since % 10 in later for later in changes[since : step + 1])
            assert not (changed and (await versions.current([value]))[0])
    # Without later changes a new value is current.
    assert await versions.current([await cached(versions, TWEET)]) == [True]
