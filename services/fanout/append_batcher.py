"""Collects entries into AppendHomeEntries calls of up to IDS_PER_CALL user ids, CALLS_IN_FLIGHT at a time. Calls get
smaller while the timeline service exceeds the deadline of full ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
from roost.timeline.v1 import timeline_service_pb2 as timeline

from services.fanout.delivery_status import DeliveryTracker

# The proto's limits: user ids per call (sum over its entries), and user ids per entry.
IDS_PER_CALL = 10_000
IDS_PER_ENTRY = 1_000
# The smallest call, in user ids. Each call that exceeds its deadline halves the size down to this; each successful call
# adds a hundredth of IDS_PER_CALL.
MIN_IDS_PER_CALL = IDS_PER_ENTRY
GROWTH = IDS_PER_CALL // 100
# The timeline service applies one call while the next ones are collected; more calls would only queue there.
CALLS_IN_FLIGHT = 4


class AdaptiveBatchSize:
    """The number of user ids per call. It shrinks after DEADLINE_EXCEEDED, since a batch of the same size would fail
    again and never finish."""

    def __init__(self) -> None:
        self.ids = IDS_PER_CALL

    def record_outcome(self, error: BaseException | None) -> None:
        """Adjusts the size after a call that returned (`error` is None) or failed."""
        if error is None:
            self.ids = min(self.ids + GROWTH, IDS_PER_CALL)
        elif isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.ids = max(self.ids // 2, MIN_IDS_PER_CALL)


class HomeAppendBatcher:
    """Collects home timeline entries and sends them. Create one for each batch of events; `append` is the stub's
    AppendHomeEntries."""

    def __init__(self, append: Any, tracker: DeliveryTracker, size: AdaptiveBatchSize) -> None:
        self._append = append
        self._tracker = tracker
        self._size = size
        # By tweet id: entries not yet delivered, whether queued, in flight or failed.
        self._undelivered: Counter[int] = Counter()
        self._slots = asyncio.Semaphore(CALLS_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._request = timeline.AppendHomeEntriesRequest()
        self._ids = 0

    async def add(self, tweet_ids: Sequence[int], user_ids: Sequence[int]) -> None:
        """Queues these tweets for these users (at most IDS_PER_ENTRY). Waits while CALLS_IN_FLIGHT calls run. Raises
        the error of any earlier call."""
        for tweet_id in tweet_ids:
            if self._ids + len(user_ids) > self._size.ids:
                await self._send()
            # Once per entry, because `_call` subtracts once per entry.
            self._undelivered[tweet_id] += 1
            self._request.entries.add(tweet_id=tweet_id, user_ids=user_ids)
            self._ids += len(user_ids)

    async def finish(self) -> None:
        """Sends the rest and waits for all calls. Raises the first error of a call."""
        await self._send()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._check()

    async def wait_idle(self) -> None:
        """Waits until no call is in flight, whatever the outcome; sends nothing."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def has_delivered(self, tweet_id: int) -> bool:
        """Returns whether every entry added for the tweet was delivered."""
        return not self._undelivered[tweet_id]

    async def cancel(self) -> None:
        """Cancels the calls in flight."""
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
