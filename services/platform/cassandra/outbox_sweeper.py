"""The sweeper of the outbox: finds rows that are not flagged as published, because their writer died, gave up, or wrote
the rows late, and publishes their events.

Rows may appear in a minute that was swept already: the replay of logged batches and of hints writes them minutes or
hours later. So the last minutes are read repeatedly and the last hours occasionally. Cassandra filters the rows, so
only unpublished ones are transferred.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

import structlog

from services.platform.background import BackgroundWorker
from services.platform.cassandra.keyspace import MAX_CONCURRENT_STATEMENTS, Keyspace
from services.platform.events.log import Record
from services.platform.ids.snowflake import timestamp_ms
from services.platform.log_events import LogEvent

# Number of partitions per minute. Events are distributed over them by key, so that no single partition receives all
# writes.
SHARDS = 16
# Minimum age in seconds of an event that a sweeper publishes. The writer of a younger event will publish the event
# itself, normally within milliseconds.
GRACE_S = 5.0
# Seconds before the first sweep; up to half a second is added at random.
START_DELAY_S = 1.0
# Seconds between two sweeps. Most sweeps read only the newest QUICK_MINUTES minutes. Such a sweep is 32 reads, which
# usually return nothing. If a writer dies, its events are published within this time plus GRACE_S.
SWEEP_INTERVAL_S = 5.0
QUICK_MINUTES = 2
# Sweeps have read every minute up to the cursor, inclusive. Every SWEEP_EVERY-th sweep begins SWEEP_MINUTES minutes
# before the cursor, because Cassandra replays logged batches within minutes.
SWEEP_EVERY = 12
SWEEP_MINUTES = 15
# Every SLOW_EVERY-th sweep begins SLOW_MINUTES minutes before the previous one of these long sweeps: Cassandra keeps
# hints for a node that is down for up to three hours, and replays them when the node returns.
SLOW_EVERY = 120
SLOW_MINUTES = 180
# The TTL of the rows in minutes. No sweep begins earlier.
MAX_MINUTES = 3 * 24 * 60
# Maximum number of rows per page of one partition.
PAGE_ROWS = 100

_UNPUBLISHED = """SELECT event_id, topic, key, payload, traceparent FROM outbox
    WHERE shard = ? AND minute = ? AND (event_id, topic) > (?, ?) AND published = false LIMIT ? ALLOW FILTERING"""
_CURSOR = "SELECT minute FROM outbox_cursor WHERE name = ?"
_STORE_CURSOR = "INSERT INTO outbox_cursor (name, minute) VALUES (?, ?)"
_SWEEPER = "sweeper"

log = structlog.get_logger(__name__)


class OutboxPartition(NamedTuple):
    """The partition key of an outbox row. `shard` is the event's key modulo SHARDS. `minute` is the Unix minute of the
    event id; it is the minute of the write if the two times differ by more than `outbox.MAX_ID_AGE_MS`."""

    shard: int
    minute: int


class OutboxSweeper(BackgroundWorker):
    """Reads unpublished rows of the outbox and passes the events older than GRACE_S seconds to `publish`, one partition
    at a time.

    `publish` appends the events to the event log, flags their rows, and returns how many events it appended. `clock`
    returns Unix seconds. If the sweeper is stopped after an append and before the flags are written, a later sweep
    publishes these events again.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        clock: Callable[[], float],
        publish: Callable[[OutboxPartition, Sequence[Record]], Awaitable[int]],
    ) -> None:
        super().__init__(f"sweeper-{keyspace.name}")
        self._keyspace = keyspace
        self._clock = clock
        self._publish = publish
        self._full_sweep_requested = True

    def request_full_sweep(self) -> None:
        """Makes the next sweep begin SWEEP_MINUTES minutes before the cursor (the minute up to which, inclusive, sweeps
        have read every minute), instead of reading only the newest minutes."""
        self._full_sweep_requested = True

    async def sweep(self, minutes: int) -> int:
        """Publishes the unpublished events of the last `minutes` minutes and returns how many events it published.

        Raises UNAVAILABLE, DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED if Cassandra cannot answer, and any error of
        `publish`. Events that were published before the error stay published.
        """
        now = self._minute()
        return await self._sweep(range(now - minutes + 1, now + 1))

    async def _run(self) -> None:
        # Sweeps have read every minute up to `cursor`, inclusive. `stored_cursor` is the last stored value of `cursor`.
        cursor: int | None = None
        stored_cursor = 0
        round_ = 0
        # A random delay, so that processes that start together do not sweep at the same time.
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
                    # The sweep starts before the cursor, so that even after a long outage it reads every minute whose
                    # events may be unpublished.
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
                log.warning(LogEvent.OUTBOX_SWEEP_FAILED, keyspace=self._keyspace.name, error=str(error))
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
