"""The outbox in SQLite: events commit with a service's rows, and a relay appends them to the event log.

The relay appends events to the event log before it deletes them from the outbox: a crash in between repeats events and
loses none. It deletes them later, those of DELETE_AFTER_S seconds in one transaction, because a transaction for each
event would cost as much as the write of the event itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sqlite3
from collections import deque
from collections.abc import Iterable, Sequence

from services.platform.events import outbox
from services.platform.events.log import MAX_LAG_COUNTED, EventLog, Record
from services.platform.events.worker_loop import WorkerLoop
from services.platform.rpc import errors
from services.platform.sqlite.database import Database, announce

# Maximum number of events per append to the event log.
RELAY_BATCH = 500
# Maximum number of events in memory that are not relayed, about 500 bytes each. Beyond it the relay, whose event log is
# slow or unavailable, reads the events from the table.
MAX_PENDING = 4 * RELAY_BATCH
# Seconds for which events may stay in the outbox after they were appended to the event log. A crash repeats the events of
# this time.
DELETE_AFTER_S = 1.0

# A service that publishes events must have this script among its migrations.
OUTBOX_SCHEMA = """
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, key INTEGER NOT NULL, event_id INTEGER NOT NULL,
    payload BLOB NOT NULL, traceparent TEXT NOT NULL
);
"""
_INSERT = "INSERT INTO outbox (topic, key, event_id, payload, traceparent) VALUES (?, ?, ?, ?, ?)"
_OLDEST = "SELECT seq, topic, key, event_id, payload, traceparent FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?"
# The single writer assigns `seq` in commit order, so no row with a smaller `seq` than one that was read can appear
# later.
_DELETE_BEFORE = "DELETE FROM outbox WHERE seq < ?"
_PENDING = """SELECT count(*), min(event_id) FROM (SELECT event_id FROM outbox
    WHERE seq > ? AND topic IN (SELECT value FROM json_each(?)) LIMIT ?)"""


def enqueue(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Adds events to the outbox in the current transaction. Call this function in a unit of work of
    `Database.write`."""
    announce(connection, [(connection.execute(_INSERT, record).lastrowid, record) for record in records])


class Relay:
    """Moves the events of one database's outbox to the event log in order. Each commit wakes it and passes it the new
    events, so it reads the table only after a start and when it has fallen behind. A database must have only one
    relay."""

    def __init__(self, db: Database, log: EventLog) -> None:
        self.db = db
        self.log = log
        outbox.register(self)
        self._worker = WorkerLoop("outbox-relay", self._relay_batch)
        # The last row that is in the event log; 0 if no such row is in the outbox.
        self._relayed = 0
        # Committed events that are not relayed, with their row numbers, the oldest first; all of them if
        # `_knows_all` is true.
        self._pending: deque[tuple[int, Record]] = deque()
        self._knows_all = False
        # True if `_pending` was emptied because it was full.
        self._overflowed = False
        # Runs while relayed rows are in the outbox; then they are deleted.
        self._timer: asyncio.TimerHandle | None = None
        self._deletion_due = False
        db.on_commit(self._take)

    async def start(self) -> None:
        """Starts moving events, beginning with the events that an earlier process left in the outbox."""
        self._worker.start()

    async def stop(self) -> None:
        """Stops after the current batch. To leave no event in the outbox, await `drained` first."""
        await self._worker.stop()
        # If the store fails, the next process appends the events once more.
        with contextlib.suppress(errors.RoostError):
            await self.db.write(lambda c: c.execute(_DELETE_BEFORE, (self._relayed + 1,)))
            self._relayed = 0
        self._end_timer()

    async def drained(self) -> None:
        """Waits until every event that was committed before the call is in the event log. Does not return while the
        event log is unavailable."""
        await self._worker.idle.wait()

    async def pending(self, topics: Sequence[str]) -> tuple[int, int]:
        """Returns how many events of these topics are in the outbox (counted up to MAX_LAG_COUNTED), and the smallest
        of their ids (0 if there are none). Raises the errors of `Database.read`."""
        bounds = (self._relayed, json.dumps(list(topics)), MAX_LAG_COUNTED)
        count, oldest = await self.db.read(lambda c: c.execute(_PENDING, bounds).fetchone())
        return count, oldest or 0

    def _take(self, committed: Sequence[tuple[int, Record]]) -> None:
        self._pending.extend(committed)
        if len(self._pending) > MAX_PENDING:
            self._pending.clear()
            self._knows_all, self._overflowed = False, True
        self._worker.wake()

    async def _relay_batch(self) -> bool:
        if self._deletion_due:
            await self._delete_relayed()
        known = self._knows_all
        # Reset before the query, which finds all events that were dropped before.
        self._overflowed = False
        rows = list(itertools.islice(self._pending, RELAY_BATCH)) if known else await self._query()
        if rows:
            await self.log.append([record for _, record in rows])
            self._relayed = rows[-1][0]
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(DELETE_AFTER_S, self._wake_to_delete)
        while self._pending and self._pending[0][0] <= self._relayed:
            self._pending.popleft()
        if not known and len(rows) < RELAY_BATCH:
            # The query found all events but those of later commits, which are in `_pending`.
            self._knows_all = not self._overflowed
        return len(rows) == RELAY_BATCH

    async def _query(self) -> list[tuple[int, Record]]:
        after = self._relayed
        rows = await self.db.read(lambda c: c.execute(_OLDEST, (after, RELAY_BATCH)).fetchall())
        return [(row[0], Record(*row[1:])) for row in rows]

    def _wake_to_delete(self) -> None:
        self._deletion_due = True
        self._worker.wake()

    async def _delete_relayed(self) -> None:
        """Deletes all rows before the last relayed one. That row stays until the relay stops: after an empty table the
        next row would get the number 1 again, which `pending` would take for a relayed one."""
        if self._timer is None:
            return
        await self.db.write(lambda c: c.execute(_DELETE_BEFORE, (self._relayed,)))
        self._end_timer()

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._deletion_due = None, False
