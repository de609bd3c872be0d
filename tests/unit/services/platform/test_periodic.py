"""Tests periodic jobs: steps are repeated, also after failures, and only while this process may run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from services.platform.periodic import PeriodicJob, always
from tests.waiting import WITHIN_S, wait_until

LIMIT = 3


class Work:
    """Work of `items` items; a step fails once at each number of remaining items in `fails_at`."""

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


async def test_job_full_step_is_repeated_at_once_and_later_steps_follow() -> None:
    work = Work(2 * LIMIT + 1)
    async with running(work):
        await wait_until(lambda: len(work.steps) >= 3)
        assert work.steps[:3] == [LIMIT, LIMIT, 1]
        work.items = 1
        await wait_until(lambda: not work.items)


async def test_job_failed_step_is_retried_at_next_interval() -> None:
    work = Work(2 * LIMIT, fails_at=[LIMIT])
    async with running(work):
        await wait_until(lambda: not work.items)


async def test_job_runs_no_step_until_may_run_is_true() -> None:
    work, turns = Work(1), iter([False, False, True])

    async def may_run() -> bool:
        return next(turns, True)

    async with running(work, may_run):
        await wait_until(lambda: bool(work.steps))
    assert next(turns, None) is None


async def test_stop_waits_for_step_in_progress() -> None:
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
