"""Defines the base class of workers that run one endless task, such as a poller, a sweeper or the subscriber of a
stream."""

from __future__ import annotations

import asyncio
import contextvars
from abc import ABC, abstractmethod

import structlog

from services.platform.log_events import LogEvent

# Seconds after which a failed worker runs again: a short interruption, and long enough that repeated failures do not
# fill the log.
RESTART_S = 2.0

_log = structlog.get_logger(__name__)


class BackgroundWorker(ABC):
    """A Worker whose `_run` runs from `start` until `stop` cancels it.

    Its task runs in an empty context, because it belongs to no call and has neither a deadline nor an actor. If `_run`
    raises, the error is logged and `_run` is called again after RESTART_S seconds.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the task. Has no effect if the task runs already."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._supervise(), name=self._name, context=contextvars.Context()
            )

    async def stop(self) -> None:
        """Cancels the task and waits until it has ended. The worker can be started again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    @property
    def is_started(self) -> bool:
        """True between `start` and `stop`."""
        return self._task is not None

    async def _supervise(self) -> None:
        while True:
            try:
                await self._run()
                return
            except Exception as error:
                _log.error(LogEvent.BACKGROUND_WORKER_FAILED, worker=self._name, exc_info=error)
            await asyncio.sleep(RESTART_S)

    @abstractmethod
    async def _run(self) -> None:
        """Runs until the task is cancelled. Each subclass implements this method."""
