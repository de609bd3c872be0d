"""The outbox on Cassandra. The row of an event is in the same logged batch as the rows that the event describes; the
writer then publishes the event at once.

A row stays unpublished if the process dies, if the event log is unavailable for long, or if the batch is applied after
its writer gave up. The sweeper of every process finds such rows and publishes their events. An event is appended to the
event log before its row is flagged as published: an event may be published twice, but is never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Protocol

import structlog
from prometheus_client import Counter

from services.platform.cassandra.keyspace import MAX_BATCH, Keyspace, Statement
from services.platform.cassandra.outbox_sweeper import SHARDS, SWEEP_MINUTES, OutboxPartition, OutboxSweeper
from services.platform.events import outbox
from services.platform.events.log import EventLog, Record, is_transient
from services.platform.events.worker_loop import WorkerLoop
from services.platform.ids.snowflake import timestamp_ms
from services.platform.log_events import LogEvent

# The TTL is three days, enough to notice that nothing is published. Four compaction windows a day let Cassandra drop
# whole files. Rows are never deleted one by one: a queue full of tombstones gets slower with each read.
OUTBOX_MIGRATION = """
CREATE TABLE IF NOT EXISTS outbox (
    shard int, minute int, event_id bigint, topic text, key bigint, payload blob, traceparent text, published boolean,
    PRIMARY KEY ((shard, minute), event_id, topic)
) WITH default_time_to_live = 259200
    AND compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS', 'compaction_window_size': 6};
CREATE TABLE IF NOT EXISTS outbox_cursor (name text PRIMARY KEY, minute int)
"""

# Maximum number of queued events: about one second of events at a high rate. The queue grows while the event log is
# unavailable. If it is full, further events stay in their outbox rows, and the sweeper publishes them.
MAX_QUEUED = 10_000
# Maximum number of events per append to the event log.
PUBLISH_BATCH = 500
# `published` flags are collected for FLAG_WRITE_DELAY_S seconds, or until there are FLAG_WRITE_BATCH of them, and then
# written together, in one batch per partition. Writing each flag alone took a quarter of the cost of a small write
# (measured). The delay is far below GRACE_S, the age at which sweepers publish events. If a process dies before it has
# written the flags, the events are published twice.
FLAG_WRITE_DELAY_S = 0.5
FLAG_WRITE_BATCH = 1_000
# Seconds before its due time at which a flag write may begin: the event loop's timers have millisecond resolution and
# may fire early.
TIMER_TOLERANCE_S = 0.002
# Maximum number of seconds that `stop` waits until the queued events are published.
DRAIN_S = 2.0

# The write timestamp of the flag is one greater than that of the row, so a repeated INSERT of the row does not set the
# flag back to false.
_INSERT = """INSERT INTO outbox (shard, minute, event_id, topic, key, payload, traceparent, published)
    VALUES (?, ?, ?, ?, ?, ?, ?, false) USING TIMESTAMP ?"""
_SET_PUBLISHED = """UPDATE outbox USING TIMESTAMP ? SET published = true
    WHERE shard = ? AND minute = ? AND event_id = ? AND topic = ?"""

# The partition of an event's row is the minute of its event id, so that a batch which is executed again writes the same
# row. If the id is more than this many milliseconds older or newer than the current time (a batch executed again hours
# later), the partition is the current minute, because sweepers no longer read the minute of the id.
MAX_ID_AGE_MS = 5 * 60_000
# Maximum number of events whose state (queued or published) this process has in memory; beyond it the oldest is
# dropped. The sweeper of this process does not publish these events again if it finds their rows.
MAX_TRACKED = 3 * MAX_QUEUED

_Key = tuple[int, str]

_published = Counter(
    "roost_outbox_published", "Events published, by the worker that appended them: writer or sweeper.", ["by"]
)
log = structlog.get_logger(__name__)


class EventValidator(Protocol):
    """Decides which of the events that a sweeper finds may be published. The writer of an event may have died at any
    point: the rows that the event describes may be missing for now or for ever."""

    async def publishable(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the events whose described change was committed. When it returns, readers find the rows that these
        events describe.

        An event that this method does not return stays in the outbox until a later sweep. If the method raises, all
        events stay.
        """


