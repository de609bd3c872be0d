"""The SQLite database: writes are durable when they return, and a failing unit affects no other."""

from __future__ import annotations

import asyncio
import functools
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.platform.rpc import errors
from services.platform.sqlite import database as sqlite_database
from services.platform.sqlite.database import Database, announce
from tests.waiting import WITHIN_S

SCHEMA = ["CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"]


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(tmp_path / "a b?#.db", SCHEMA)
    yield database
    await database.close()


async def add(db: Database, number: int, name: str = "x") -> int:
    return await db.write(lambda c: c.execute("INSERT INTO item VALUES (?, ?)", (number, name)).rowcount)


async def ids(db: Database) -> list[int]:
    return await db.read(lambda c: [row[0] for row in c.execute("SELECT id FROM item ORDER BY id")])


class Hold:
    """Occupies the writer thread, so that later units form one group."""

    def __init__(self, db: Database) -> None:
        self._begun, self.release = threading.Event(), threading.Event()
        self.task = asyncio.create_task(db.write(self._occupy))

    def _occupy(self, _: sqlite3.Connection) -> None:
        self._begun.set()
        self.release.wait(WITHIN_S)

    async def begun(self) -> None:
        """Waits until the writer thread is occupied."""
        await asyncio.to_thread(self._begun.wait, WITHIN_S)


async def test_write_returns_result_visible_to_next_read(db: Database) -> None:
    assert await add(db, 1) == 1
    assert await ids(db) == [1]


async def test_open_sets_synchronous_full_wal(db: Database) -> None:
    def settings(connection: sqlite3.Connection) -> tuple[str, int]:
        (journal,), (synchronous,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("journal_mode", "synchronous")
        )
        return journal, synchronous

    full = 2
    assert await db.write(settings) == ("wal", full)


async def test_write_queued_units_share_commit_and_wake_up(db: Database) -> None:
    commits: list[list[int]] = []
    hold = Hold(db)
    await hold.begun()
    writes = [asyncio.create_task(db.write(functools.partial(announce, objects=[i]))) for i in range(100)]
    await asyncio.sleep(0)
    db.on_commit(lambda announced: commits.append(list(announced)))
    hold.release.set()
    await asyncio.gather(hold.task, *writes)
    assert commits == [list(range(100))]


