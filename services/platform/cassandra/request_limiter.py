"""What is on its way to Cassandra: bounded in number, and handed back to the loop in lots.

The driver answers on a thread of its own. A wake-up of the loop costs more than the answer it brings, so answers gather until the
loop comes to take them, and requests that belong together are taken as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# A node of the default size works on 128 writes and 32 reads at once: what is beyond this would only queue there, unseen by us.
# Far below the 32,768 streams of a connection, so that taking one never waits.
MAX_IN_FLIGHT = 1_024
# About a second's worth behind those in flight: a longer queue would only hold calls past their deadlines.
MAX_WAITING = 4_096

Send = Callable[[], Any]
"""Sends one request and returns the driver's future of it."""


class Answer(NamedTuple):
    """One request's: the rows (None where it gives none) or the driver's error, and the driver's future."""

    rows: list[tuple[Any, ...]] | None
    error: Exception | None
    future: Any = None


class _Batch:
    """Requests that were sent together. It is done when the last is answered."""

    __slots__ = ("answers", "future", "missing")

    def __init__(self, size: int, future: asyncio.Future[list[Answer]]) -> None:
        self.answers: list[Answer | None] = [None] * size
        self.missing = size
        self.future = future


class RequestLimiter:
    """The requests of one process, on one loop."""

    def __init__(self, most: int = MAX_IN_FLIGHT, most_waiting: int = MAX_WAITING) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = most
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._lots: set[_Batch] = set()
        # Guards `missing`: the driver's threads answer, and this one where a request fails at once.
        self._lock = threading.Lock()
        self._done: deque[_Batch] = deque()
        self._woken = False
        self._open = True

    async def run(self, sends: Sequence[Send], deadline: float) -> list[Answer]:
        """Sends these requests (at most MAX_IN_FLIGHT) and returns their answers in order, once all are there.

        Waits for room until `deadline` (the loop's seconds), then DEADLINE_EXCEEDED. RESOURCE_EXHAUSTED where too many wait already,
        UNAVAILABLE once closed. When an answer comes is for the driver's own time-outs.
        """
        if not self._open:
            raise errors.unavailable("the store is closed", reason=Reason.STORE_UNAVAILABLE)
        if not sends:
            return []
        await self._enter(len(sends), deadline)
        lot = _Batch(len(sends), self._loop.create_future())
        self._lots.add(lot)
        for place, send in enumerate(sends):
            try:
                future = send()
            except Exception as error:
                self._answer(lot, place, Answer(None, error))
            else:
                self._follow(lot, place, future)
        return await lot.future

    def close(self) -> None:
        """Fails what is still out, and what comes later."""
        self._open = False
        for lot in list(self._lots):
            if not lot.future.done():
                lot.future.set_exception(errors.unavailable("the store was closed", reason=Reason.STORE_UNAVAILABLE))
        for _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(errors.unavailable("the store was closed", reason=Reason.STORE_UNAVAILABLE))

    async def _enter(self, count: int, deadline: float) -> None:
        if not self._waiting and self._free >= count:
            self._free -= count
            return
        if len(self._waiting) >= self._most_waiting:
            raise errors.resource_exhausted("too many requests wait for the store")
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((count, waiter))
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave(count)
            if isinstance(error, TimeoutError):
                raise errors.deadline_exceeded("the store was too busy to begin in time") from error
            raise

    def _leave(self, count: int) -> None:
        self._free += count
        # In order: a large lot is not passed by for ever by small ones.
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            wanted, waiter = self._waiting.popleft()
            if not waiter.done():
                self._free -= wanted
                waiter.set_result(None)

    def _follow(self, lot: _Batch, place: int, future: Any) -> None:
        def succeed(rows: list[tuple[Any, ...]] | None) -> None:
            self._answer(lot, place, Answer(rows, None, future))

        def fail(error: Exception) -> None:
            self._answer(lot, place, Answer(None, error, future))

        future.add_callbacks(succeed, fail)

    def _answer(self, lot: _Batch, place: int, answer: Answer) -> None:
        """Called on any thread."""
        with self._lock:
            if lot.answers[place] is not None:
                return
            lot.answers[place] = answer
            lot.missing -= 1
            if lot.missing:
                return
        self._done.append(lot)
        # Two threads may both find it asleep: then it wakes once for nothing.
        if not self._woken:
            self._woken = True
            # A loop that was closed before the connections has nobody waiting.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # Before it looks: what is put there while it looks wakes it again.
        self._woken = False
        while self._done:
            lot = self._done.popleft()
            self._lots.discard(lot)
            if not lot.future.done():
                lot.future.set_result([answer for answer in lot.answers if answer is not None])
            # Room is made by answers, not by callers who stopped waiting: their requests are still out.
            self._leave(len(lot.answers))
