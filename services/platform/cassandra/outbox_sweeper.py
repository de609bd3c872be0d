"""Finds events whose rows say that they were not published: what writers left that died, gave up, or came late.

A row may appear behind any cursor: the replay of a logged batch and of hints brings it minutes or hours after its minute. So the last
minutes are read again and again, the last hours now and then. The server filters, so that what is read is what is wanting.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import structlog

from services.platform.cassandra.keyspace import MAX_CONCURRENT_STATEMENTS, Keyspace
from services.platform.events.log import Record
from services.platform.ids.snowflake import timestamp_ms

# Partitions a minute, by key: so that no single one takes all writes.
SHARDS = 16
# Of a writer that publishes at once this is an eternity; younger events are left to it.
GRACE_S = 5.0
START_DELAY_S = 1.0
# A look at the newest minutes: 32 reads that as a rule find nothing. Within this and GRACE_S a dead writer's events go out.
SWEEP_INTERVAL_S = 5.0
QUICK_MINUTES = 2
# Logged batches are replayed within minutes.
SWEEP_EVERY = 12
SWEEP_MINUTES = 15
# Hints come for as long as a node may be away and be sent what it missed.
SLOW_EVERY = 120
SLOW_MINUTES = 180
# Rows live so long.
MAX_MINUTES = 3 * 24 * 60
# Rows of one partition at once.
PAGE_ROWS = 100

_UNPUBLISHED = """SELECT event_id, topic, key, payload, traceparent FROM outbox
    WHERE shard = ? AND minute = ? AND (event_id, topic) > (?, ?) AND published = false LIMIT ? ALLOW FILTERING"""
_CURSOR = "SELECT minute FROM outbox_cursor WHERE name = ?"
_STORE_CURSOR = "INSERT INTO outbox_cursor (name, minute) VALUES (?, ?)"
_SWEEPER = "sweeper"

_log = structlog.get_logger(__name__)


class OutboxPartition(NamedTuple):
    """The partition of an event's row."""

    shard: int
    minute: int


class OutboxSweeper:
    """Looks for unpublished rows and hands those older than GRACE_S to `publish`, a partition's at a time, which publishes and marks them
    and answers how many it published. `clock` gives unix seconds."""

    def __init__(
        self,
        keyspace: Keyspace,
        clock: Callable[[], float],
        publish: Callable[[OutboxPartition, Sequence[Record]], Awaitable[int]],
    ) -> None:
        self._keyspace = keyspace
        self._clock = clock
        self._publish = publish
        self._full_sweep_requested = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; one that runs goes on as it is."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"sweeper-{self._keyspace.name}")

    async def stop(self) -> None:
        """Ends at once: what was published and not marked will be published again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def request_full_sweep(self) -> None:
        """Says that the next look should be a thorough one."""
        self._full_sweep_requested = True

    async def sweep(self, minutes: int) -> int:
        """Looks through so many minutes up to now and answers how many events it published.

        Errors as those of the store and of publishing; what was published until then is.
        """
        now = self._minute()
        return await self._sweep(range(now - minutes + 1, now + 1))

    async def _run(self) -> None:
        # Up to which minute all was published, and what of that is stored.
        cursor: int | None = None
        stored_cursor = 0
        round_ = 0
        # At other times than the other processes.
        await asyncio.sleep(START_DELAY_S + random.random() * 0.5)  # noqa: S311
        while True:
            try:
                if cursor is None:
                    cursor = await self._cursor()
                    slow_from = cursor - SLOW_MINUTES
                now = self._minute()
                if round_ and round_ % SLOW_EVERY == 0:
                    first, slow_from = slow_from, now - SLOW_MINUTES
                elif self._full_sweep_requested or round_ % SWEEP_EVERY == 0:
                    # From where all had been published: after an outage, however long, nothing is left out.
                    first = min(cursor, now) - SWEEP_MINUTES
                else:
                    first = now - QUICK_MINUTES + 1
                covers_cursor = first <= cursor
                self._full_sweep_requested = False
                await self._sweep(range(max(first, now - MAX_MINUTES), now + 1))
                if covers_cursor and not self._full_sweep_requested:
                    cursor = now
                if stored_cursor < cursor:
                    await self._keyspace.write(_STORE_CURSOR, _SWEEPER, cursor)
                    stored_cursor = cursor
            except Exception as error:
                self._full_sweep_requested = True
                _log.warning("sweeping failed, will go on", keyspace=self._keyspace.name, error=str(error))
            round_ += 1
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _sweep(self, minutes: Iterable[int]) -> int:
        partitions = [OutboxPartition(shard, minute) for minute in minutes for shard in range(SHARDS)]
        published = 0
        for first in range(0, len(partitions), MAX_CONCURRENT_STATEMENTS):
            batch = partitions[first : first + MAX_CONCURRENT_STATEMENTS]
            after: dict[OutboxPartition, tuple[int, str]] = dict.fromkeys(batch, (-1, ""))
            while after:
                pages = await self._keyspace.read_each(
                    _UNPUBLISHED, [(*partition, *key, PAGE_ROWS) for partition, key in after.items()]
                )
                more: dict[OutboxPartition, tuple[int, str]] = {}
                for partition, rows in zip(after, pages, strict=True):
                    published += await self._publish_old(partition, [_record(row) for row in rows])
                    if len(rows) == PAGE_ROWS:
                        more[partition] = (rows[-1][0], rows[-1][1])
                after = more
        return published

    async def _publish_old(self, partition: OutboxPartition, records: Sequence[Record]) -> int:
        newest_ms = (self._clock() - GRACE_S) * 1000
        old = [record for record in records if timestamp_ms(record.event_id) <= newest_ms]
        return await self._publish(partition, old) if old else 0

    async def _cursor(self) -> int:
        rows = await self._keyspace.read(_CURSOR, _SWEEPER)
        return min(rows[0][0], self._minute()) if rows else self._minute()

    def _minute(self) -> int:
        return int(self._clock()) // 60


def _record(row: tuple[int, str, int, bytes, str]) -> Record:
    event_id, topic, key, payload, traceparent = row
    return Record(topic, key, event_id, payload, traceparent)
