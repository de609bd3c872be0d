"""Properties of the embedded log alone: total order, and retention that respects its groups. The port's contract tests
are in tests/contract."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.platform.events import log as event_log
from services.platform.events.log import ConsumedEvent, Record
from services.platform.rpc import errors
from services.platform.sqlite import event_log as log_module
from services.platform.sqlite.event_log import EmbeddedConsumer, EmbeddedLog
from tests.waiting import WITHIN_S, wait_until, wait_until_async

HOUR_MS = 3_600_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Sink:
    """Records the events that it applies, and fails if a test says so."""

    def __init__(self) -> None:
        self.events: list[ConsumedEvent] = []
        self.batches: list[int] = []
        self.poison: set[int] = set()
        self.down: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        self.calls += 1
        await self.gate.wait()
        if self.down is not None:
            raise self.down
        if any(event.event_id in self.poison for event in events):
            raise ValueError("poison")
        self.batches.append(len(events))
        self.events.extend(events)

    @property
    def ids(self) -> list[int]:
        return [event.event_id for event in self.events]


def records(*ids: int, topic: str = "tweet.created") -> list[Record]:
    return [Record(topic, i % 3, i, b"payload %d" % i, "00-trace") for i in ids]


async def received(sink: Sink, ids: list[int]) -> None:
    await wait_until(lambda: sink.ids == ids)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
async def log(tmp_path: Path, clock: Clock) -> AsyncIterator[EmbeddedLog]:
    log = await EmbeddedLog.open(tmp_path / "log.db", clock, retry_first_s=0.001)
    yield log
    await log.close()


async def applied_all(consumer: EmbeddedConsumer) -> bool:
    """Returns whether the consumer has stored its offset behind every event."""
    return not (await consumer.lag()).events


async def start(log: EmbeddedLog, sink: Sink, group: str = "g", max_batch: int = 500) -> EmbeddedConsumer:
    consumer = log.consumer(group, ["tweet.created", "tweet.deleted"], sink.apply, max_batch)
    await consumer.start()
    return consumer


@pytest.mark.parametrize("caller_gives_up", [False, True])
async def test_append_commit_wakes_consumer(log: EmbeddedLog, sink: Sink, caller_gives_up: bool) -> None:
    consumer = await start(log, sink)
    await consumer.worker.idle.wait()
    begun, first, appended, second = (threading.Event() for _ in range(4))

    def occupy(_: Any) -> None:
        begun.set()
        first.wait(WITHIN_S)

    def delay_commit(_: Any) -> None:
        appended.set()
        second.wait(WITHIN_S)

    earlier = asyncio.create_task(log.db.write(occupy))
    await asyncio.to_thread(begun.wait, WITHIN_S)
    # Both units are queued behind `earlier` and share the next commit.
    appending = asyncio.create_task(log.append(records(1)))
    same_group = asyncio.create_task(log.db.write(delay_commit))
    await asyncio.sleep(0)
    first.set()
    await earlier
    # A unit whose caller is cancelled before it runs is not stored.
    await asyncio.to_thread(appended.wait, WITHIN_S)
    if caller_gives_up:
        appending.cancel()
    assert sink.ids == [], "nothing is committed"
    second.set()
    await asyncio.wait([appending, same_group])
    assert appending.cancelled() == caller_gives_up
    await received(sink, [1])


async def test_consumer_that_is_up_to_date_reads_appended_events_without_query(
    log: EmbeddedLog, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append(records(1, 2))
    consumer = await start(log, sink)
    await received(sink, [1, 2])
    await consumer.worker.idle.wait()

    async def read(_: Any) -> Any:
        pytest.fail("a query")

    with monkeypatch.context() as patch:
        patch.setattr(log.db, "read", read)
        await log.append(records(3))
        await log.append(records(4, topic="user.followed"))
        await log.append(records(5, 6))
        await received(sink, [1, 2, 3, 5, 6])
    # Behind the tail, which begins with event 3.
    await consumer.seek(offset=2)
    await received(sink, [1, 2, 3, 5, 6, 2, 3, 5, 6])


async def test_sweep_drops_deleted_events_from_memory(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    await log.append(records(1, 2))
    clock.now_ms += event_log.RETENTION_S * 1000 + 1
    assert await log.sweep() == 2
    await start(log, sink)
    await log.append(records(3))
    await received(sink, [3])


async def test_unapplied_batch_is_delivered_after_kill(tmp_path: Path, clock: Clock, sink: Sink) -> None:
    """Like kill -9: the task is cancelled during `apply`, and only the file is closed properly."""
    log = await EmbeddedLog.open(tmp_path / "x.db", clock)
    await log.append(records(1, 2))
    sink.gate.clear()
    consumer = await start(log, sink)
    await wait_until(lambda: sink.calls == 1)
    task = consumer.worker._task
    assert task is not None
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await log.db.close()
    sink.gate.set()
    again = await EmbeddedLog.open(tmp_path / "x.db", clock)
    await start(again, sink)
    await wait_until(lambda: sink.ids == [1, 2])
    await again.close()


async def test_sweep_keeps_unconsumed_events_and_dead_letters(
    log: EmbeddedLog, clock: Clock, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SWEEP_ROWS", 2)
    sink.poison = {1}
    slow = Sink()
    slow.gate.clear()
    consumer = await start(log, sink)
    await log.append([*records(1, 2, 3), *records(7, 8, topic="user.followed")])
    await wait_until(lambda: sink.ids == [2, 3])
    behind = await start(log, slow, "slow", max_batch=2)
    await wait_until(lambda: slow.calls == 1)
    clock.now_ms += event_log.RETENTION_S * 1000 + HOUR_MS
    await log.append(records(4))
    await wait_until(lambda: sink.ids == [2, 3, 4])
    assert await log.sweep() == 0
    slow.gate.set()
    # The consumer stores its offset after the effect.
    await wait_until_async(lambda: applied_all(behind))
    assert slow.ids == [1, 2, 3, 4]
    assert [await log.sweep() for _ in range(3)] == [2, 2, 0]
    assert [letter.event.event_id for letter in await log.dead_letters("g")] == [1]
    clock.now_ms += 30 * 24 * HOUR_MS
    await log.sweep()
    assert await log.dead_letters("g") == []
    # Offsets are not reused, although the table may be empty.
    await log.append(records(5))
    await wait_until(lambda: 5 in sink.ids)
    assert sink.events[-1].offset == 7
    await consumer.stop()


async def test_sweep_group_without_events_does_not_block_retention(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    other = log.consumer("other", ["tweet.edited"], Sink().apply)
    await other.start()
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    await wait_until(lambda: sink.ids == [1, 2])
    await wait_until_async(lambda: applied_all(consumer))
    clock.now_ms += event_log.RETENTION_S * 1000 + 1
    assert await log.sweep() == 2


async def test_consumer_order_is_append_order_over_all_topics(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    await log.append([*records(3, 1), *records(9, topic="user.followed"), *records(2, topic="tweet.deleted")])
    await start(log, sink)
    await received(sink, [3, 1, 2])
    assert sink.events[0] == ConsumedEvent(1, clock.now_ms, "tweet.created", 0, 3, b"payload 3", "00-trace")
    assert [event.offset for event in sink.events] == [1, 2, 4]


async def test_sweep_broadcast_consumer_does_not_block_retention(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    """Also if an earlier release stored an offset for it."""
    ordinary = await start(log, Sink())
    await log.append(records(1))
    await ordinary.stop()
    consumer = log.consumer("g", ["tweet.created"], sink.apply, broadcast=True)
    await consumer.start()
    await consumer.stop()
    await log.append(records(2))
    clock.now_ms += event_log.RETENTION_S * 1000 + 1
    assert await log.sweep() == 2


async def test_append_wakes_only_consumers_of_its_topics(log: EmbeddedLog, sink: Sink) -> None:
    other = log.consumer("other", ["tweet.edited"], Sink().apply)
    await other.start()
    consumer = await start(log, sink)
    await wait_until(lambda: other.worker.idle.is_set() and consumer.worker.idle.is_set())
    woken: list[str] = []
    for one in (other, consumer):
        one.worker.wake = lambda wake=one.worker.wake, one=one: (woken.append(one._group), wake())  # type: ignore[method-assign]
    await log.append(records(1))
    await wait_until(lambda: sink.ids == [1])
    assert woken == [consumer._group]
    assert other.position == 1
    # A paused consumer does not skip, because it may have events to apply.
    other.pause()
    await log.append(records(2))
    assert other.position == 1
    for one in (other, consumer):
        await one.stop()


def commit_before_next_write_returns(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits an event of another topic before the next write of the log returns, as a busy mesh does."""
    write = log.db.write

    async def with_append(unit: Any) -> Any:
        monkeypatch.undo()
        await log.append(records(99, topic="user.followed"))
        return await write(unit)

    monkeypatch.setattr(log.db, "write", with_append)


