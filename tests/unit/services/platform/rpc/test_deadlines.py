"""A deadline that costs nothing until something is waited for."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from services.platform.rpc.deadlines import with_deadline

LONG_S = 30.0
NEVER = float("inf")


async def answer(value: int, *waits: float) -> int:
    for seconds in waits:
        await asyncio.sleep(seconds)
    return value


@pytest.mark.parametrize("deadline", [0.0, NEVER])
async def test_what_does_not_wait_is_never_late(deadline: float) -> None:
    assert await with_deadline(deadline, answer(1)) == 1


@pytest.mark.parametrize("left_s", [LONG_S, NEVER])
async def test_what_waits_within_its_time_answers(left_s: float) -> None:
    assert await with_deadline(monotonic() + left_s, answer(2, 0.0, 0.01, 0.0)) == 2


async def test_what_waits_longer_is_cancelled() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(LONG_S)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await with_deadline(monotonic() + 0.01, work())
    assert ended.is_set()
    # The task that waited goes on as if nothing had been cancelled.
    await asyncio.sleep(0)


@pytest.mark.parametrize("left_s", [LONG_S, NEVER])
async def test_a_first_step_that_the_caller_made_is_not_made_again(left_s: float) -> None:
    work = answer(3, 0.01)
    assert await with_deadline(monotonic() + left_s, work, work.send(None)) == 3
    late = answer(4, LONG_S)
    with pytest.raises(TimeoutError):
        await with_deadline(monotonic() + 0.01, late, late.send(None))


async def test_a_cancellation_from_outside_is_no_time_out() -> None:
    task = asyncio.create_task(_awaited(with_deadline(monotonic() + LONG_S, answer(1, LONG_S))))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_inner_of_two_deadlines_is_told_from_the_outer() -> None:
    async def inner() -> str:
        try:
            await with_deadline(monotonic() + 0.01, answer(1, LONG_S))
        except TimeoutError:
            await asyncio.sleep(0)
            return "inner"
        return "none"

    assert await with_deadline(monotonic() + LONG_S, inner()) == "inner"
    with pytest.raises(TimeoutError):
        await with_deadline(monotonic() + 0.01, _awaited(with_deadline(monotonic() + LONG_S, answer(1, LONG_S))))


async def test_exceptions_pass_from_before_and_after_the_first_wait() -> None:
    async def fails(wait: bool) -> None:
        if wait:
            await asyncio.sleep(0)
        raise LookupError

    for wait in (False, True):
        with pytest.raises(LookupError):
            await with_deadline(monotonic() + LONG_S, fails(wait))


async def _awaited(awaitable: with_deadline[int]) -> int:
    return await awaitable
