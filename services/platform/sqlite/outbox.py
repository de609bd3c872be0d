"""The outbox in SQLite: a service's events commit with its rows, and a relay carries them to the event log.

Append first, delete after: a crash between gives the events twice, never not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from services.platform.events import outbox
from services.platform.events.log import MAX_LAG_COUNTED, EventLog, Record
from services.platform.events.worker_loop import WorkerLoop
from services.platform.sqlite.database import Database

# Carried in one commit of the log, and what a crash at the wrong moment repeats.
RELAY_BATCH = 500

# To be one of the migrations of a service that publishes.
OUTBOX_SCHEMA = """
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, key INTEGER NOT NULL, event_id INTEGER NOT NULL,
    payload BLOB NOT NULL, traceparent TEXT NOT NULL
);
"""
_INSERT = "INSERT INTO outbox (topic, key, event_id, payload, traceparent) VALUES (?, ?, ?, ?, ?)"
_OLDEST = "SELECT seq, topic, key, event_id, payload, traceparent FROM outbox ORDER BY seq LIMIT ?"
# One writer gives out seq in the order of commits: nothing below what was read can still appear.
_DELETE = "DELETE FROM outbox WHERE seq <= ?"
_PENDING = """SELECT count(*), min(event_id) FROM (SELECT event_id FROM outbox
    WHERE topic IN (SELECT value FROM json_each(?)) LIMIT ?)"""


def enqueue(connection: sqlite3.Connection, records: Iterable[Record]) -> None:
    """Adds events to the transaction at hand: to be called in a unit of work of `Database.write`."""
    connection.executemany(_INSERT, records)


class Relay:
    """Carries one database's outbox to the log, in order, woken by each commit. One a database."""

    def __init__(self, db: Database, log: EventLog) -> None:
        self.db = db
        self.log = log
        outbox.register(self)
        self._worker = WorkerLoop("outbox-relay", self._relay_batch)
        db.on_commit(self._worker.wake)

    async def start(self) -> None:
        """Carries what an earlier life left, then what comes."""
        self._worker.start()

    async def stop(self) -> None:
        """Ends after the batch at hand. What is left stays for the next start; await `drained` before to leave none."""
        await self._worker.stop()

    async def drained(self) -> None:
        """Returns once every event committed before the call is in the log; while the log refuses, it waits."""
        await self._worker.idle.wait()

    async def waiting(self, topics: Sequence[str]) -> tuple[int, int]:
        """How many events of these topics wait in the database (at most MAX_LAG_COUNTED are counted), and the least id (0: none)."""
        bounds = (json.dumps(list(topics)), MAX_LAG_COUNTED)
        count, oldest = await self.db.read(lambda c: c.execute(_PENDING, bounds).fetchone())
        return count, oldest or 0

    async def _relay_batch(self) -> bool:
        rows = await self.db.read(lambda c: c.execute(_OLDEST, (RELAY_BATCH,)).fetchall())
        if rows:
            await self.log.append([Record(*row[1:]) for row in rows])
            await self.db.write(lambda c: c.execute(_DELETE, (rows[-1][0],)), quiet=True)
        return len(rows) == RELAY_BATCH
