"""Two coroutines at the same time, if the first one waits."""

from __future__ import annotations

import asyncio

import pytest

from services.platform.overlap import overlapped


async def answered(value: int) -> int:
    return value


async def failing() -> int:
    raise ConnectionError("down")


async def test_overlapped_starts_second_while_first_waits() -> None:
    gate = asyncio.Event()
    order: list[str] = []

    async def first() -> str:
        order.append("first begins")
        await gate.wait()
        order.append("first ends")
        return "a"

    async def second() -> str:
        order.append("second")
        gate.set()
        return "b"

    assert await overlapped(first(), second()) == ("a", "b")
    assert order == ["first begins", "second", "first ends"]


async def test_overlapped_without_wait_makes_no_task() -> None:
    tasks = []

    async def second() -> int:
        tasks.append(asyncio.current_task())
        return 2

    assert await overlapped(answered(1), second()) == (1, 2)
    assert tasks == [asyncio.current_task()]


async def test_overlapped_error_of_one_cancels_the_other() -> None:
    ended: list[str] = []

    async def endless() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return 0

    async def later_failing() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise ConnectionError("down")

    with pytest.raises(ConnectionError):
        await overlapped(later_failing(), endless())
    await asyncio.sleep(0)
    assert ended == ["cancelled"]
    with pytest.raises(ConnectionError):
        await overlapped(failing(), answered(1))
    with pytest.raises(ConnectionError):
        await overlapped(answered(1), failing())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_overlapped_timeout_within_first_ends_first_only() -> None:
    async def slow() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return ""

    assert await overlapped(slow(), answered(1)) == ("timed out", 1)
