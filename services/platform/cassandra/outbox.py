"""The outbox on Cassandra: an event's row is in the same logged batch as the rows it tells of, and goes to the log at once.

What does not get there (the process died, the log refused for long, the batch came to be after its writer had given up) stays unpublished
in its row, where a sweeper finds it. Publish first, mark after: an event may come twice, and is never lost.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import groupby, islice
from operator import itemgetter

import structlog
from prometheus_client import Counter

from services.platform.cassandra.keyspace import MAX_BATCH, Keyspace, Statement
from services.platform.cassandra.outbox_sweeper import SHARDS, SWEEP_MINUTES, OutboxPartition, OutboxSweeper
from services.platform.events import outbox
from services.platform.events.log import EventLog, Record, is_transient
from services.platform.events.worker_loop import WorkerLoop
from services.platform.ids.snowflake import timestamp_ms

# Three days to notice that nothing is published, four windows a day to drop whole files. Rows are never deleted one by one: a queue made
# of tombstones is slower at each look.
OUTBOX_MIGRATION = """
CREATE TABLE IF NOT EXISTS outbox (
    shard int, minute int, event_id bigint, topic text, key bigint, payload blob, traceparent text, published boolean,
    PRIMARY KEY ((shard, minute), event_id, topic)
) WITH default_time_to_live = 259200
    AND compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS', 'compaction_window_size': 6};
