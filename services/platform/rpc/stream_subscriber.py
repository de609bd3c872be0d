"""Defines the base class of workers that read an endless server stream and open it again whenever it is lost."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any, Generic, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from services.platform.background import BackgroundWorker
from services.platform.log_events import LogEvent

M = TypeVar("M", bound=Message)

_log = structlog.get_logger(__name__)


class StreamSubscriber(BackgroundWorker, Generic[M]):
    """Passes the messages of a stream to `_receive`, and opens the stream again when it ends, fails or is silent.

    A stream is silent if it sends nothing for `silence_s` seconds; the server must send messages more often. The delay
    before the next attempt starts at `retry_first_s`, doubles up to `retry_max_s`, and starts again after a stream that
    lasted longer than `silence_s`.
    """

    def __init__(self, name: str, *, silence_s: float, retry_first_s: float, retry_max_s: float) -> None:
        super().__init__(name)
        self._silence_s = silence_s
        self._retry_first_s = retry_first_s
        self._retry_max_s = retry_max_s
        self._working = False

    @abstractmethod
    def _open(self) -> Any:
        """Starts the streaming call and returns the call object."""

    @abstractmethod
    def _receive(self, message: M) -> None:
        """Processes the next message of the stream."""

    def _lost(self) -> None:
        """Called when a stream has ended, before the next one is opened. Does nothing unless a subclass overrides
        it."""

    async def _run(self) -> None:
        delay_s = self._retry_first_s
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            self._working = False
            reason = await self._read_until_lost()
            self._lost()
            lasted_s = loop.time() - begun
            delay_s = self._retry_first_s if lasted_s > self._silence_s else min(delay_s * 2, self._retry_max_s)
            # During an outage each attempt fails at once. Only the loss of a stream that had delivered messages is
            # logged at level info, all others at debug.
            fields = {"stream": self._name, "reason": reason, "delay_s": delay_s}
            if self._working:
                _log.info(LogEvent.STREAM_LOST, **fields)
            else:
                _log.debug(LogEvent.STREAM_LOST, **fields)
            await asyncio.sleep(delay_s)

    async def _read_until_lost(self) -> str:
        """Reads one stream to its end and returns why it ended."""
        try:
            call = self._open()
            try:
                while True:
                    async with asyncio.timeout(self._silence_s):
                        message = await call.read()
                    if message is grpc.aio.EOF:
                        return "ended"
                    self._working = True
                    self._receive(message)
            finally:
                call.cancel()
        except asyncio.CancelledError:
            # A closed channel cancels its calls too; the worker stops only if its own task was cancelled.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return "cut off"
        except Exception as error:
            return repr(error)
