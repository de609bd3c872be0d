"""A task that works while there is work, sleeps until woken, and survives failures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

RETRY_FIRST_S = 0.05
# The end of an outage is noticed within this.
RETRY_MOST_S = 2.0

_log = structlog.get_logger(__name__)


class WorkerLoop:
    """Calls `step` until it answers False (nothing to do), then waits for `wake`; `idle` is set meanwhile.

    A step that raises is called again, after rests that double from `retry_first_s` to RETRY_MOST_S seconds.
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
        """Begins; a pump that runs goes on as it is."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Ends after the step at hand, or in the midst of its `rest`. It may be started again."""
        self._stopping.set()
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None

    def wake(self) -> None:
        """Says that there may be work."""
        self.idle.clear()
        self._wake.set()

    async def rest(self, failures: int) -> bool:
        """Waits, the longer the more failures (≥ 1) there were in a row; False at once when `stop` was called."""
        with contextlib.suppress(TimeoutError):
            delay_s = min(self._retry_first_s * 2 ** min(failures - 1, 30), RETRY_MOST_S)
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        return not self._stopping.is_set()

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            # Cleared before the step looks: what comes while it looks wakes it again.
            self._wake.clear()
            try:
                worked = await self._step()
                failures = 0
            except Exception as error:
                failures += 1
                _log.warning("failed, will go on", task=self._name, failures=failures, error=repr(error))
                await self.rest(failures)
                continue
            if not worked and not self._wake.is_set():
                self.idle.set()
                await self._wake.wait()