CREATE TABLE IF NOT EXISTS outbox_cursor (name text PRIMARY KEY, minute int)
"""

# A second's worth at a high rate, kept while the log refuses. What is beyond it waits in its rows alone, for the sweeper.
MAX_QUEUED = 10_000
# Published in one call of the log.
PUBLISH_BATCH = 500
# Marks of this long, or so many, are written together, by partition: one by one they were a quarter of what a small write cost. Far below
# the age at which sweepers look at events; those of a process that dies in between are published twice.
FLAG_WRITE_DELAY_S = 0.5
FLAG_WRITE_BATCH = 1_000
# Timers count whole milliseconds, and may come one before their time.
TIMER_TOLERANCE_S = 0.002
# How long the end of a process waits for the log to take the rest.
DRAIN_S = 2.0

# The mark is stamped after the row, whenever either is written: a batch that is written again does not undo it.
_INSERT = """INSERT INTO outbox (shard, minute, event_id, topic, key, payload, traceparent, published)
    VALUES (?, ?, ?, ?, ?, ?, ?, false) USING TIMESTAMP ?"""
_SET_PUBLISHED = """UPDATE outbox USING TIMESTAMP ? SET published = true
    WHERE shard = ? AND minute = ? AND event_id = ? AND topic = ?"""

# An event's row lies in the minute of its id, so that a batch written again writes the same row; but in the minute of writing where the id
# is from another time (a batch executed again hours later), for sweepers look there no more.
MAX_ID_AGE_MS = 5 * 60_000
# Events that this process knows to be published, or queued, when a sweeper finds them.
MAX_TRACKED = 3 * MAX_QUEUED

Publish = Callable[[Sequence[Record]], Awaitable[Sequence[Record] | None]]
_Key = tuple[int, str]

_published = Counter(
    "roost_outbox_published", "Events published, by who sent them: their writer, or a sweeper.", ["by"]
)
_log = structlog.get_logger(__name__)


class Outbox:
    """One keyspace's outbox in this process: a Worker. `clock` gives unix seconds.

    `before_publish` is awaited with events that a sweeper found, before it publishes them: it makes readable what they tell of, for the
    rest of their batch may not have come to be yet. Where it raises, they wait for another look. Where what they tell of depends on a
    condition, it answers those that came true (None: all); the others wait.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        log: EventLog,
        clock: Callable[[], float],
        before_publish: Publish | None = None,
    ) -> None:
        self.log = log
        self._keyspace = keyspace
        self._clock = clock
        self._before_publish = before_publish
        self._queue: deque[tuple[OutboxPartition, Record]] = deque()
        # True once it is in the log.
        self._tracked: OrderedDict[_Key, bool] = OrderedDict()
        self._unflagged: list[tuple[OutboxPartition, Record]] = []
        self._flag_write_due = 0.0
        self._flag_write_timer: asyncio.TimerHandle | None = None
        # Who waits until all is marked.
        self._drain_waiters = 0
        self._worker = WorkerLoop(f"outbox-{keyspace.name}", self._publish_step)
        self._sweeper = OutboxSweeper(keyspace, clock, self._publish_swept)
        outbox.register(self)

    def statements(self, records: Iterable[Record]) -> list[Statement]:
        """The statements that belong into the same logged batch as the rows that these events tell of, one an event."""
        return [
            (
                _INSERT,
                (*self._partition_of(r), r.event_id, r.topic, r.key, r.payload, r.traceparent, _row_timestamp(r)),
            )
            for r in records
        ]

    def publish(self, records: Iterable[Record]) -> None:
        """Sends events to the log in the background, in this order; to be called as soon as their batch returned."""
        for record in records:
            if len(self._queue) >= MAX_QUEUED:
                # Its row has it.
                self._sweeper.request_full_sweep()
                continue
            self._queue.append((self._partition_of(record), record))
            self._track(record, published=False)
        self._worker.wake()

    async def start(self) -> None:
        """Begins to publish, and looks within two seconds for what earlier lives left."""
        self._worker.start()
        self._sweeper.start()

    async def stop(self) -> None:
        """Publishes what waits, within DRAIN_S, and ends. What is left is found by a sweeper."""
        await self._sweeper.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.drained(), DRAIN_S)
        await self._worker.stop()
        if self._flag_write_timer is not None:
            self._flag_write_timer.cancel()

    async def drained(self) -> None:
        """Returns once every event published before the call is in the log, and marked; while the log refuses, it waits."""
        self._drain_waiters += 1
        self._worker.wake()
        try:
            await self._worker.idle.wait()
        finally:
            self._drain_waiters -= 1

    async def sweep(self) -> int:
        """Looks through the last minutes at once, and answers how many events it published."""
        return await self._sweeper.sweep(SWEEP_MINUTES)

    async def waiting(self, topics: Sequence[str]) -> tuple[int, int]:
        """How many events of these topics wait in this process, and the least id among them (0: none)."""
        ids = [record.event_id for _, record in self._queue if record.topic in topics]
        return len(ids), min(ids, default=0)

    async def _publish_step(self) -> bool:
        batch = list(islice(self._queue, PUBLISH_BATCH))
        if batch:
            appended = await self._append([record for _, record in batch], "writer")
            # Only now: what is on its way still waits, for whoever asks.
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
        """Publishes and marks what a sweeper found in a partition, but for what waits in this process anyway."""
        tracked = [(record, self._tracked.get(_key(record))) for record in records]
        unseen = [record for record, published in tracked if published is None]
        if unseen and self._before_publish is not None:
            try:
                confirmed = await self._before_publish(unseen)
                unseen = unseen if confirmed is None else list(confirmed)
            except Exception as error:
                if is_transient(error):
                    raise
                # A defect in one partition must not keep back the others for ever.
                _log.error("events cannot be made ready", events=len(unseen), error=repr(error))
                unseen = []
        appended = await self._append(unseen, "sweeper") if unseen else set()
        await self._set_published(
            [(partition, record) for record, published in tracked if published or _key(record) in appended]
        )
        return len(appended)

    async def _append(self, records: Sequence[Record], by: str) -> set[_Key]:
        """Appends them to the log and answers which it took. One that can never be taken is told of and left in its row, unmarked."""
        try:
            await self.log.append(records)
        except Exception as error:
            if is_transient(error):
                raise
            if len(records) == 1:
                _log.error(
                    "an event cannot be published", topic=records[0].topic, id=records[0].event_id, error=str(error)
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
        """Marks them as published. Where that fails a sweeper finds them: this process knows better, another publishes them again."""
        try:
            # By partition, for a batch within one is a single write.
            for partition, found in groupby(sorted(batch, key=itemgetter(0)), itemgetter(0)):
                records = [record for _, record in found]
                for first in range(0, len(records), MAX_BATCH):
                    await self._keyspace.batch(
                        (_SET_PUBLISHED, (_row_timestamp(r) + 1, *partition, r.event_id, r.topic))
                        for r in records[first : first + MAX_BATCH]
                    )
        except Exception as error:
            _log.warning("published events were not marked", keyspace=self._keyspace.name, error=str(error))

    def _partition_of(self, record: Record) -> OutboxPartition:
        now_ms = int(self._clock() * 1000)
        made_ms = timestamp_ms(record.event_id)
        if abs(now_ms - made_ms) > MAX_ID_AGE_MS:
            made_ms = now_ms
        return OutboxPartition(record.key % SHARDS, made_ms // 60_000)


def _key(record: Record) -> _Key:
    return record.event_id, record.topic


def _row_timestamp(record: Record) -> int:
    """The write timestamp of its row, in microseconds; the mark's is the next."""
    return timestamp_ms(record.event_id) * 1000
