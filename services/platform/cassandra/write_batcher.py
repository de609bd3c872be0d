"""Writes to one partition that come at the same time go as one: many callers pay for one request.

There is no timer: while a write of the partition is under way the next ones gather, and leave together when it is answered.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Hashable

from services.platform.cassandra.keyspace import MAX_BATCH, Keyspace, Statement

_Pending = list[tuple[Statement, asyncio.Future[None]]]


class PartitionWriteBatcher:
    """Of one keyspace, on one loop. What waits is bounded by its callers."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        # A partition is here while somebody writes to it.
        self._pending: dict[Hashable, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def write(self, partition: Hashable, statement: Statement) -> None:
        """Returns once it is written; errors as `Keyspace.write`, for all that left together. Not bound by the caller's deadline.

        `partition` names where the row lies, the table included: what bears the same name leaves in one batch.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending = self._pending.get(partition)
        if pending is None:
            self._pending[partition] = [(statement, future)]
            # Nobody's call: what leaves together belongs to many.
            task = asyncio.get_running_loop().create_task(self._flush(partition), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            pending.append((statement, future))
        await future

    async def _flush(self, partition: Hashable) -> None:
        while pending := self._pending[partition]:
            batch, self._pending[partition] = pending[:MAX_BATCH], pending[MAX_BATCH:]
            failure: Exception | None = None
            try:
                await self._keyspace.unlogged_batch([statement for statement, _ in batch])
            except Exception as error:
                failure = error
            for _, future in batch:
                if future.done():
                    continue
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(failure)
        del self._pending[partition]
