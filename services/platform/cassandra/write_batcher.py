"""Combines concurrent writes to one partition into one request.

There is no timer: while a request of a partition is in flight, further writes to the partition are queued, and when
that request completes, they are sent together as the next request.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Hashable

from services.platform.cassandra.keyspace import MAX_BATCH, Keyspace, Statement

_Pending = list[tuple[Statement, asyncio.Future[None]]]


class PartitionWriteBatcher:
    """Batches the writes of one keyspace, on one event loop. Pending writes are bounded by the number of callers."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        # By partition: the writes that wait for the request in flight. A partition has an entry while a task writes to
        # it.
        self._pending: dict[Hashable, _Pending] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def write(self, partition: Hashable, statement: Statement) -> None:
        """Writes the statement, in a batch with other writes to the same partition, and returns when Cassandra has
        confirmed the batch. If the batch fails, all callers whose statements are in it get the same error: UNAVAILABLE,
        DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED.

        `partition` identifies the table and partition; writes with equal values share a batch. The caller's deadline
        does not bound the write.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending = self._pending.get(partition)
        if pending is None:
            self._pending[partition] = [(statement, future)]
            # The task gets an empty context, because a batch belongs to several calls and must not inherit the deadline
            # of one of them.
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
