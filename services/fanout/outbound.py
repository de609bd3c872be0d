"""Calls of AppendHomeEntries: packed full, and a few in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from roost.timeline.v1 import timeline_service_pb2 as timeline

from services.fanout.receipts import Receipts

# The contract's bounds: user ids a call, over all entries, and user ids an entry.
IDS_A_CALL = 10_000
IDS_AN_ENTRY = 1_000
# One being applied while the next are packed; more would only queue at the timeline service.
CALLS_IN_FLIGHT = 4


class Outbound:
    """Collects entries and sends them. One for each batch of events; `append` is the stub's method."""

    def __init__(self, append: Any, receipts: Receipts) -> None:
        self._append = append
        self._receipts = receipts
        self._slots = asyncio.Semaphore(CALLS_IN_FLIGHT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._request = timeline.AppendHomeEntriesRequest()
        self._ids = 0

    async def add(self, tweet_ids: Sequence[int], user_ids: Sequence[int]) -> None:
        """These tweets for these users (≤ IDS_AN_ENTRY). Waits while CALLS_IN_FLIGHT are full; raises what a call raised."""
        for tweet_id in tweet_ids:
            if self._ids + len(user_ids) > IDS_A_CALL:
                await self._send()
            self._request.entries.add(tweet_id=tweet_id, user_ids=user_ids)
            self._ids += len(user_ids)

    async def finish(self) -> None:
        """Sends the rest and waits for all. Raises what a call raised."""
        await self._send()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._check()

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
            self._receipts.serve(entry.tweet_id, len(entry.user_ids), warm)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
