from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.platform.caching import read_tracking
from services.platform.caching.read_tracking import MAX_READ_KEYS, ChangeTracker, reading


def test_a_reading_holds_until_something_it_read_changes() -> None:
    owner = ChangeTracker()
    with reading() as seen:
        owner.read((1, 2))
    assert seen.holds()
    owner.changed((3,))
    assert seen.holds()
    owner.changed((2,))
    assert not seen.holds()


def test_a_change_between_the_look_and_the_answer_counts() -> None:
    owner = ChangeTracker()
    with reading() as seen:
        owner.read((1,))
        owner.changed((1,))
    assert not seen.holds()


def test_what_changed_before_does_not_count() -> None:
    owner = ChangeTracker()
    owner.changed((1,))
    with reading() as seen:
        owner.read((1,))
    assert seen.holds()


def test_every_owner_counts() -> None:
    one, other = ChangeTracker(), ChangeTracker()
    with reading() as seen:
        one.read((1,))
        other.read((1,))
    other.changed((1,))
    assert not seen.holds()


def test_nothing_read_holds_never() -> None:
    with reading() as seen:
        pass
    assert not seen.holds()


def test_spoilt_is_spoilt_whatever_comes_after() -> None:
    owner = ChangeTracker()
    with reading() as seen:
        owner.read((1,))
        read_tracking.mark_uncacheable()
        owner.read((2,))
    assert not seen.holds()


def test_too_much_is_not_followed() -> None:
    owner = ChangeTracker()
    with reading() as seen:
        owner.read(range(MAX_READ_KEYS))
    assert seen.holds()
    with reading() as seen:
        owner.read(range(MAX_READ_KEYS))
        owner.read((1,))
    assert not seen.holds()


def test_outside_of_a_reading_nothing_is_noted() -> None:
    ChangeTracker().read((1,))
    read_tracking.mark_uncacheable()
    assert read_tracking.current_read_set() is None


async def test_two_calls_side_by_side_have_readings_of_their_own() -> None:
    owner = ChangeTracker()

    async def call(key: int) -> read_tracking.Reading:
        with reading() as seen:
            await asyncio.sleep(0)
            owner.read((key,))
        return seen

    one, other = await asyncio.gather(call(1), call(2))
    owner.changed((1,))
    assert not one.holds()
    assert other.holds()


@pytest.mark.parametrize("changes", [1, 5, 50])
def test_what_is_forgotten_counts_as_changed(changes: int) -> None:
    owner = ChangeTracker(most=4)
    with reading() as seen:
        owner.read((0,))
    for key in range(1, changes + 1):
        owner.changed((key,))
    assert len(owner._young) + len(owner._old) <= 8
    # With ten keys a half is full at least twice.
    assert seen.holds() == (changes < 8)


@given(st.lists(st.one_of(st.integers(0, 7), st.sampled_from(["read", "look"])), max_size=60))
def test_nothing_holds_that_changed(steps: list[int | str]) -> None:
    """Against a model that forgets nothing: what holds is unchanged. (What is unchanged need not hold for ever.)"""
    owner = ChangeTracker(most=3)
    last = dict.fromkeys(range(8), 0)
    kept: list[tuple[read_tracking.Reading, tuple[int, ...], int]] = []
    for now, step in enumerate(steps, 1):
        if step == "read":
            keys = (now % 8, (now * 5) % 8)
            with reading() as seen:
                owner.read(keys)
            kept.append((seen, keys, now))
        elif step == "look":
            for seen, keys, since in kept:
                assert not seen.holds() or all(last[key] < since for key in keys)
        else:
            owner.changed((int(step),))
            last[int(step)] = now
