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
from services.platform.cassandra.outbox_sweeper import SHARDS, SWEEP_MINUTES, Place, Sweeper
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
MARK_AFTER_S = 0.5
MARK_LOT = 1_000
# Timers count whole milliseconds, and may come one before their time.
EARLY_S = 0.002
# How long the end of a process waits for the log to take the rest.
DRAIN_S = 2.0

# The mark is stamped after the row, whenever either is written: a batch that is written again does not undo it.
_INSERT = """INSERT INTO outbox (shard, minute, event_id, topic, key, payload, traceparent, published)
    VALUES (?, ?, ?, ?, ?, ?, ?, false) USING TIMESTAMP ?"""
_MARK = """UPDATE outbox USING TIMESTAMP ? SET published = true
    WHERE shard = ? AND minute = ? AND event_id = ? AND topic = ?"""

# An event's row lies in the minute of its id, so that a batch written again writes the same row; but in the minute of writing where the id
# is from another time (a batch executed again hours later), for sweepers look there no more.
SAME_TIME_MS = 5 * 60_000
# Events that this process knows to be published, or queued, when a sweeper finds them.
MAX_KNOWN = 3 * MAX_QUEUED

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
        self._queue: deque[tuple[Place, Record]] = deque()
        # True once it is in the log.
        self._known: OrderedDict[_Key, bool] = OrderedDict()
        self._unmarked: list[tuple[Place, Record]] = []
        self._mark_at = 0.0
        self._mark_timer: asyncio.TimerHandle | None = None
        # Who waits until all is marked.
        self._draining = 0
        self._pump = WorkerLoop(f"outbox-{keyspace.name}", self._carry)
        self._sweeper = Sweeper(keyspace, clock, self._publish_found)
        outbox.register(self)

    def steps(self, records: Iterable[Record]) -> list[Statement]:
        """The statements that belong into the same logged batch as the rows that these events tell of, one an event."""
        return [
            (
                _INSERT,
                (*self._place(r), r.event_id, r.topic, r.key, r.payload, r.traceparent, _stamp(r)),
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
            self._queue.append((self._place(record), record))
            self._know(record, published=False)
        self._pump.wake()

    async def start(self) -> None:
        """Begins to publish, and looks within two seconds for what earlier lives left."""
        self._pump.start()
        self._sweeper.start()

    async def stop(self) -> None:
        """Publishes what waits, within DRAIN_S, and ends. What is left is found by a sweeper."""
        await self._sweeper.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.drained(), DRAIN_S)
        await self._pump.stop()
        if self._mark_timer is not None:
            self._mark_timer.cancel()

    async def drained(self) -> None:
        """Returns once every event published before the call is in the log, and marked; while the log refuses, it waits."""
        self._draining += 1
        self._pump.wake()
        try:
            await self._pump.idle.wait()
        finally:
            self._draining -= 1

    async def sweep(self) -> int:
        """Looks through the last minutes at once, and answers how many events it published."""
        return await self._sweeper.sweep(SWEEP_MINUTES)

    async def waiting(self, topics: Sequence[str]) -> tuple[int, int]:
        """How many events of these topics wait in this process, and the least id among them (0: none)."""
        ids = [record.event_id for _, record in self._queue if record.topic in topics]
        return len(ids), min(ids, default=0)

    async def _carry(self) -> bool:
        lot = list(islice(self._queue, PUBLISH_BATCH))
        if lot:
            sent = await self._send([record for _, record in lot], "writer")
            # Only now: what is on its way still waits, for whoever asks.
            for _ in lot:
                self._queue.popleft()
            self._mark_soon([(place, record) for place, record in lot if _key(record) in sent])
        if self._unmarked and self._is_time_to_mark():
            marked, self._unmarked = self._unmarked, []
            await self._mark(marked)
        return bool(self._queue)

    def _mark_soon(self, lot: Sequence[tuple[Place, Record]]) -> None:
        if lot and not self._unmarked:
            loop = asyncio.get_running_loop()
            self._mark_at = loop.time() + MARK_AFTER_S
            self._mark_timer = loop.call_later(MARK_AFTER_S, self._pump.wake)
        self._unmarked += lot

    def _is_time_to_mark(self) -> bool:
        if self._draining or len(self._unmarked) >= MARK_LOT:
            return True
        return asyncio.get_running_loop().time() >= self._mark_at - EARLY_S

    async def _publish_found(self, place: Place, records: Sequence[Record]) -> int:
        """Publishes and marks what a sweeper found in a partition, but for what waits in this process anyway."""
        known = [(record, self._known.get(_key(record))) for record in records]
        lost = [record for record, published in known if published is None]
        if lost and self._before_publish is not None:
            try:
                true = await self._before_publish(lost)
                lost = lost if true is None else list(true)
            except Exception as error:
                if is_transient(error):
                    raise
                # A defect in one partition must not keep back the others for ever.
                _log.error("events cannot be made ready", events=len(lost), error=repr(error))
                lost = []
        sent = await self._send(lost, "sweeper") if lost else set()
        await self._mark([(place, record) for record, published in known if published or _key(record) in sent])
        return len(sent)

    async def _send(self, records: Sequence[Record], by: str) -> set[_Key]:
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
            return await self._send(records[:middle], by) | await self._send(records[middle:], by)
        _published.labels(by).inc(len(records))
        for record in records:
            self._know(record, published=True)
        return {_key(record) for record in records}

    def _know(self, record: Record, published: bool) -> None:
        self._known[_key(record)] = published
        self._known.move_to_end(_key(record))
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    async def _mark(self, lot: Iterable[tuple[Place, Record]]) -> None:
        """Marks them as published. Where that fails a sweeper finds them: this process knows better, another publishes them again."""
        try:
            # By partition, for a batch within one is a single write.
            for place, found in groupby(sorted(lot, key=itemgetter(0)), itemgetter(0)):
                records = [record for _, record in found]
                for first in range(0, len(records), MAX_BATCH):
                    await self._keyspace.batch(
                        (_MARK, (_stamp(r) + 1, *place, r.event_id, r.topic))
                        for r in records[first : first + MAX_BATCH]
                    )
        except Exception as error:
            _log.warning("published events were not marked", keyspace=self._keyspace.name, error=str(error))

    def _place(self, record: Record) -> Place:
        now_ms = int(self._clock() * 1000)
        made_ms = timestamp_ms(record.event_id)
        if abs(now_ms - made_ms) > SAME_TIME_MS:
            made_ms = now_ms
        return Place(record.key % SHARDS, made_ms // 60_000)


def _key(record: Record) -> _Key:
    return record.event_id, record.topic


def _stamp(record: Record) -> int:
    """The write timestamp of its row, in microseconds; the mark's is the next."""
    return timestamp_ms(record.event_id) * 1000
