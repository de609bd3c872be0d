"""Starts the workers of a process, and stops workers and stores in order, each within a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

import structlog

from services.platform.log_events import LogEvent
from services.platform.service import Closable, Worker

log = structlog.get_logger()

# Maximum number of seconds in which a worker stops or a store closes. If it takes longer, the process logs an error and
# continues without waiting for it.
STOP_WITHIN_S = 20.0


class Lifecycle:
    """The running workers and the open stores of one process."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._stores: list[Closable] = []

    async def start(self, worker: Worker) -> None:
        """Starts a worker. If its `start` fails, raises that error, and `stop_workers` does not stop the worker."""
        await worker.start()
        self._workers.append(worker)

    def add_stores(self, stores: Iterable[Closable]) -> None:
        """Adds open stores, which `close_stores` closes."""
        self._stores.extend(stores)

    async def stop_workers(self) -> None:
        """Stops all workers that were started. Logs those that fail or take longer than STOP_WITHIN_S seconds."""
        # All workers are stopped concurrently, because each of a dozen workers may have to finish a batch and commit
        # its offset.
        stopping = [within(worker.stop(), f"{type(worker).__name__} did not stop") for worker in self._workers[::-1]]
        self._workers.clear()
        await asyncio.gather(*stopping)

    async def close_stores(self) -> None:
        """Closes the stores, the last added first. Logs those that fail or take longer than STOP_WITHIN_S seconds."""
        while self._stores:
            store = self._stores.pop()
            await within(store.close(), f"{type(store).__name__} did not close")


async def within(stopping: Awaitable[None], failure: str) -> None:
    """Waits up to STOP_WITHIN_S seconds for `stopping`. Logs `failure` if it takes longer or raises an exception."""
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await stopping
    except Exception as error:
        # The error is logged and not raised, because the remaining workers and stores must still be stopped.
        log.error(LogEvent.PROCESS_STOP_FAILED, failure=failure, exc_info=error)
