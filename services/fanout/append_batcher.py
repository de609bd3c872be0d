"""Sends home timeline entries (a tweet id and user ids) to the timeline service, many per AppendHomeEntries call, and
makes the calls smaller while they exceed their deadline."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
from roost.timeline.v1 import timeline_service_pb2 as timeline

from services.fanout.delivery_status import DeliveryTracker

# Maximum number of user ids per AppendHomeEntries call, summed over its entries, and maximum number per entry. The
# proto states both; a call with more is rejected with INVALID_ARGUMENT.
IDS_PER_CALL = 10_000
IDS_PER_ENTRY = 1_000
# Minimum number of user ids per call to which AdaptiveBatchSize can shrink: one full entry. Each call that exceeds its
# deadline halves the number of user ids per call, each successful call adds GROWTH.
MIN_IDS_PER_CALL = IDS_PER_ENTRY
GROWTH = IDS_PER_CALL // 100
# Maximum number of concurrent calls per batch of events; the next one waits until a call has ended. Enough to keep the
# timeline service busy; further calls would only queue there.
CALLS_IN_FLIGHT = 4


class AdaptiveBatchSize:
    """Holds `ids`, the maximum number of user ids per call. It shrinks after DEADLINE_EXCEEDED, because a call of the
    same size would fail again at each retry."""

    def __init__(self) -> None:
        self.ids = IDS_PER_CALL

    def record_outcome(self, error: BaseException | None) -> None:
        """Adjusts `ids` after a call. `error` is None if the call succeeded."""
        if error is None:
            self.ids = min(self.ids + GROWTH, IDS_PER_CALL)
        elif isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.ids = max(self.ids // 2, MIN_IDS_PER_CALL)


class HomeAppendBatcher:
    """Sends the home timeline entries of one batch of events; create a new one for each batch. `append` is
    AppendHomeEntries of the stub."""

    def __init__(self, append: Any, tracker: DeliveryTracker, size: AdaptiveBatchSize) -> None:
        self._append = append
        self._tracker = tracker
        self._size = size
        # By tweet id: the number of entries that are not delivered, whether they wait, are in flight or failed.
        self._undelivered: Counter[int] = Counter()
        self._slots = asyncio.Semaphore(CALLS_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._request = timeline.AppendHomeEntriesRequest()
        self._ids = 0

    async def add(self, tweet_ids: Sequence[int], user_ids: Sequence[int]) -> None:
        """Adds one entry per tweet with all `user_ids` (at most IDS_PER_ENTRY) to the next call, and starts the call if
        it is full. Waits while CALLS_IN_FLIGHT calls run. Raises the error of the first call that failed."""
        for tweet_id in tweet_ids:
            if self._ids + len(user_ids) > self._size.ids:
                await self._send()
            # Counts entries, not user ids: `_call` subtracts 1 per entry.
            self._undelivered[tweet_id] += 1
            self._request.entries.add(tweet_id=tweet_id, user_ids=user_ids)
            self._ids += len(user_ids)

    async def finish(self) -> None:
        """Sends the entries that wait, and waits until all calls have ended. Raises the error of the first call that
        failed."""
        await self._send()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._check()

    async def wait_idle(self) -> None:
        """Waits until all calls in flight have ended. Sends nothing and raises no error of a call."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def has_delivered(self, tweet_id: int) -> bool:
        """Returns whether all entries that were added for the tweet are delivered."""
        return not self._undelivered[tweet_id]

    async def cancel(self) -> None:
        """Cancels the calls in flight and waits until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self) -> None:
        request, self._request, self._ids = self._request, timeline.AppendHomeEntriesRequest(), 0
        if not request.entries:
            return
        await self._slots.acquire()
        self._check()
        task = asyncio.create_task(self._call(request))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _call(self, request: timeline.AppendHomeEntriesRequest) -> None:
        answer = await self._append(request)
        for entry, warm in zip(request.entries, answer.warm, strict=True):
            self._undelivered[entry.tweet_id] -= 1
            self._tracker.record_delivered(entry.tweet_id, len(entry.user_ids), warm)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if task.cancelled():
            return
        error = task.exception()
        self._size.record_outcome(error)
        self._failure = self._failure or error

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
