"""Tests deadlines: no timer runs until the awaitable waits for the first time."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from services.platform.rpc.deadlines import with_deadline
from tests.waiting import forever

LONG_S = 30.0
NEVER = float("inf")


async def answer(value: int, *waits: float) -> int:
    for seconds in waits:
        await asyncio.sleep(seconds)
    return value


@pytest.mark.parametrize("deadline", [0.0, NEVER])
async def test_with_deadline_past_awaitable_without_wait_returns(deadline: float) -> None:
    assert await with_deadline(deadline, answer(1)) == 1


@pytest.mark.parametrize("left_s", [LONG_S, NEVER])
async def test_with_deadline_awaitable_within_time_returns(left_s: float) -> None:
    assert await with_deadline(monotonic() + left_s, answer(2, 0.0, 0.001, 0.0)) == 2


async def test_with_deadline_exceeded_cancels_awaitable() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await with_deadline(monotonic() + 0.01, work())
    assert ended.is_set()
    # The timeout must not leave a cancellation pending in this task.
    await asyncio.sleep(0)


@pytest.mark.parametrize("left_s", [LONG_S, NEVER])
async def test_with_deadline_started_coroutine_continues_after_first_step(left_s: float) -> None:
    work = answer(3, 0.001)
    assert await with_deadline(monotonic() + left_s, work, work.send(None)) == 3
    late = answer(4, LONG_S)
    with pytest.raises(TimeoutError):
        await with_deadline(monotonic() + 0.01, late, late.send(None))


async def test_with_deadline_cancelled_by_caller_raises_cancelled_error() -> None:
    task = asyncio.create_task(_awaited(with_deadline(monotonic() + LONG_S, answer(1, LONG_S))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_with_deadline_nested_only_expired_deadline_raises_timeout() -> None:
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


async def test_with_deadline_exception_before_or_after_first_wait_is_raised() -> None:
    async def fails(wait: bool) -> None:
        if wait:
            await asyncio.sleep(0)
        raise LookupError

    for wait in (False, True):
        with pytest.raises(LookupError):
            await with_deadline(monotonic() + LONG_S, fails(wait))


async def _awaited(awaitable: with_deadline[int]) -> int:
    return await awaitable
