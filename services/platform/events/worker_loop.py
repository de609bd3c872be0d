"""Runs a background task that calls a step until no work is left, then waits until it is woken. It retries a failed
step."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from services.platform.log_events import LogEvent

# Delay in seconds before the first retry of a failed step; it doubles with each further failure.
RETRY_FIRST_S = 0.05
# Maximum delay in seconds between two retries, so that the end of an outage is noticed within this time.
RETRY_MOST_S = 2.0

_log = structlog.get_logger(__name__)


class WorkerLoop:
    """Calls `step` until it returns False (no more work), then waits for `wake`. `idle` is set while the loop waits.

    If `step` raises, the loop calls it again after a delay that doubles from `retry_first_s` to RETRY_MOST_S seconds.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[bool]], retry_first_s: float = RETRY_FIRST_S) -> None:
        self.idle = asyncio.Event()
        self._name = name
        self._step = step
        self._retry_first_s = retry_first_s
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the loop. Has no effect if it runs already."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Stops the loop after the current step; a wait in `backoff` ends at once. The loop can be started again."""
        self._stopping.set()
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    def wake(self) -> None:
        """Makes the loop call `step` again."""
        self.idle.clear()
        self._wake.set()

    async def backoff(self, failures: int) -> bool:
        """Waits before a retry and returns True; returns False at once if `stop` was called.

        The delay doubles with each of the consecutive `failures` (≥ 1) from `retry_first_s` to RETRY_MOST_S seconds.
        """
        with contextlib.suppress(TimeoutError):
            delay_s = min(self._retry_first_s * 2 ** min(failures - 1, 30), RETRY_MOST_S)
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        return not self._stopping.is_set()

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            # The event is cleared before the step, so that work that arrives during the step wakes the loop again.
            self._wake.clear()
            try:
                worked = await self._step()
                failures = 0
            except Exception as error:
                failures += 1
                _log.warning(LogEvent.WORKER_STEP_FAILED, task=self._name, failures=failures, error=repr(error))
                await self.backoff(failures)
                continue
            if not worked and not self._wake.is_set():
                self.idle.set()
                await self._wake.wait()
