"""Calls of AppendHomeEntries: packed full, a few in flight, and smaller where the timeline service is too slow for full ones."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
from roost.timeline.v1 import timeline_service_pb2 as timeline

from services.fanout.delivery_status import Receipts

# The contract's bounds: user ids a call, over all entries, and user ids an entry.
IDS_A_CALL = 10_000
IDS_AN_ENTRY = 1_000
# User ids a call while calls run into their deadline: halved each time, down to one entry's worth, and back in steps of a hundredth.
LEAST_A_CALL = IDS_AN_ENTRY
GROWTH = IDS_A_CALL // 100
# One being applied while the next are packed; more would only queue at the timeline service.
CALLS_IN_FLIGHT = 4


class AdaptiveBatchSize:
    """User ids a call: what was too much for a deadline would be too much again, and the batch would never end."""

    def __init__(self) -> None:
        self.ids = IDS_A_CALL

    def ended(self, error: BaseException | None) -> None:
        """Learns from how a call ended."""
        if error is None:
            self.ids = min(self.ids + GROWTH, IDS_A_CALL)
        elif isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.ids = max(self.ids // 2, LEAST_A_CALL)


class HomeAppendBatcher:
    """Collects entries and sends them. One for each batch of events; `append` is the stub's method."""

    def __init__(self, append: Any, receipts: Receipts, size: AdaptiveBatchSize) -> None:
        self._append = append
        self._receipts = receipts
        self._size = size
        # Calls that are to carry, or carry, or failed to carry something of a tweet.
        self._owed: Counter[int] = Counter()
        self._slots = asyncio.Semaphore(CALLS_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._request = timeline.AppendHomeEntriesRequest()
        self._ids = 0

    async def add(self, tweet_ids: Sequence[int], user_ids: Sequence[int]) -> None:
        """These tweets for these users (≤ IDS_AN_ENTRY). Waits while CALLS_IN_FLIGHT are full; raises what a call raised."""
        for tweet_id in tweet_ids:
            if self._ids + len(user_ids) > self._size.ids:
                await self._send()
            # Once an entry, as it is taken away again.
            self._owed[tweet_id] += 1
            self._request.entries.add(tweet_id=tweet_id, user_ids=user_ids)
            self._ids += len(user_ids)

    async def finish(self) -> None:
        """Sends the rest and waits for all. Raises what a call raised."""
        await self._send()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._check()

    async def settle(self) -> None:
        """Waits for what is in flight, however it ends; sends nothing more."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def has_delivered(self, tweet_id: int) -> bool:
        """Whether all that was added of the tweet arrived."""
        return not self._owed[tweet_id]

    async def cancel(self) -> None:
        """Gives up what is in flight."""
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
            self._owed[entry.tweet_id] -= 1
            self._receipts.serve(entry.tweet_id, len(entry.user_ids), warm)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if task.cancelled():
            return
        error = task.exception()
        self._size.ended(error)
        self._failure = self._failure or error

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
