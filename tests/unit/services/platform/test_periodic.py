"""A periodic job goes on step by step, through failures, and only where it is this process's turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from services.platform.periodic import PeriodicJob, always

LIMIT = 3
WITHIN_S = 10.0


class Work:
    """So many items; a failure is raised once where its number of items is left."""

    def __init__(self, items: int, fails_at: Sequence[int] = ()) -> None:
        self.items = items
        self.steps: list[int] = []
        self._fails_at = set(fails_at)

    async def step(self, limit: int) -> int:
        if self.items in self._fails_at:
            self._fails_at.remove(self.items)
            raise OSError("the disk is full")
        done = min(limit, self.items)
        self.items -= done
        self.steps.append(done)
        return done


@asynccontextmanager
async def running(work: Work, may_run: Callable[[], Awaitable[bool]] = always) -> AsyncIterator[PeriodicJob]:
    job = PeriodicJob("test-job", work.step, limit=LIMIT, every_s=0.02, may_run=may_run)
    await job.start()
    try:
        yield job
    finally:
        await job.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_job_with_more_than_a_step_goes_on_at_once_and_looks_again_later() -> None:
    work = Work(2 * LIMIT + 1)
    async with running(work):
        await until(lambda: len(work.steps) >= 3)
        assert work.steps[:3] == [LIMIT, LIMIT, 1]
        work.items = 1
        await until(lambda: not work.items)


async def test_job_whose_step_fails_goes_on_at_its_next_turn() -> None:
    work = Work(2 * LIMIT, fails_at=[LIMIT])
    async with running(work):
        await until(lambda: not work.items)


async def test_job_of_another_process_is_left_alone_until_it_is_this_ones_turn() -> None:
    work, turns = Work(1), iter([False, False, True])

    async def may_run() -> bool:
        return next(turns, True)

    async with running(work, may_run):
        await until(lambda: bool(work.steps))
    assert next(turns, None) is None


async def test_stop_ends_after_the_step_under_way() -> None:
    begun, end = asyncio.Event(), asyncio.Event()
    done: list[int] = []

    async def step(limit: int) -> int:
        begun.set()
        await end.wait()
        done.append(limit)
        return limit

    job = PeriodicJob("test-job", step, limit=LIMIT, every_s=60)
    await job.start()
    await begun.wait()
    stopping = asyncio.create_task(job.stop())
    await asyncio.sleep(0)
    end.set()
    await asyncio.wait_for(stopping, WITHIN_S)
    assert done == [LIMIT]
