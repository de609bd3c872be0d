"""Tests readings: they hold until a key that they read changes, or is evicted."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.platform.caching import read_tracking
from services.platform.caching.read_tracking import MAX_READ_KEYS, ChangeTracker, track_reads


def test_reading_holds_until_a_read_key_changes() -> None:
    owner = ChangeTracker()
    with track_reads() as seen:
        owner.read((1, 2))
    assert seen.is_current()
    owner.changed((3,))
    assert seen.is_current()
    owner.changed((2,))
    assert not seen.is_current()


def test_reading_key_changed_during_reading_does_not_hold() -> None:
    owner = ChangeTracker()
    with track_reads() as seen:
        owner.read((1,))
        owner.changed((1,))
    assert not seen.is_current()


def test_reading_key_changed_earlier_holds() -> None:
    owner = ChangeTracker()
    owner.changed((1,))
    with track_reads() as seen:
        owner.read((1,))
    assert seen.is_current()


def test_reading_of_several_trackers_ends_with_change_of_any() -> None:
    one, other = ChangeTracker(), ChangeTracker()
    with track_reads() as seen:
        one.read((1,))
        other.read((1,))
    other.changed((1,))
    assert not seen.is_current()


def test_reading_without_keys_does_not_hold() -> None:
    with track_reads() as seen:
        pass
    assert not seen.is_current()


def test_reading_marked_uncacheable_never_holds() -> None:
    owner = ChangeTracker()
    with track_reads() as seen:
        owner.read((1,))
        read_tracking.mark_uncacheable()
        owner.read((2,))
    assert not seen.is_current()


def test_reading_above_max_keys_does_not_hold() -> None:
    owner = ChangeTracker()
    with track_reads() as seen:
        owner.read(range(MAX_READ_KEYS))
    assert seen.is_current()
    with track_reads() as seen:
        owner.read(range(MAX_READ_KEYS))
        owner.read((1,))
    assert not seen.is_current()


def test_read_outside_reading_is_ignored() -> None:
    ChangeTracker().read((1,))
    read_tracking.mark_uncacheable()
    assert read_tracking.current_read_set() is None


async def test_concurrent_calls_have_separate_readings() -> None:
    owner = ChangeTracker()

    async def call(key: int) -> read_tracking.ReadSet:
        with track_reads() as seen:
            await asyncio.sleep(0)
            owner.read((key,))
        return seen

    one, other = await asyncio.gather(call(1), call(2))
    owner.changed((1,))
    assert not one.is_current()
    assert other.is_current()


@pytest.mark.parametrize("changes", [1, 5, 50])
def test_reading_evicted_key_counts_as_changed(changes: int) -> None:
    owner = ChangeTracker(max_keys=4)
    with track_reads() as seen:
        owner.read((0,))
    for key in range(1, changes + 1):
        owner.changed((key,))
    assert len(owner._changes) <= 8
    # With 4 keys per half, 8 changes evict every earlier key.
    assert seen.is_current() == (changes < 8)


@given(st.lists(st.one_of(st.integers(0, 7), st.sampled_from(["read", "look"])), max_size=60))
def test_reading_that_holds_is_unchanged_in_model(steps: list[int | str]) -> None:
    """A reading that holds has no key that changed in a model without eviction. The reverse need not be true."""
    owner = ChangeTracker(max_keys=3)
    last = dict.fromkeys(range(8), 0)
    kept: list[tuple[read_tracking.ReadSet, tuple[int, ...], int]] = []
    for now, step in enumerate(steps, 1):
        if step == "read":
            keys = (now % 8, (now * 5) % 8)
            with track_reads() as seen:
                owner.read(keys)
            kept.append((seen, keys, now))
        elif step == "look":
            for seen, keys, since in kept:
                assert not seen.is_current() or all(last[key] < since for key in keys)
        else:
            owner.changed((int(step),))
            last[int(step)] = now
