"""Runs periodic jobs, such as a purge of deleted tweets, in bounded steps and on one process at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Counter, Gauge

from services.platform.log_events import LogEvent

# Seconds between two steps of a job, so that the store serves requests in between.
PAUSE_S = 0.05
# Bounds of the interval between two runs of a purge, in seconds. The interval is half the grace period, so that tests
# with a short grace period need not wait.
PURGE_EVERY_MOST_S = 60.0
PURGE_EVERY_LEAST_S = 0.5

_items = Counter("roost_job_items", "Items that a periodic job has processed.", ["job"])
_failures = Counter(
    "roost_job_failures", "Failed steps of a periodic job, which continues after its interval.", ["job"]
)
_finished_s = Gauge(
    "roost_job_finished_timestamp_seconds", "Unix time at which a periodic job last processed all items.", ["job"]
)

_log = structlog.get_logger(__name__)


async def always() -> bool:
    """Returns True: with the embedded backend only one process uses the data, so this process may always run the
    job."""
    return True


class PeriodicJob:
    """Calls `step(limit)` until it returns less than `limit`, then waits `every_s` seconds and starts again.

    `step` processes up to `limit` items and returns how many it has processed. The store must record the progress, so
    that an interrupted job continues where it was. `may_run` is called before each step and returns whether this
    process may run the job. If `step` or `may_run` raises, the error is logged and counted, and the job continues after
    `every_s` seconds.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[int], Awaitable[int]],
        *,
        limit: int,
        every_s: float,
        may_run: Callable[[], Awaitable[bool]] = always,
    ) -> None:
        self._name = name
        self._step = step
        self._limit = limit
        self._every_s = every_s
        self._may_run = may_run
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the job. It runs at once, so that it also runs in a process that restarts more often than every
        `every_s` seconds."""
        self._stopping.clear()
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Stops the job after the step in progress."""
        self._stopping.set()
        task, self._task = self._task, None
        if task is not None:
            await task

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._turn()
            except Exception as error:
                _failures.labels(self._name).inc()
                _log.warning(LogEvent.JOB_FAILED, job=self._name, error=repr(error))
            await self._wait(self._every_s)

    async def _turn(self) -> None:
        total, began = 0, time.monotonic()
        try:
            while await self._may_run() and not self._stopping.is_set():
                done = await self._step(self._limit)
                total += done
                _items.labels(self._name).inc(done)
                if done < self._limit:
                    _finished_s.labels(self._name).set_to_current_time()
                    return
                await self._wait(PAUSE_S)
        finally:
            if total:
                _log.info(
                    LogEvent.JOB_FINISHED, job=self._name, items=total, seconds=round(time.monotonic() - began, 3)
                )

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def purge_job(
    name: str,
    purge: Callable[[int, int], Awaitable[int]],
    *,
    clock: Callable[[], float],
    grace_s: int,
    limit: int,
    may_run: Callable[[], Awaitable[bool]],
) -> PeriodicJob:
    """Returns a worker that removes for good what was deleted more than `grace_s` seconds ago.

    `purge(before_s, limit)` removes up to `limit` items that were deleted before `before_s` (Unix seconds), and returns
    their number. `clock` returns Unix seconds. `may_run` returns whether this process may run the job now: it holds the
    job's lease.
    """

    async def step(limit: int) -> int:
        return await purge(int(clock()) - grace_s, limit)

    every_s = min(max(grace_s / 2, PURGE_EVERY_LEAST_S), PURGE_EVERY_MOST_S)
    return PeriodicJob(name, step, limit=limit, every_s=every_s, may_run=may_run)