async def test_seek_during_append_of_other_topic_delivers_sought_events(
    log: EmbeddedLog, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    await received(sink, [1, 2])
    await asyncio.wait_for(consumer.worker.idle.wait(), WITHIN_S)
    commit_before_next_write_returns(log, monkeypatch)
    await consumer.seek(offset=1)
    await received(sink, [1, 2, 1, 2])


async def test_restart_during_append_of_other_topic_delivers_events_appended_while_stopped(
    log: EmbeddedLog, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = await start(log, sink)
    await asyncio.wait_for(consumer.worker.idle.wait(), WITHIN_S)
    await consumer.stop()
    await log.append(records(1))
    commit_before_next_write_returns(log, monkeypatch)
    await consumer.start()
    await received(sink, [1])


async def stored_offset(log: EmbeddedLog) -> int:
    row = await log.db.read(lambda c: c.execute("SELECT max(event_offset) FROM consumer_offset").fetchone())
    return int(row[0])


async def test_offset_is_stored_after_a_while_and_at_the_stop(
    log: EmbeddedLog, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "STORE_AFTER_S", 60.0)
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    await wait_until(lambda: sink.ids == [1, 2] and consumer.position == 2)
    assert await stored_offset(log) == 0
    await consumer.stop()
    assert await stored_offset(log) == 2
    log._timer.cancel()  # type: ignore[union-attr]
    log._timer = None
    monkeypatch.setattr(log_module, "STORE_AFTER_S", 0.01)
    await consumer.start()
    await log.append(records(3))

    async def stored() -> bool:
        return await stored_offset(log) == 3

    await wait_until_async(stored)
    await consumer.stop()


async def test_offset_that_cannot_be_stored_is_stored_later(
    log: EmbeddedLog, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "STORE_AFTER_S", 0.01)
    consumer = await start(log, sink)
    store, failures = consumer._store, 2

    async def fail(position: int) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise errors.unavailable("full")
        await store(position)

    monkeypatch.setattr(consumer, "_store", fail)
    await log.append(records(1))

    async def stored() -> bool:
        return await stored_offset(log) == 1

    await wait_until_async(stored)
    assert failures == -1
    await consumer.stop()
