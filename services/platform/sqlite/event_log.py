"""The embedded event log: one SQLite file with the events in append order. Each commit wakes the consumers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from services.platform.events import log as event_log
from services.platform.events.batch_retry import apply_with_dead_letters
from services.platform.events.log import Apply, ConsumedEvent, Consumer, DeadLetter, EventLog, Lag, Record
from services.platform.events.worker_loop import RETRY_FIRST_S, WorkerLoop
from services.platform.ids.snowflake import wall_clock_ms
from services.platform.rpc import errors
from services.platform.sqlite.database import Database, announce
from services.platform.sqlite.log_tail import LogTail

# Seconds after which the offset of an applied batch is stored. A crash applies the events of this time again. A
# transaction for each batch would cost as much as the append of its events.
STORE_AFTER_S = 1.0
SWEEP_EVERY_S = 3_600.0  # Seconds. Retention is in days, so an hourly sweep is enough.
SWEEP_ROWS = 5_000  # Events deleted per transaction: few, because appends wait until it ends.
DEAD_LETTERS_KEPT_S = 30 * 24 * 3600  # Seconds: a month, in which operators can redrive them.
MAX_REASON_CHARS = 1_000  # The rest is cut off: an error message may quote its whole input.

SCHEMA = """
CREATE TABLE event (
    -- AUTOINCREMENT: an offset is never given twice, even after retention emptied the table.
    event_offset INTEGER PRIMARY KEY AUTOINCREMENT, appended_ms INTEGER NOT NULL, topic TEXT NOT NULL,
    key INTEGER NOT NULL, event_id INTEGER NOT NULL, payload BLOB NOT NULL, traceparent TEXT NOT NULL
);
CREATE TABLE consumer_offset (consumer_group TEXT PRIMARY KEY, event_offset INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE dead_letter (
    consumer_group TEXT NOT NULL, event_offset INTEGER NOT NULL, reason TEXT NOT NULL, failed_ms INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, event_offset)
) WITHOUT ROWID;
"""
_APPEND = "INSERT INTO event VALUES (NULL, ?, ?, ?, ?, ?, ?)"
_FETCH = """SELECT * FROM event WHERE event_offset > ? AND topic IN (SELECT value FROM json_each(?))
    ORDER BY event_offset LIMIT ?"""
_LAG = """SELECT count(*), min(appended_ms) FROM (SELECT appended_ms FROM event
    WHERE event_offset > ? AND topic IN (SELECT value FROM json_each(?)) ORDER BY event_offset LIMIT ?)"""
_SINCE = "SELECT min(event_offset) FROM event WHERE appended_ms >= ?"
_HEAD = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'event'"
_STORE_OFFSET = "INSERT OR REPLACE INTO consumer_offset VALUES (?, ?)"
_LOAD_OFFSET = "SELECT coalesce(max(event_offset), 0) FROM consumer_offset WHERE consumer_group = ?"
_DELETE_OFFSET = "DELETE FROM consumer_offset WHERE consumer_group = ?"
_INSERT_DEAD_LETTER = "INSERT OR REPLACE INTO dead_letter VALUES (?, ?, ?, ?)"
_DEAD_LETTERS = """SELECT reason, failed_ms, event.* FROM dead_letter JOIN event USING (event_offset)
    WHERE consumer_group = ? ORDER BY event_offset LIMIT ?"""
_REDRIVE = """INSERT INTO event SELECT NULL, ?, topic, key, event_id, payload, traceparent
    FROM dead_letter JOIN event USING (event_offset) WHERE consumer_group = ? ORDER BY event_offset"""
_APPENDED_AFTER = "SELECT * FROM event WHERE event_offset > ? ORDER BY event_offset"
_DELETE_DEAD_LETTERS = "DELETE FROM dead_letter WHERE consumer_group = ?"
_SWEEP_DEAD = "DELETE FROM dead_letter WHERE failed_ms < ?"
_SWEEP = """DELETE FROM event WHERE event_offset IN (SELECT event_offset FROM event WHERE appended_ms < ?
    AND event_offset <= coalesce((SELECT min(event_offset) FROM consumer_offset), event_offset)
    AND event_offset NOT IN (SELECT event_offset FROM dead_letter) ORDER BY event_offset LIMIT ?)"""


class EmbeddedLog(EventLog):
    """The adapter of the port EventLog on one SQLite file. Every consumer group gets the events of its topics in the
    order of their appends."""

    def __init__(self, db: Database, clock_ms: Callable[[], int], retry_first_s: float) -> None:
        self.db = db
        self.clock_ms = clock_ms
        self.retry_first_s = retry_first_s
        self.running: dict[str, EmbeddedConsumer] = {}
        self.tail = LogTail()
        db.on_commit(self._wake)
        self._offsets = WorkerLoop("event-log-offsets", self._store_offsets)
        self._offsets.start()
        # Runs while a consumer has an offset that is not stored.
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper = WorkerLoop("event-log-retention", self._sweep_all)
        self._sweeper.start()

    @classmethod
    async def open(
        cls, path: Path, clock_ms: Callable[[], int] = wall_clock_ms, retry_first_s: float = RETRY_FIRST_S
    ) -> EmbeddedLog:
        """Opens or creates the log in the file `path`. Raises FAILED_PRECONDITION if another process owns the file, if
        it cannot be used, or if a newer release migrated it."""
        return cls(await Database.open(path, [SCHEMA]), clock_ms, retry_first_s)

    async def append(self, records: Sequence[Record]) -> None:
        now = self.clock_ms()

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany(_APPEND, [(now, *record) for record in records])
            # AUTOINCREMENT gives a transaction of the only writer consecutive offsets.
            (head,) = connection.execute(_HEAD).fetchone()
            first = head - len(records) + 1
            announce(connection, (ConsumedEvent(first + at, now, *record) for at, record in enumerate(records)))

        if records:
            await self.db.write(insert)

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        apply: Apply,
        max_batch: int = event_log.DEFAULT_BATCH,
        broadcast: bool = False,
    ) -> EmbeddedConsumer:
        return EmbeddedConsumer(self, group, topics, apply, event_log.check_batch(max_batch), broadcast)

    async def dead_letters(self, group: str) -> list[DeadLetter]:
        rows = await self.db.read(lambda c: c.execute(_DEAD_LETTERS, (group, event_log.MAX_BATCH)).fetchall())
        return [DeadLetter(reason, failed_ms, ConsumedEvent(*event)) for reason, failed_ms, *event in rows]

    async def redrive(self, group: str) -> int:
        def move(connection: sqlite3.Connection) -> int:
            (head,) = connection.execute(_HEAD).fetchone()
            connection.execute(_REDRIVE, (self.clock_ms(), group))
            announce(connection, [ConsumedEvent(*row) for row in connection.execute(_APPENDED_AFTER, (head,))])
            return connection.execute(_DELETE_DEAD_LETTERS, (group,)).rowcount

        return await self.db.write(move)

    async def sweep(self) -> int:
        """Deletes events that are past retention and applied by every group. Returns how many it deleted, at most
        SWEEP_ROWS."""
        # A consumer that only skips events of topics that it does not consume stores no offset, so its position is
        # stored here.
        reached = [(group, c.position) for group, c in self.running.items() if c.position and not c.broadcast]

        def delete(connection: sqlite3.Connection) -> int:
            now = self.clock_ms()
            connection.executemany(_STORE_OFFSET, reached)
            connection.execute(_SWEEP_DEAD, (now - DEAD_LETTERS_KEPT_S * 1000,))
            return connection.execute(_SWEEP, (now - event_log.RETENTION_S * 1000, SWEEP_ROWS)).rowcount

        deleted = await self.db.write(delete)
        if deleted:
            self.tail.clear()
        return deleted

    async def close(self) -> None:
        await self._sweeper.stop()
        for consumer in list(self.running.values()):
            await consumer.stop()
        if self._timer is not None:
            self._timer.cancel()
        await self._offsets.stop()
        await self.db.close()

    def store_offset_soon(self) -> None:
        """Stores the offsets of all consumers in STORE_AFTER_S seconds."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STORE_AFTER_S, self._offsets.wake)

    async def _store_offsets(self) -> bool:
        self._timer = None
        for consumer in list(self.running.values()):
            await consumer.store_offset()
        return False

    def _wake(self, appended: Sequence[ConsumedEvent]) -> None:
        # The database calls this method after each commit of new events. `append` does not wake the consumers itself,
        # because its caller may be cancelled before the commit.
        #
        # Only consumers of the appended topics are woken, because most events concern three of the eight consumers.
        self.tail.extend(appended)
        topics = {event.topic for event in appended}
        for consumer in self.running.values():
            if topics.isdisjoint(consumer.topics):
                consumer.skip(appended[-1].offset)
            else:
                consumer.worker.wake()

    async def _sweep_all(self) -> bool:
        more = await self.sweep() == SWEEP_ROWS
        if not more:
            asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweeper.wake)
        return more


