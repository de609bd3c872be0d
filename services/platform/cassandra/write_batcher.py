"""Writes to one partition that come at the same time go as one: many callers pay for one request.

There is no timer: while a write of the partition is under way the next ones gather, and leave together when it is answered.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Hashable

from services.platform.cassandra.keyspace import MAX_BATCH, Keyspace, Statement

_Waiting = list[tuple[Statement, asyncio.Future[None]]]


class PartitionWriteBatcher:
    """Of one keyspace, on one loop. What waits is bounded by its callers."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        # A partition is here while somebody writes to it.
        self._waiting: dict[Hashable, _Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def write(self, partition: Hashable, step: Statement) -> None:
        """Returns once it is written; errors as `Keyspace.write`, for all that left together. Not bound by the caller's deadline.

        `partition` names where the row lies, the table included: what bears the same name leaves in one batch.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(partition)
        if waiting is None:
            self._waiting[partition] = [(step, future)]
            # Nobody's call: what leaves together belongs to many.
            task = asyncio.get_running_loop().create_task(self._carry(partition), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            waiting.append((step, future))
        await future

    async def _carry(self, partition: Hashable) -> None:
        while waiting := self._waiting[partition]:
            lot, self._waiting[partition] = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
            failure: Exception | None = None
            try:
                await self._keyspace.unlogged_batch([step for step, _ in lot])
            except Exception as error:
                failure = error
            for _, future in lot:
                if future.done():
                    continue
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)
        del self._waiting[partition]
