"""Finishes changes whose process died before the follow-up writes (lists, events, relation versions).

A writer stores an intent, in a partition of the current minute, before each change. When a minute is over, the first
process that notices this sweeps the intents of that minute.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.intent_log import LIVE_S, SHARDS
from services.platform.background import BackgroundWorker
from services.platform.cassandra.keyspace import Keyspace, Row
from services.platform.log_events import LogEvent

# Average time in seconds between two sweeps of one process.
EVERY_S = 30.0
# Time in seconds from the end of a minute until its intents are swept. Writers take seconds to finish, and clocks
# differ by less than this time.
SETTLED_AFTER_S = 60
# Number of past minutes that the first sweep of a mesh covers, because processes may have written before any sweep was
# recorded.
FIRST_LOOK_MINUTES = 60
# Maximum number of past minutes that a sweep covers. The intents of earlier minutes have expired.
MAX_LOOK_MINUTES = LIVE_S // 60
# Maximum number of partitions read concurrently. Nearly all partitions but the newest are empty, so the results are
# small.
PARTITIONS_PER_READ = 256
# Maximum number of rows per read; more rows are read page by page.
PAGE_ROWS = 1_000
_SWEPT_TO = "swept_to_minute"

log = structlog.get_logger(__name__)


class IntentSweeper(BackgroundWorker):
    """A worker that reads the intents of past minutes and runs the follow-up writes of unfinished changes. Also
    finishes changes of processes that have ended. Several processes may sweep at once, because the follow-up writes are
    idempotent. `clock` returns Unix seconds."""

    def __init__(self, keyspace: Keyspace, edge_writer: EdgeWriter, clock: Callable[[], float]) -> None:
        super().__init__("graph-sweeper")
        self._keyspace = keyspace
        self._edge_writer = edge_writer
        self._clock = clock

    async def sweep(self) -> int:
        """Runs the follow-up writes of all unfinished changes in the past minutes that no process has swept. Returns
        the number of unfinished intents that it found. Raises UNAVAILABLE, DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED if
        the store cannot answer."""
        last = (int(self._clock()) - SETTLED_AFTER_S) // 60 - 1
        rows = await self._keyspace.read(schema.SETTING, _SWEPT_TO)
        swept_to = rows[0][0] if rows else last - FIRST_LOOK_MINUTES
        first = max(swept_to + 1, last - MAX_LOOK_MINUTES)
        partitions = [(minute, shard) for minute in range(first, last + 1) for shard in range(SHARDS)]
        unfinished = 0
        for start in range(0, len(partitions), PARTITIONS_PER_READ):
            batch = partitions[start : start + PARTITIONS_PER_READ]
            pages = await self._keyspace.read_each(
                schema.INTENTS, [(*partition, 0, 0, 0, PAGE_ROWS) for partition in batch]
            )
            for partition, page in zip(batch, pages, strict=True):
                unfinished += await self._finish(partition, page)
        if first <= last:
            await self._keyspace.write(schema.SWEPT, _SWEPT_TO, last, last)
        return unfinished

    async def _finish(self, partition: tuple[int, int], page: list[Row]) -> int:
        """Runs the follow-up writes of the unfinished changes of one partition, whose first page of intents is `page`.
        Returns the number of these changes."""
        found = 0
        while page:
            pending = [(low, high) for low, high, _, done in page if not done]
            for low, high in pending:
                await self._edge_writer.read_finished(low, high)
            found += len(pending)
            if len(page) < PAGE_ROWS:
                break
            page = await self._keyspace.read(schema.INTENTS, *partition, *page[-1][:3], PAGE_ROWS)
        return found

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception as error:
                log.warning(LogEvent.INTENT_SWEEP_FAILED, error=repr(error))
            # The interval is random, so that processes that started together do not sweep at the same time and skip the
            # minutes that another one has swept.
            await asyncio.sleep(EVERY_S * (0.5 + random.random()))  # noqa: S311
