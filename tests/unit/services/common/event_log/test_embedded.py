"""Delivered at least once, in order, and a poison event stops nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from services.common import errors, event_log
from services.common.event_log import Delivered, Lag, Record
from services.common.event_log import embedded as embedded_module
from services.common.event_log.embedded import EmbeddedConsumer, EmbeddedLog

HOUR_MS = 3_600_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Sink:
    """Keeps what it is given, and fails where a test says so."""

    def __init__(self) -> None:
        self.events: list[Delivered] = []
        self.batches: list[int] = []
        self.poison: set[int] = set()
        self.down: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0

    async def apply(self, events: Sequence[Delivered]) -> None:
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
    await until(lambda: sink.ids == ids)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


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


async def start(log: EmbeddedLog, sink: Sink, group: str = "g", max_batch: int = 500) -> EmbeddedConsumer:
    consumer = log.consumer(group, ["tweet.created", "tweet.deleted"], sink.apply, max_batch)
    await consumer.start()
    return consumer


async def test_every_group_gets_its_topics_whole_and_in_order(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    await log.append(records(3, 1))
    other = Sink()
    await start(log, sink)
    await start(log, other, "other", max_batch=1)
    await log.append([*records(9, topic="user.followed"), *records(2, topic="tweet.deleted")])
    await until(lambda: sink.ids == other.ids == [3, 1, 2])
    assert sink.events[0] == Delivered(1, clock.now_ms, "tweet.created", 0, 3, b"payload 3", "00-trace")
    assert set(other.batches) == {1}


async def test_an_append_wakes_the_consumer_at_once(log: EmbeddedLog, sink: Sink) -> None:
    await start(log, sink)
    await asyncio.sleep(0.05)
    await log.append(records(1))
    async with asyncio.timeout(2.0):
        while not sink.ids:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("caller_gives_up", [False, True])
async def test_an_append_is_announced_by_its_own_commit(log: EmbeddedLog, sink: Sink, caller_gives_up: bool) -> None:
    await start(log, sink)
    first, second = threading.Event(), threading.Event()
    earlier = asyncio.create_task(log.db.write(lambda _: first.wait(5)))
    await asyncio.sleep(0.05)
    appending = asyncio.create_task(log.append(records(1)))
    same_group = asyncio.create_task(log.db.write(lambda _: second.wait(5)))
    await asyncio.sleep(0)
    first.set()
    await earlier
    # The consumer, woken by the earlier commit, looks and finds nothing; then comes the commit of the append.
    await asyncio.sleep(0.05)
    if caller_gives_up:
        appending.cancel()
    second.set()
    await asyncio.wait([appending, same_group])
    assert appending.cancelled() == caller_gives_up
    await received(sink, [1])


async def test_it_goes_on_where_it_stopped_also_after_a_restart(tmp_path: Path, clock: Clock, sink: Sink) -> None:
    for expected in ([1, 2], [1, 2, 3, 4]):
        log = await EmbeddedLog.open(tmp_path / "x.db", clock)
        await log.append(records(*expected[-2:]))
        consumer = await start(log, sink)
        await received(sink, expected)
        await consumer.stop()
        await consumer.start()
        await log.close()
    assert sink.ids == [1, 2, 3, 4]


async def test_a_batch_that_was_not_applied_comes_again(tmp_path: Path, clock: Clock, sink: Sink) -> None:
    """As after kill -9: the task ends in the midst of apply, nothing is closed in order but the file."""
    log = await EmbeddedLog.open(tmp_path / "x.db", clock)
    await log.append(records(1, 2))
    sink.gate.clear()
    consumer = await start(log, sink)
    await until(lambda: sink.calls == 1)
    task = consumer.pump._task
    assert task is not None
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await log.db.close()
    sink.gate.set()
    again = await EmbeddedLog.open(tmp_path / "x.db", clock)
    await start(again, sink)
    await until(lambda: sink.ids == [1, 2])
    await again.close()


async def test_stop_waits_for_the_batch_at_hand_and_stores_it(log: EmbeddedLog, sink: Sink) -> None:
    sink.gate.clear()
    consumer = await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.calls == 1)
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.sleep(0.02)
    assert not stopping.done()
    sink.gate.set()
    await stopping
    assert await consumer.lag() == Lag(0, 0.0)
    await log.append(records(2))
    await asyncio.sleep(0.02)
    assert sink.ids == [1]


async def test_a_poison_event_is_buried_alone_and_the_rest_goes_on(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    sink.poison = {5, 13}
    await log.append(records(*range(20)))
    await start(log, sink)
    await log.append(records(20))
    await until(lambda: 20 in sink.ids)
    assert sink.ids == [i for i in range(21) if i not in sink.poison]
    letters = await log.dead_letters("g")
    assert [(letter.event.event_id, letter.event.payload) for letter in letters] == [
        (5, b"payload 5"),
        (13, b"payload 13"),
    ]
    assert letters[0].reason == "ValueError('poison')"
    assert letters[0].failed_ms == clock.now_ms
    assert await log.dead_letters("other") == []


async def test_a_lone_poison_event_gets_five_tries(log: EmbeddedLog, sink: Sink) -> None:
    sink.poison = {1}
    await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.calls >= event_log.MAX_TRIES)
    await asyncio.sleep(0.05)
    assert sink.calls == event_log.MAX_TRIES == 5
    assert len(await log.dead_letters("g")) == 1


async def test_redriven_letters_come_again(log: EmbeddedLog, sink: Sink) -> None:
    sink.poison = {1, 2}
    await start(log, sink)
    await log.append(records(1, 2, 3))
    await until(lambda: sink.ids == [3])
    await asyncio.sleep(0.02)
    sink.poison = set()
    assert await log.redrive("g") == 2
    await until(lambda: sink.ids == [3, 1, 2])
    assert await log.dead_letters("g") == []


@pytest.mark.parametrize(
    "failure", [errors.unavailable("x"), TimeoutError(), ConnectionError(), asyncio.CancelledError()], ids=repr
)
async def test_an_outage_loses_nothing_however_long(log: EmbeddedLog, sink: Sink, failure: BaseException) -> None:
    sink.down = failure
    await log.append(records(1, 2))
    await start(log, sink)
    await until(lambda: sink.calls > event_log.MAX_TRIES + 2)
    sink.down = None
    await until(lambda: sink.ids == [1, 2])
    assert await log.dead_letters("g") == []


async def test_stop_does_not_wait_for_the_end_of_an_outage(log: EmbeddedLog, sink: Sink) -> None:
    sink.down = errors.unavailable("x")
    await log.append(records(1))
    consumer = await start(log, sink)
    await until(lambda: sink.calls > 1)
    async with asyncio.timeout(10):
        await consumer.stop()
    sink.down = None
    assert (await consumer.lag()).events == 1
    await consumer.start()
    await until(lambda: sink.ids == [1])


async def test_pause_and_resume(log: EmbeddedLog, sink: Sink) -> None:
    consumer = await start(log, sink)
    consumer.pause()
    await log.append(records(1))
    await asyncio.sleep(0.05)
    assert sink.ids == []
    consumer.resume()
    await until(lambda: sink.ids == [1])


async def test_lag_counts_what_is_not_applied_and_its_age(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    consumer = await start(log, sink)
    assert await consumer.lag() == Lag(0, 0.0)
    sink.gate.clear()
    await log.append(records(1, 2))
    clock.now_ms += 1500
    await log.append([*records(3), *records(4, topic="user.followed")])
    clock.now_ms += 1500
    assert await consumer.lag() == Lag(3, 3.0)
    sink.gate.set()
    await until(lambda: sink.ids == [1, 2, 3])
    await asyncio.sleep(0.05)
    assert await consumer.lag() == Lag(0, 0.0)


async def test_seek_replays_from_an_offset_or_a_time(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    clock.now_ms += 1000
    await log.append(records(3))
    await until(lambda: sink.ids == [1, 2, 3])
    await consumer.seek(offset=2)
    await until(lambda: sink.ids == [1, 2, 3, 2, 3])
    await consumer.seek(time_ms=clock.now_ms)
    await until(lambda: sink.ids == [1, 2, 3, 2, 3, 3])
    await consumer.seek(time_ms=clock.now_ms + 1)
    await log.append(records(4))
    await until(lambda: sink.ids == [1, 2, 3, 2, 3, 3, 4])


async def test_a_seek_wins_over_the_batch_at_hand(log: EmbeddedLog, sink: Sink) -> None:
    sink.gate.clear()
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    await until(lambda: sink.calls == 1)
    await consumer.seek(offset=1)
    sink.gate.set()
    await until(lambda: sink.ids == [1, 2, 1, 2])


async def test_retention_spares_what_a_group_has_not_consumed_and_dead_letters(
    log: EmbeddedLog, clock: Clock, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_module, "SWEEP_ROWS", 2)
    sink.poison = {1}
    slow = Sink()
    slow.gate.clear()
    consumer = await start(log, sink)
    await log.append([*records(1, 2, 3), *records(7, 8, topic="user.followed")])
    await until(lambda: sink.ids == [2, 3])
    await start(log, slow, "slow", max_batch=2)
    await until(lambda: slow.calls == 1)
    clock.now_ms += event_log.RETENTION_S * 1000 + HOUR_MS
    await log.append(records(4))
    await until(lambda: sink.ids == [2, 3, 4])
    assert await log.sweep() == 0
    slow.gate.set()
    await until(lambda: slow.ids == [1, 2, 3, 4])
    await asyncio.sleep(0.05)
    assert [await log.sweep() for _ in range(3)] == [2, 2, 0]
    assert [letter.event.event_id for letter in await log.dead_letters("g")] == [1]
    clock.now_ms += 30 * 24 * HOUR_MS
    await log.sweep()
    assert await log.dead_letters("g") == []
    # Offsets are not given out again, although the table may be empty by now.
    await log.append(records(5))
    await until(lambda: 5 in sink.ids)
    assert sink.events[-1].offset == 7
    await consumer.stop()


async def test_a_group_without_events_of_its_own_does_not_hold_retention_back(
    log: EmbeddedLog, clock: Clock, sink: Sink
) -> None:
    other = log.consumer("other", ["tweet.edited"], Sink().apply)
    await other.start()
    await start(log, sink)
    await log.append(records(1, 2))
    await until(lambda: sink.ids == [1, 2])
    await asyncio.sleep(0.05)
    clock.now_ms += event_log.RETENTION_S * 1000 + 1
    assert await log.sweep() == 2


async def test_a_group_has_one_consumer_and_batches_a_bound(log: EmbeddedLog, sink: Sink) -> None:
    await start(log, sink)
    with pytest.raises(ValueError, match="group g"):
        await start(log, sink)
    with pytest.raises(ValueError, match="max_batch"):
        log.consumer("h", ["tweet.created"], sink.apply, event_log.MAX_BATCH + 1)