class PublishAll:
    """The EventValidator of stores that write each event in one logged batch with all rows that it describes."""

    async def publishable(self, records: Sequence[Record]) -> Sequence[Record]:
        return records


class Outbox:
    """One keyspace's outbox in this process; a Worker. `clock` returns Unix seconds. `validator` decides which of the
    events that a sweeper finds are published."""

    def __init__(
        self,
        keyspace: Keyspace,
        log: EventLog,
        clock: Callable[[], float],
        validator: EventValidator,
    ) -> None:
        self.log = log
        self._keyspace = keyspace
        self._clock = clock
        self._validator = validator
        self._queue: deque[tuple[OutboxPartition, Record]] = deque()
        # By event: True if the event is in the log, False while it is queued.
        self._tracked: OrderedDict[_Key, bool] = OrderedDict()
        self._unflagged: list[tuple[OutboxPartition, Record]] = []
        self._flag_write_due = 0.0
        self._flag_write_timer: asyncio.TimerHandle | None = None
        # Number of `drained` calls in progress. While there are any, flags are written at once, not after a delay.
        self._drain_waiters = 0
        self._worker = WorkerLoop(f"outbox-{keyspace.name}", self._publish_step)
        self._sweeper = OutboxSweeper(keyspace, clock, self._publish_swept)
        outbox.register(self)

    def statements(self, records: Iterable[Record]) -> list[Statement]:
        """Returns the INSERT statement of each event, for the logged batch that writes the rows which the event
        describes."""
        return [
            (
                _INSERT,
                (*self._partition_of(r), r.event_id, r.topic, r.key, r.payload, r.traceparent, _row_timestamp(r)),
            )
            for r in records
        ]

    def publish(self, records: Iterable[Record]) -> None:
        """Queues events; a background task appends them to the event log in the order of the queue. Call this method as
        soon as the batch that writes the events' rows has returned. If the queue is full, the sweeper publishes the
        event instead."""
        for record in records:
            if len(self._queue) >= MAX_QUEUED:
                # The queue is full: the sweeper publishes the event from its row.
                self._sweeper.request_full_sweep()
                continue
            self._queue.append((self._partition_of(record), record))
            self._track(record, published=False)
        self._worker.wake()

    async def start(self) -> None:
        """Starts to publish queued events, and starts the sweeper. Within two seconds the sweeper looks for events that
        earlier processes left unpublished."""
        self._worker.start()
        await self._sweeper.start()

    async def stop(self) -> None:
        """Publishes queued events for at most DRAIN_S seconds, then stops. Events that are still queued stay in their
        outbox rows: the sweeper of another process, or of this one after a restart, publishes these events."""
        await self._sweeper.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.drained(), DRAIN_S)
        await self._worker.stop()
        if self._flag_write_timer is not None:
            self._flag_write_timer.cancel()

    async def drained(self) -> None:
        """Waits until this process has appended every event that was queued before the call to the event log, and has
        set `published = true` in the events' outbox rows.

        Does not return while the event log is unavailable. An event that the event log rejects for good, and a row
        whose flag could not be written, are only logged: `drained` does not wait for a later sweep of these rows.
        """
        self._drain_waiters += 1
        self._worker.wake()
        try:
            await self._worker.idle.wait()
        finally:
            self._drain_waiters -= 1

    async def sweep(self) -> int:
        """Sweeps the last SWEEP_MINUTES minutes now and returns how many events it published. Raises UNAVAILABLE,
        DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED if Cassandra cannot answer, and the errors of the event log."""
        return await self._sweeper.sweep(SWEEP_MINUTES)

    async def pending(self, topics: Sequence[str]) -> tuple[int, int]:
        """Returns how many events of these topics are queued in this process, and the smallest id among them (0 if
        none)."""
        ids = [record.event_id for _, record in self._queue if record.topic in topics]
        return len(ids), min(ids, default=0)

    async def _publish_step(self) -> bool:
        batch = list(islice(self._queue, PUBLISH_BATCH))
        if batch:
            appended = await self._append([record for _, record in batch], "writer")
            # The events leave the queue only after the append, so that `pending` counts them while the append runs.
            # They are the first events of the queue, because `publish` adds new events at its end.
            for _ in batch:
                self._queue.popleft()
            self._set_published_later([(partition, record) for partition, record in batch if _key(record) in appended])
        if self._unflagged and self._is_flag_write_due():
            flagged, self._unflagged = self._unflagged, []
            await self._set_published(flagged)
        return bool(self._queue)

    def _set_published_later(self, batch: Sequence[tuple[OutboxPartition, Record]]) -> None:
        if batch and not self._unflagged:
            loop = asyncio.get_running_loop()
            self._flag_write_due = loop.time() + FLAG_WRITE_DELAY_S
            self._flag_write_timer = loop.call_later(FLAG_WRITE_DELAY_S, self._worker.wake)
        self._unflagged += batch

    def _is_flag_write_due(self) -> bool:
        if self._drain_waiters or len(self._unflagged) >= FLAG_WRITE_BATCH:
            return True
        return asyncio.get_running_loop().time() >= self._flag_write_due - TIMER_TOLERANCE_S

    async def _publish_swept(self, partition: OutboxPartition, records: Sequence[Record]) -> int:
        """Publishes the events that the sweeper found in a partition, except those that are queued or already published
        by this process, and flags the published ones. Returns how many events it published."""
        tracked = [(record, self._tracked.get(_key(record))) for record in records]
        unseen = [record for record, published in tracked if published is None]
        valid: Sequence[Record] = ()
        if unseen:
            try:
                valid = await self._validator.publishable(unseen)
            except Exception as error:
                if is_transient(error):
                    raise
                # The error is only logged, because a defective event in one partition must not block the other
                # partitions forever.
                log.error(LogEvent.OUTBOX_VALIDATION_FAILED, events=len(unseen), error=repr(error))
        appended = await self._append(valid, "sweeper") if valid else set()
        await self._set_published(
            [(partition, record) for record, published in tracked if published or _key(record) in appended]
        )
        return len(appended)

    async def _append(self, records: Sequence[Record], by: str) -> set[_Key]:
        """Appends events to the event log and returns the keys of those that the event log accepted. If the event log
        rejects an event for good, logs the rejection and leaves the event's row unflagged. Raises the event log's error
        if the error is transient."""
        try:
            await self.log.append(records)
        except Exception as error:
            if is_transient(error):
                raise
            if len(records) == 1:
                log.error(
                    LogEvent.OUTBOX_EVENT_REJECTED, topic=records[0].topic, id=records[0].event_id, error=str(error)
                )
                return set()
            middle = len(records) // 2
            return await self._append(records[:middle], by) | await self._append(records[middle:], by)
        _published.labels(by).inc(len(records))
        for record in records:
            self._track(record, published=True)
        return {_key(record) for record in records}

    def _track(self, record: Record, published: bool) -> None:
        self._tracked[_key(record)] = published
        self._tracked.move_to_end(_key(record))
        if len(self._tracked) > MAX_TRACKED:
            self._tracked.popitem(last=False)

    async def _set_published(self, batch: Iterable[tuple[OutboxPartition, Record]]) -> None:
        """Sets the `published` flag in the rows of these events. Logs a failure instead of raising it: a later sweep
        finds the rows. If this process sweeps first, it only sets the flags; another process publishes the events
        again."""
        try:
            # Writes one batch per partition, because a batch within one partition is a single write.
            for partition, found in groupby(sorted(batch, key=itemgetter(0)), itemgetter(0)):
                records = [record for _, record in found]
                for first in range(0, len(records), MAX_BATCH):
                    await self._keyspace.batch(
                        (_SET_PUBLISHED, (_row_timestamp(r) + 1, *partition, r.event_id, r.topic))
                        for r in records[first : first + MAX_BATCH]
                    )
        except Exception as error:
            log.warning(LogEvent.OUTBOX_FLAG_WRITE_FAILED, keyspace=self._keyspace.name, error=str(error))

    def _partition_of(self, record: Record) -> OutboxPartition:
        now_ms = int(self._clock() * 1000)
        made_ms = timestamp_ms(record.event_id)
        if abs(now_ms - made_ms) > MAX_ID_AGE_MS:
            made_ms = now_ms
        return OutboxPartition(record.key % SHARDS, made_ms // 60_000)


def _key(record: Record) -> _Key:
    return record.event_id, record.topic


def _row_timestamp(record: Record) -> int:
    """Returns the write timestamp of the event's row in microseconds. The timestamp of the flag is one greater."""
    return timestamp_ms(record.event_id) * 1000