async def test_write_passes_only_announcements_of_committed_units_to_hooks(db: Database) -> None:
    commits: list[list[str]] = []
    db.on_commit(lambda announced: commits.append(list(announced)))

    def unit(connection: sqlite3.Connection, name: str, fails: bool) -> None:
        announce(connection, [name, name.upper()])
        if fails:
            raise LookupError("no")

    await add(db, 1)
    assert commits == [], "nothing was announced"
    hold = Hold(db)
    await hold.begun()
    names = {"a": False, "b": True, "c": False}
    writes = [db.write(functools.partial(unit, name=name, fails=fails)) for name, fails in names.items()]
    results = asyncio.gather(*writes, return_exceptions=True)
    await asyncio.sleep(0)
    hold.release.set()
    await results
    assert commits == [["a", "A", "c", "C"]]
    await db.write(
        lambda c: c.execute("CREATE TABLE child (item INTEGER REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
    )

    def orphan(connection: sqlite3.Connection) -> None:
        announce(connection, ["orphan"])
        connection.execute("INSERT INTO child VALUES (9)")

    with pytest.raises(errors.RoostError):
        await db.write(orphan)
    await db.write(functools.partial(announce, objects=["d"]))
    assert commits == [["a", "A", "c", "C"], ["d"]], "the commit of the orphan failed"


async def test_write_failing_unit_is_rolled_back_alone(db: Database) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO item VALUES (50, 'half')")
        raise LookupError("no")

    hold = Hold(db)
    await hold.begun()
    results = asyncio.gather(add(db, 1), db.write(half), add(db, 1), add(db, 2), return_exceptions=True)
    await asyncio.sleep(0)
    hold.release.set()
    first, second, third, fourth = await results
    assert (first, fourth) == (1, 1)
    assert isinstance(second, LookupError)
    assert isinstance(third, sqlite3.IntegrityError)
    assert await ids(db) == [1, 2]


async def test_commit_failure_fails_group_only(db: Database) -> None:
    await db.write(
        lambda c: c.execute("CREATE TABLE child (item INTEGER REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
    )
    hold = Hold(db)
    await hold.begun()
    orphan = db.write(lambda c: c.execute("INSERT INTO child VALUES (404)"))
    results = asyncio.gather(add(db, 1), orphan, add(db, 2), return_exceptions=True)
    await asyncio.sleep(0)
    hold.release.set()
    for result in await results:
        assert isinstance(result, errors.RoostError)
        assert result.code.name == "UNAVAILABLE"
        assert result.retry_after_s
    assert await ids(db) == []
    assert await add(db, 3) == 1


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_write_unit_ending_transaction_fails(db: Database, end: str) -> None:
    with pytest.raises(errors.RoostError):
        await db.write(lambda c: c.execute(end))
    assert await add(db, 1) == 1


async def test_write_full_disk_is_unavailable_until_space_is_free(db: Database) -> None:
    await add(db, 1)
    await db.write(lambda c: c.execute("PRAGMA max_page_count = 4"))
    with pytest.raises(errors.RoostError) as caught:
        await add(db, 2, "x" * 100_000)
    assert caught.value.code.name == "UNAVAILABLE"
    assert caught.value.retry_after_s
    assert await ids(db) == [1]
    await db.write(lambda c: c.execute("PRAGMA max_page_count = 100000"))
    assert await add(db, 2, "x" * 100_000) == 1


async def test_read_writing_unit_fails(db: Database) -> None:
    with pytest.raises(errors.RoostError):
        await db.read(lambda c: c.execute("DELETE FROM item"))


async def test_read_uses_one_snapshot(db: Database) -> None:
    reading, written = threading.Event(), threading.Event()

    def count_twice(connection: sqlite3.Connection) -> list[int]:
        counts = [connection.execute("SELECT count(*) FROM item").fetchone()[0]]
        reading.set()
        assert written.wait(10)
        return [*counts, connection.execute("SELECT count(*) FROM item").fetchone()[0]]

    read = asyncio.create_task(db.read(count_twice))
    await asyncio.to_thread(reading.wait, 10)
    await add(db, 1)
    written.set()
    assert await read == [0, 0]


async def test_write_stop_iteration_is_raised_as_runtime_error(db: Database) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await db.read(lambda _: next(iter(())))


async def test_write_cancelled_caller_does_not_affect_others(db: Database) -> None:
    hold = Hold(db)
    await hold.begun()
    gone, stays = asyncio.create_task(add(db, 1)), asyncio.create_task(add(db, 2))
    await asyncio.sleep(0)
    gone.cancel()
    hold.release.set()
    assert await stays == 1
    assert await ids(db) == [2]


async def test_write_full_queue_is_rejected(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_database, "MAX_QUEUED", 2)
    hold = Hold(db)
    waiting = asyncio.create_task(add(db, 1))
    await asyncio.sleep(0)
    with pytest.raises(errors.RoostError) as caught:
        await add(db, 2)
    assert caught.value.code.name == "RESOURCE_EXHAUSTED"
    hold.release.set()
    await waiting
    assert await add(db, 3) == 1


async def test_close_completes_queued_and_rejects_later_units(tmp_path: Path) -> None:
    db = await Database.open(tmp_path / "x.db", SCHEMA)
    writes = [asyncio.create_task(add(db, i)) for i in range(50)]
    await asyncio.sleep(0)
    await db.close()
    await db.close()
    assert await asyncio.gather(*writes) == [1] * 50
    with pytest.raises(errors.RoostError):
        await add(db, 51)
    again = await Database.open(tmp_path / "x.db", SCHEMA)
    assert len(await ids(again)) == 50
    await again.close()


async def test_open_applies_migrations_once_atomically(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    db = await Database.open(path, SCHEMA)
    await add(db, 1)
    await db.close()
    broken = "ALTER TABLE item ADD COLUMN size INTEGER DEFAULT 5; INSERT INTO nowhere VALUES (1)"
    with pytest.raises(sqlite3.OperationalError):
        await Database.open(path, [*SCHEMA, broken])
    second = "ALTER TABLE item ADD COLUMN size INTEGER DEFAULT 5; -- a last comment"
    for _ in range(2):
        db = await Database.open(path, [*SCHEMA, second])
        assert await db.read(lambda c: c.execute("SELECT id, size FROM item").fetchall()) == [(1, 5)]
        await db.close()
    with pytest.raises(errors.RoostError, match="newer release"):
        await Database.open(path, SCHEMA)


async def test_open_second_owner_is_rejected(db: Database, tmp_path: Path) -> None:
    with pytest.raises(errors.RoostError, match="in use"):
        await Database.open(tmp_path / "a b?#.db", SCHEMA)


async def test_write_returned_survives_kill(tmp_path: Path) -> None:
    script = """
import asyncio, pathlib, sys
from services.platform.sqlite.database import Database
async def main():
    db = await Database.open(pathlib.Path(sys.argv[1]), ["CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)"])
    async def add(i):
        await db.write(lambda c: c.execute("INSERT INTO item VALUES (?, 'x')", (i,)))
        print(i, flush=True)
    for base in range(0, 1_000_000, 20):
        await asyncio.gather(*(add(base + i) for i in range(20)))
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, tmp_path / "x.db", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged = [int(await process.stdout.readline()) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in (await process.stdout.read()).split(b"\n")[:-1]]
    await process.wait()
    db = await Database.open(tmp_path / "x.db", SCHEMA)
    assert set(acknowledged) <= set(await ids(db))
    await db.close()