class EmbeddedConsumer(Consumer):
    """The adapter of the port Consumer on the embedded log: reads and applies events, stores its group's offset, and
    waits for the next append."""

    def __init__(
        self, log: EmbeddedLog, group: str, topics: Sequence[str], apply: Apply, max_batch: int, broadcast: bool
    ) -> None:
        self.broadcast = broadcast
        self.worker = WorkerLoop(f"consumer-{group}", self._step, log.retry_first_s)
        self._log = log
        self._group = group
        self.topics = frozenset(topics)
        self._topics = json.dumps(list(topics))
        self._apply = apply
        self._max_batch = max_batch
        # The last offset that was applied or skipped; 0 if none was, because the first offset of this log is 1.
        self.position = 0
        # True if a `broadcast` consumer has a position, which is in memory only.
        self._has_position = False
        # The number of seeks. If a seek happened while a batch was applied, the offset of the batch must not overwrite
        # the offset that the seek set.
        self._seeks = 0
        self._has_unstored = False
        self._paused = False

    async def start(self) -> None:
        if self._log.running.setdefault(self._group, self) is not self:
            raise ValueError(f"group {self._group} has a consumer already: a second one would apply every event again")
        # Before the first await, as in `seek`: there may be events to apply, so no append may move the position.
        self.worker.wake()
        if not self._has_position:
            self.position = await self._load()
            await self._store(self.position)  # From now on the sweep keeps events after this offset.
        self.worker.start()

    async def stop(self) -> None:
        await self.worker.stop()
        if self._log.running.get(self._group) is self:
            del self._log.running[self._group]
        # If the store fails, the next process applies the last events once more.
        with contextlib.suppress(errors.RoostError):
            await self.store_offset()

    async def store_offset(self) -> None:
        """Stores the position, if it moved past an applied event since it was stored last. Raises UNAVAILABLE if the disk
        fails."""
        if self._has_unstored:
            self._has_unstored = False
            try:
                await self._store(self.position)
            except BaseException:
                self._has_unstored = True
                raise

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.worker.wake()

    def skip(self, head: int) -> None:
        """Moves the position to the offset `head`, if the consumer has applied all events of its topics and none of the
        later events up to `head` is of its topics."""
        if self.worker.idle.is_set() and not self._paused:
            self.position = max(self.position, head)

    async def lag(self) -> Lag:
        known = self._has_position or self._log.running.get(self._group) is self
        position = self.position if known else await self._load()
        bounds = (position, self._topics, event_log.MAX_LAG_COUNTED)
        count, oldest_ms = await self._log.db.read(lambda c: c.execute(_LAG, bounds).fetchone())
        return Lag(count, max(self._log.clock_ms() - oldest_ms, 0) / 1000 if count else 0.0)

    async def seek(self, *, offset: int | None = None, time_ms: int | None = None) -> None:
        def before(connection: sqlite3.Connection) -> int:
            (first,) = (offset,) if offset is not None else connection.execute(_SINCE, (time_ms,)).fetchone()
            (head,) = connection.execute(_HEAD).fetchone()
            # A position after the head would skip the next appended events.
            return int(head if first is None else min(first - 1, head))

        position = await self._log.db.read(before)
        self._seeks, self.position = self._seeks + 1, position
        # Before the next await: an append during it would otherwise find an idle consumer and call `skip`.
        self.worker.wake()
        await self._store(position)

    async def _step(self) -> bool:
        """Applies the next batch. Returns False if no event is left after this batch, or if the consumer is paused."""
        if self._paused:
            return False
        position, seeks = self.position, self._seeks

        def fetch(connection: sqlite3.Connection) -> tuple[list[ConsumedEvent], int]:
            rows = connection.execute(_FETCH, (position, self._topics, self._max_batch))
            return [ConsumedEvent(*row) for row in rows], connection.execute(_HEAD).fetchone()[0]

        recent = self._log.tail.after(position, self.topics, self._max_batch)
        batch, head = await self._log.db.read(fetch) if recent is None else recent
        if batch:
            await apply_with_dead_letters(self._group, batch, self._apply, self.worker.backoff, self._store_dead_letter)
        # If the batch is not full, no events of these topics are left before the head: the position moves to the
        # head, past the events of other topics.
        full = len(batch) == self._max_batch
        if full:
            # Neither the tail nor `apply` may have suspended this task, and a next batch follows at once.
            await asyncio.sleep(0)
        reached = batch[-1].offset if full else head
        if seeks == self._seeks:
            self.position = reached
            if batch:
                self._has_unstored = True
                self._log.store_offset_soon()
        return full

    async def _store_dead_letter(self, event: ConsumedEvent, error: BaseException) -> None:
        row = (self._group, event.offset, repr(error)[:MAX_REASON_CHARS], self._log.clock_ms())
        await self._log.db.write(lambda c: c.execute(_INSERT_DEAD_LETTER, row))

    async def _load(self) -> int:
        query, values = (_HEAD, ()) if self.broadcast else (_LOAD_OFFSET, (self._group,))
        (stored,) = await self._log.db.read(lambda c: c.execute(query, values).fetchone())
        return int(stored)

    async def _store(self, position: int) -> None:
        if self.broadcast:
            if not self._has_position:
                # Deletes an offset that an earlier consumer without `broadcast` stored for this group: otherwise
                # retention would never delete events after it.
                await self._log.db.write(lambda c: c.execute(_DELETE_OFFSET, (self._group,)))
            self._has_position = True
            return
        await self._log.db.write(lambda c: c.execute(_STORE_OFFSET, (self._group, position)))
