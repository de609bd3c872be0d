"""Tests snowflake ids: they increase for every behaviour of the clock."""

from __future__ import annotations

import pytest

from services.platform.ids.snowflake import (
    CLOCK_BACK_WAIT_MS,
    EPOCH_MS,
    LAST_MS,
    MAX_WORKER,
    RESERVE_MS,
    Snowflake,
    first_id_at,
    timestamp_ms,
)
from services.platform.rpc import errors
from tests.minting import NOW, Clock, unavailable


async def test_mint_id_contains_time_and_worker() -> None:
    snowflake = await Snowflake(MAX_WORKER, Clock()).mint()
    assert timestamp_ms(snowflake) == NOW
    assert snowflake >> 12 & 0x3FF == MAX_WORKER
    assert first_id_at(NOW) <= snowflake < first_id_at(NOW + 1)
    assert first_id_at(0) == 0
    assert await Snowflake(MAX_WORKER, Clock(LAST_MS)).mint() < 2**63


@pytest.mark.parametrize("worker", [-1, MAX_WORKER + 1])
def test_snowflake_worker_above_ten_bits_raises_value_error(worker: int) -> None:
    with pytest.raises(ValueError, match="worker"):
        Snowflake(worker, Clock())


async def test_mint_full_millisecond_continues_in_next() -> None:
    clock = Clock()
    ids = Snowflake(0, clock, sleep=clock.sleep)
    minted = [await ids.mint() for _ in range(4_097)]
    assert minted == sorted(set(minted))
    assert [timestamp_ms(minted[i]) for i in (0, 4_095, 4_096)] == [NOW, NOW, NOW + 1]


async def test_mint_usually_returns_without_waiting() -> None:
    mint = Snowflake(0, Clock()).mint()
    with pytest.raises(StopIteration):
        mint.send(None)


async def test_mint_clock_back_waits_if_short_and_is_unavailable_if_long() -> None:
    clock = Clock()
    ids = Snowflake(0, clock, sleep=clock.sleep)
    first = await ids.mint()
    clock.now_ms -= CLOCK_BACK_WAIT_MS
    assert await ids.mint() > first
    assert clock.slept >= CLOCK_BACK_WAIT_MS
    clock.now_ms -= CLOCK_BACK_WAIT_MS + 1
    with pytest.raises(errors.RoostError, check=unavailable):
        await ids.mint()
    clock.now_ms += CLOCK_BACK_WAIT_MS + 2
    assert await ids.mint() > first


async def test_move_to_other_worker_reserves_again_and_ids_increase() -> None:
    clock, reserved = Clock(), []
    ids = Snowflake(3, clock, sleep=clock.sleep, reserve=lambda ms: reserved.append(ms) or ms + RESERVE_MS)
    before = await ids.mint()
    # Also if the new worker number is lower, within the same millisecond.
    ids.move(2, NOW - 5)
    after = await ids.mint()
    assert after > before
    assert after >> 12 & 0x3FF == 2
    assert reserved == [NOW, timestamp_ms(after)]
    # Ids that an earlier owner of the worker number may have minted are skipped.
    ids.move(1, clock.now_ms + 10)
    assert timestamp_ms(await ids.mint()) > reserved[1] + 10


@pytest.mark.parametrize("now_ms", [EPOCH_MS - 1, LAST_MS + 1])
async def test_mint_time_out_of_range_is_unavailable(now_ms: int) -> None:
    with pytest.raises(errors.RoostError, check=unavailable):
        await Snowflake(0, Clock(now_ms)).mint()


async def test_mint_clock_standing_still_is_unavailable() -> None:
    async def no_sleep(_: float) -> None: ...

    ids = Snowflake(0, Clock(), high_water_ms=NOW, sleep=no_sleep)
    with pytest.raises(errors.RoostError, check=unavailable):
        await ids.mint()


async def test_fault_after_clock_was_ahead_is_reported_until_caught_up() -> None:
    hour_ms = 3_600_000
    clock = Clock(NOW + hour_ms)
    ids = Snowflake(0, clock)
    await ids.mint()
    assert (ids.fault(), ids.behind_ms()) == ("", 0)
    clock.now_ms = NOW
    assert ids.behind_ms() == hour_ms
    assert "3600 s behind" in ids.fault()
    with pytest.raises(errors.RoostError, check=unavailable):
        ids.try_mint()
    clock.now_ms = NOW + hour_ms + 1
    await ids.mint()
    assert (ids.fault(), ids.behind_ms()) == ("", 0)


def test_fault_after_short_step_back_is_empty() -> None:
    assert Snowflake(0, Clock(NOW), high_water_ms=NOW + RESERVE_MS).fault() == ""
    assert "cannot hold" in Snowflake(0, Clock(EPOCH_MS - 1)).fault()
