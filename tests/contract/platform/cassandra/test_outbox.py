"""The Cassandra outbox: a stored event reaches the log, once normally and twice after a crash."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from services.platform.cassandra import outbox as module
from services.platform.cassandra import outbox_sweeper
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.cassandra.outbox import OUTBOX_MIGRATION, Outbox, PublishAll
from services.platform.events import outbox as common
from services.platform.events.log import Record
from services.platform.ids.snowflake import first_id_at
from services.platform.rpc import errors
from services.platform.sqlite.event_log import EmbeddedLog
from tests.cluster import KIT_OUTBOX, Namespace
from tests.contract.platform.conftest import until

pytestmark = pytest.mark.cluster

ROWS = "SELECT event_id, published FROM outbox"
_serial = count()


class Log(EmbeddedLog):
    """A real log that can fail for a while, or reject one event for good."""

    refusal: Exception | None = None
    refused = 0
    poison = 0

    async def append(self, records: Sequence[Record]) -> None:
        if self.refusal is not None:
            self.refused += 1
            raise self.refusal
        if any(record.event_id == self.poison for record in records):
            raise ValueError("too large")
        await super().append(records)

    async def ids(self) -> list[int]:
        return await self.db.read(lambda c: [row[0] for row in c.execute("SELECT event_id FROM event ORDER BY rowid")])


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    opened = await Log.open(tmp_path / "log.db")
    yield opened
    await opened.close()


@pytest.fixture
async def rows(cassandra: Cassandra) -> Keyspace:
    return await Keyspace.open(cassandra, KIT_OUTBOX, (OUTBOX_MIGRATION,))


@pytest.fixture
async def box(rows: Keyspace, log: Log) -> AsyncIterator[Outbox]:
    """An outbox that publishes at once; it sweeps only when a test asks for it."""
    made = Outbox(rows, log, time.time, PublishAll())
    made._worker.start()
    yield made
    await made.stop()


def an_event(age_s: float = 0.0, key: int = 5) -> Record:
    event_id = first_id_at(int((time.time() - age_s) * 1000)) + next(_serial) % 4096
    return Record("tweet.created", key, event_id, b"%d" % event_id, "trace")


async def published_flags(rows: Keyspace) -> dict[int, bool]:
    return dict(await rows.read(ROWS))


async def test_publish_appends_event_and_flags_row(rows: Keyspace, log: Log, box: Outbox) -> None:
    events = [an_event(key=key) for key in range(40)]
    for event in events:
        await rows.batch(box.statements([event]))
        box.publish([event])
    await box.drained()
    # In publishing order.
    assert await log.ids() == [event.event_id for event in events]
    assert await published_flags(rows) == {event.event_id: True for event in events}
    assert await box.sweep() == 0
    kept = await rows.read("SELECT topic, key, event_id, payload, traceparent FROM outbox")
    assert sorted(Record(*row) for row in kept) == sorted(events)


async def test_sweep_publishes_events_of_dead_writer_once(rows: Keyspace, log: Log) -> None:
    # The clock stands still, so that the young event does not age on a busy machine.
    now_s = time.time()
    box = Outbox(rows, log, lambda: now_s, PublishAll())
    left = [an_event(age_s=20, key=key) for key in range(3)]
    young = an_event()
    await rows.batch(box.statements([*left, young]))
    # The young event is left to its writer.
    assert await box.sweep() == 3
    assert sorted(await log.ids()) == sorted(event.event_id for event in left)
    assert await published_flags(rows) == {event.event_id: event is not young for event in [*left, young]}
    assert await box.sweep() == 0


async def test_start_sweeps_events_of_earlier_process(
    rows: Keyspace, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_sweeper, "SWEEP_INTERVAL_S", 0.2)
    now_s = time.time()
    box = Outbox(rows, log, lambda: now_s, PublishAll())
    old, new = an_event(age_s=300), an_event()
    await rows.batch(box.statements([old, new]))
    await box.start()
    await until(lambda: _logged(log, {old.event_id}))
    # The new event is left to its writer for GRACE_S.
    assert await log.ids() == [old.event_id]
    now_s += outbox_sweeper.GRACE_S + 1
    await until(lambda: _logged(log, {new.event_id}))
    assert await log.ids() == [old.event_id, new.event_id]
    await until(lambda: rows.read("SELECT minute FROM outbox_cursor"))
    await box.stop()


async def _logged(log: Log, ids: set[int]) -> bool:
    return ids <= set(await log.ids())


async def test_start_after_long_outage_sweeps_from_cursor(
    rows: Keyspace, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_sweeper, "SWEEP_INTERVAL_S", 0.2)
    # Everything was published up to two hours ago; this event was stored an hour ago.
    minute = int(time.time()) // 60
    await rows.write(outbox_sweeper._STORE_CURSOR, "sweeper", minute - 120)
    lost = an_event(age_s=3_600)
    box = Outbox(rows, log, lambda: time.time() - 3_600, PublishAll())
    await rows.batch(box.statements([lost]))
    box = Outbox(rows, log, time.time, PublishAll())
    assert await box.sweep() == 0
    await box.start()
    await until(lambda: _logged(log, {lost.event_id}))
    await until(lambda: _cursor_at(rows, minute))
    await box.stop()


async def _cursor_at(rows: Keyspace, minute: int) -> bool:
    return (await rows.read("SELECT minute FROM outbox_cursor"))[0][0] >= minute


async def test_sweep_finds_row_behind_cursor(rows: Keyspace, log: Log, box: Outbox) -> None:
    assert await box.sweep() == 0
    # As the replay of a logged batch writes it.
    late = an_event(age_s=290)
    await rows.batch(box.statements([late]))
    assert await box.sweep() == 1


async def test_sweep_reads_all_pages_of_partition(rows: Keyspace, log: Log, box: Outbox) -> None:
    minute_ago_ms = (int(time.time()) // 60 - 1) * 60_000
    many = [
        Record("tweet.created", 5, first_id_at(minute_ago_ms) + n, b"x")
        for n in range(2 * outbox_sweeper.PAGE_ROWS + 5)
    ]
    many += [Record("tweet.liked", *record[1:]) for record in many[:3]]
    for first in range(0, len(many), 50):
        await rows.batch(box.statements(many[first : first + 50]))
    assert await box.sweep() == len(many)
    assert sorted(await log.ids()) == sorted(record.event_id for record in many)


async def test_publish_log_unavailable_queues_events_in_order(rows: Keyspace, log: Log, box: Outbox) -> None:
    log.refusal = errors.unavailable("the log is down")
    events = [an_event(age_s=60) for _ in range(5)]
    for event in events:
        await rows.batch(box.statements([event]))
        box.publish([event])
    await until(lambda: log.refused)
    lag = await common.pending_lag(log, ["tweet.created"], int(time.time() * 1000))
    assert lag.events == 5
    assert 55 < lag.age_s < 90
    assert (await common.pending_lag(log, ["user.followed"], 0)).events == 0
    # Events queued in this process are not published by a sweep.
    assert await box.sweep() == 0
    log.refusal = None
    await box.drained()
    assert await log.ids() == [event.event_id for event in events]
    assert (await common.pending_lag(log, ["tweet.created"], 0)).events == 0


async def test_publish_full_queue_leaves_events_to_sweeper(
    rows: Keyspace, log: Log, box: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 3)
    log.refusal = errors.unavailable("the log is down")
    events = [an_event(age_s=60) for _ in range(10)]
    await rows.batch(box.statements(events))
    box.publish(events)
    log.refusal = None
    await box.drained()
    assert await log.ids() == [event.event_id for event in events[:3]]
    assert await box.sweep() == 7
    assert sorted(await log.ids()) == sorted(event.event_id for event in events)


async def test_publish_rejected_event_does_not_block_others(rows: Keyspace, log: Log, box: Outbox) -> None:
    events = [an_event(age_s=60) for _ in range(9)]
    log.poison = events[4].event_id
    await rows.batch(box.statements(events))
    box.publish(events)
    await box.drained()
    others = [event.event_id for event in events if event.event_id != log.poison]
    assert await log.ids() == others
    assert [event_id for event_id, published in (await published_flags(rows)).items() if not published] == [log.poison]


async def test_sweep_publishes_what_validator_returns(rows: Keyspace, log: Log) -> None:
    seen: list[tuple[list[int], list[int]]] = []
    failure: Exception | None = errors.unavailable("the store is down")

    class Validator:
        async def publishable(self, records: Sequence[Record]) -> Sequence[Record]:
            seen.append(([record.event_id for record in records], await log.ids()))
            if failure is not None:
                raise failure
            return [record for record in records if record.event_id != undone.event_id]

    box = Outbox(rows, log, time.time, Validator())
    found, undone = an_event(age_s=60), an_event(age_s=60)
    await rows.batch(box.statements([found]))
    with pytest.raises(errors.RoostError):
        await box.sweep()
    failure = ValueError("a defect")
    assert await box.sweep() == 0
    assert await log.ids() == []
    failure = None
    assert await box.sweep() == 1
    assert seen == [([found.event_id], [])] * 3
    await rows.batch(box.statements([undone]))
    assert await box.sweep() == 0
    assert (await published_flags(rows))[undone.event_id] is False
    # The validator is not called for events of the writer, whose rows are readable.
    box._worker.start()
    own = an_event()
    box.publish([own])
    await box.drained()
    assert len(seen) == 4
    await box.stop()


async def test_repeated_batch_is_not_published_again(rows: Keyspace, log: Log, box: Outbox) -> None:
    event = an_event(age_s=60)
    for _ in range(2):
        await rows.batch(box.statements([event]))
        await box.sweep()
    # Another process does not publish it either.
    assert await Outbox(rows, log, time.time, PublishAll()).sweep() == 0
    assert await log.ids() == [event.event_id]


async def test_old_event_row_belongs_to_current_minute(rows: Keyspace, log: Log, box: Outbox) -> None:
    # A retry, hours later, of a call whose first attempt stored nothing.
    event = an_event(age_s=20 * 3_600)
    await rows.batch(box.statements([event]))
    assert await box.sweep() == 1


CHILD = """
import asyncio, os, sys, time
from pathlib import Path
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.cassandra.outbox import OUTBOX_MIGRATION, Outbox, PublishAll
from services.platform.config import Settings
from services.platform.events.log import Record
from services.platform.sqlite.event_log import EmbeddedLog
from services.platform.ids.snowflake import Snowflake, wall_clock_ms

