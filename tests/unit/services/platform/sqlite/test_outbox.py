"""The SQLite outbox: a committed event reaches the log, once normally and twice after a crash."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.sqlite import outbox
from services.platform.sqlite.database import Database
from services.platform.sqlite.event_log import EmbeddedLog
from services.platform.sqlite.outbox import OUTBOX_SCHEMA, RELAY_BATCH, Relay, enqueue
from tests.waiting import wait_until

SCHEMA = ["CREATE TABLE tweet (id INTEGER PRIMARY KEY)", OUTBOX_SCHEMA]


class Mesh:
    def __init__(self, db: Database, log: EmbeddedLog) -> None:
        self.db, self.log = db, log
        self.relay = Relay(db, log)

    async def post(self, *ids: int) -> None:
        def insert(connection) -> None:  # type: ignore[no-untyped-def]
            connection.executemany("INSERT INTO tweet VALUES (?)", [(i,) for i in ids])
            enqueue(connection, [Record("tweet.created", 1, i, b"%d" % i, "t") for i in ids])

        await self.db.write(insert)

    async def logged(self) -> list[int]:
        return await self.log.db.read(lambda c: [row[0] for row in c.execute("SELECT event_id FROM event ORDER BY 1")])

    async def rows(self) -> int:
        (count,) = await self.db.read(lambda c: c.execute("SELECT count(*) FROM outbox").fetchone())
        return int(count)

    async def close(self) -> None:
        await self.relay.stop()
        await self.log.close()
        await self.db.close()


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    mesh = await open_mesh(tmp_path)
    yield mesh
    await mesh.close()


async def open_mesh(data: Path) -> Mesh:
    return Mesh(await Database.open(data / "tweet.db", SCHEMA), await EmbeddedLog.open(data / "log.db"))


async def test_commit_wakes_relay_and_drained_waits_for_log(mesh: Mesh) -> None:
    await mesh.relay.start()
    for i in range(5):
        await mesh.post(i)
        async with asyncio.timeout(30):
            await mesh.relay.drained()
        assert await mesh.logged() == list(range(i + 1))
        assert await mesh.relay.pending(["tweet.created"]) == (0, 0)


async def test_relayed_rows_are_deleted_and_later_ones_are_relayed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "DELETE_AFTER_S", 0.01)
    await mesh.relay.start()
    for i in range(5):
        await mesh.post(2 * i, 2 * i + 1)
        await mesh.relay.drained()
        assert await mesh.logged() == list(range(2 * i + 2))
        async with asyncio.timeout(30):
            while await mesh.rows() > 1:
                await asyncio.sleep(0.01)


async def test_pending_counts_event_that_commits_with_deletion(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "DELETE_AFTER_S", 0.01)
    found: list[tuple[int, int]] = []
    await mesh.relay.start()
    await mesh.post(1, 2, 3)
    await mesh.relay.drained()
    write = mesh.db.write

    async def delete_and_post(unit: Any) -> Any:
        result = await write(unit)
        monkeypatch.undo()
        await mesh.post(4)
        found.append(await mesh.relay.pending(["tweet.created"]))
        return result

    monkeypatch.setattr(mesh.db, "write", delete_and_post)
    await wait_until(lambda: found)
    assert found == [(1, 4)], "the relay has not seen it yet"
    await mesh.relay.drained()
    assert await mesh.logged() == [1, 2, 3, 4]


async def test_relay_stop_deletes_relayed_rows(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.relay.start()
    await mesh.post(1, 2)
    await mesh.relay.drained()
    await mesh.relay.stop()
    assert await mesh.rows() == 0
    # A start afterwards begins with the rows that are left.
    await mesh.post(3)
    await mesh.relay.start()
    await mesh.relay.drained()
    assert await mesh.logged() == [1, 2, 3]


async def test_relay_publishes_events_of_earlier_process_in_order(mesh: Mesh) -> None:
    ids = list(range(RELAY_BATCH * 2 + 7))
    await mesh.post(*ids)
    await mesh.relay.start()
    await mesh.relay.drained()
    rows = await mesh.log.db.read(lambda c: c.execute("SELECT event_id, payload, traceparent FROM event").fetchall())
    assert rows == [(i, b"%d" % i, "t") for i in ids]


async def test_failed_unit_publishes_nothing(mesh: Mesh) -> None:
    await mesh.relay.start()
    await mesh.post(1)
    with pytest.raises(Exception, match="UNIQUE"):
        await mesh.post(2, 1)
    await mesh.relay.drained()
    assert await mesh.logged() == [1]


async def test_relay_log_unavailable_retries_without_loss(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    append, refusals = mesh.log.append, 3

    async def refuse(records: Sequence[Record]) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise errors.unavailable("full")
        await append(records)

    monkeypatch.setattr(mesh.log, "append", refuse)
    await mesh.relay.start()
    await mesh.post(1)
    await mesh.relay.drained()
    assert await mesh.logged() == [1]


@pytest.mark.parametrize("seed", range(8))
async def test_relay_full_memory_outage_and_deletion_keep_order_without_repeats(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(outbox, "RELAY_BATCH", 3)
    monkeypatch.setattr(outbox, "MAX_PENDING", 7)
    monkeypatch.setattr(outbox, "DELETE_AFTER_S", 0.002)
    chance = random.Random(seed)
    append = mesh.log.append
    fails = chance.choice((0.0, 0.3, 0.6))

    async def append_or_fail(records: Sequence[Record]) -> None:
        await asyncio.sleep(chance.choice((0, 0, 0.001, 0.004)))
        if chance.random() < fails:
            raise errors.unavailable("full")
        await append(records)

    monkeypatch.setattr(mesh.log, "append", append_or_fail)
    monkeypatch.setattr(mesh.relay._worker, "_retry_first_s", 0.001)
    posted = 0
    await mesh.relay.start()
    for _ in range(60):
        for size in chance.sample((1, 1, 2, 5, 9), chance.randint(1, 3)):
            await mesh.post(*range(posted, posted + size))
            posted += size
        await asyncio.sleep(chance.choice((0, 0, 0.001, 0.003, 0.01)))
        if chance.random() < 0.05:
            await mesh.relay.stop()
            await mesh.relay.start()
    fails = 0.0
    await mesh.relay.drained()
    logged = await mesh.log.db.read(lambda c: c.execute("SELECT event_id FROM event ORDER BY event_offset").fetchall())
    assert [event_id for (event_id,) in logged] == list(range(posted))


async def test_relay_memory_full_during_first_append_loses_nothing(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_PENDING", 7)
    append, begun, gate = mesh.log.append, asyncio.Event(), asyncio.Event()

    async def append_at_gate(records: Sequence[Record]) -> None:
        begun.set()
        await gate.wait()
        await append(records)

    monkeypatch.setattr(mesh.log, "append", append_at_gate)
    await mesh.post(0)
    await mesh.relay.start()
    await begun.wait()
    await mesh.post(*range(1, 10))
    gate.set()
    await mesh.relay.drained()
    assert await mesh.logged() == list(range(10))


async def test_relay_that_keeps_up_reads_no_table(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    await mesh.post(0)
    await mesh.relay.start()
    await mesh.relay.drained()
    with monkeypatch.context() as patch:
        patch.setattr(mesh.db, "read", lambda _: pytest.fail("a query"))
        for i in range(1, 4):
            await mesh.post(i)
            await mesh.relay.drained()
    assert await mesh.logged() == [0, 1, 2, 3]


async def test_relay_killed_before_delete_publishes_event_twice(tmp_path: Path) -> None:
    script = """
import asyncio, os, pathlib, signal, sys
from services.platform.sqlite.database import Database
from services.platform.events.log import Record
from services.platform.sqlite.event_log import EmbeddedLog
from services.platform.sqlite.outbox import OUTBOX_SCHEMA, Relay, enqueue
async def main():
    data = pathlib.Path(sys.argv[1])
    db = await Database.open(data / "tweet.db", ["CREATE TABLE tweet (id INTEGER PRIMARY KEY)", OUTBOX_SCHEMA])
    log = await EmbeddedLog.open(data / "log.db")
    append = log.append
    async def append_and_die(records):
        await append(records)
        os.kill(os.getpid(), signal.SIGKILL)
    log.append = append_and_die
    await Relay(db, log).start()
    await db.write(lambda c: enqueue(c, [Record("tweet.created", 1, 42, b"x")]))
    await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, tmp_path, stdout=subprocess.DEVNULL)
    assert await process.wait() == -9
    mesh = await open_mesh(tmp_path)
    assert await mesh.logged() == [42]
    await mesh.relay.start()
    await mesh.relay.drained()
    assert await mesh.logged() == [42, 42]
    await mesh.close()
