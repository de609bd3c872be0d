"""What only the embedded log promises: one order for all, retention that waits for its groups. The port's promises are under contract/."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from services.platform.events import log as event_log
from services.platform.events.log import ConsumedEvent, Record
from services.platform.sqlite import event_log as log_module
from services.platform.sqlite.event_log import EmbeddedConsumer, EmbeddedLog

HOUR_MS = 3_600_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Sink:
    """Keeps what it is given, and fails where a test says so."""

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


async def test_a_batch_that_was_not_applied_comes_again(tmp_path: Path, clock: Clock, sink: Sink) -> None:
    """As after kill -9: the task ends in the midst of apply, nothing is closed in order but the file."""
    log = await EmbeddedLog.open(tmp_path / "x.db", clock)
    await log.append(records(1, 2))
    sink.gate.clear()
    consumer = await start(log, sink)
    await until(lambda: sink.calls == 1)
    task = consumer.worker._task
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


async def test_retention_spares_what_a_group_has_not_consumed_and_dead_letters(
    log: EmbeddedLog, clock: Clock, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "SWEEP_ROWS", 2)
    sink.poison = {1}
    slow = Sink()
    slow.gate.clear()
    consumer = await start(log, sink)
    await log.append([*records(1, 2, 3), *records(7, 8, topic="user.followed")])
    await until(lambda: sink.ids == [2, 3])
    behind = await start(log, slow, "slow", max_batch=2)
    await until(lambda: slow.calls == 1)
    clock.now_ms += event_log.RETENTION_S * 1000 + HOUR_MS
    await log.append(records(4))
    await until(lambda: sink.ids == [2, 3, 4])
    assert await log.sweep() == 0
    slow.gate.set()
    # Its offset is stored after the effect.
    async with asyncio.timeout(30):
        while (await behind.lag()).events:
            await asyncio.sleep(0.002)
    assert slow.ids == [1, 2, 3, 4]
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


async def test_the_order_of_appending_is_that_of_all_keys_and_topics(
    log: EmbeddedLog, clock: Clock, sink: Sink
) -> None:
    await log.append([*records(3, 1), *records(9, topic="user.followed"), *records(2, topic="tweet.deleted")])
    await start(log, sink)
    await received(sink, [3, 1, 2])
    assert sink.events[0] == ConsumedEvent(1, clock.now_ms, "tweet.created", 0, 3, b"payload 3", "00-trace")
    assert [event.offset for event in sink.events] == [1, 2, 4]


async def test_what_is_everywhere_holds_retention_back_for_no_one(log: EmbeddedLog, clock: Clock, sink: Sink) -> None:
    """Also where an earlier release stored a place for it."""
    ordinary = await start(log, Sink())
    await log.append(records(1))
    await ordinary.stop()
    consumer = log.consumer("g", ["tweet.created"], sink.apply, broadcast=True)
    await consumer.start()
    await consumer.stop()
    await log.append(records(2))
    clock.now_ms += event_log.RETENTION_S * 1000 + 1
    assert await log.sweep() == 2