async def main():
    keyspace = await Keyspace.open(await Cassandra.open(Settings()), "kit_outbox", (OUTBOX_MIGRATION,))
    log = await EmbeddedLog.open(Path(sys.argv[1]))
    ids = Snowflake(1, wall_clock_ms)
    box = Outbox(keyspace, log, time.time, PublishAll())
    box._worker.start()
    while True:
        events = [Record("tweet.created", n, await ids.mint(), b"x") for n in range(3)]
        await keyspace.batch(box.statements(events))
        box.publish(events)
        print(*(event.event_id for event in events), flush=True)

asyncio.run(main())
"""


def _spawn(namespace: Namespace, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(log)]
    return subprocess.Popen(command, env=os.environ | namespace.environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
async def test_events_stored_before_kill_are_published_after_restart(
    rows: Keyspace, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_sweeper, "GRACE_S", 0.0)
    stored: set[int] = set()
    for life in range(3):
        child = _spawn(namespace, tmp_path / "shared.db")
        assert child.stdout is not None
        for _ in range(20 + 7 * life):
            line = await asyncio.to_thread(child.stdout.readline)
            assert line, "the child ended by itself"
            stored.update(map(int, line.split()))
        child.kill()
        child.communicate()
    log = await Log.open(tmp_path / "shared.db")
    try:
        box = Outbox(rows, log, time.time, PublishAll())
        await box.sweep()
        in_log = await log.ids()
        # All acknowledged events, and possibly the batch in progress.
        assert stored <= set(in_log)
        assert set(in_log) == set(await published_flags(rows))
        assert all((await published_flags(rows)).values())
    finally:
        await log.close()
