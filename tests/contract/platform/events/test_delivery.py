"""Delivery: at least once, in order per key, to every group; each group resumes at its offset."""

from __future__ import annotations

import asyncio

import pytest

from services.platform.events import log as event_log
from services.platform.events.log import EventLog, Lag, Record
from tests.contract.platform.events.conftest import TOPICS, Clock, Open, Sink, records, start, until, until_lag


async def test_consumer_receives_all_events_of_its_topics_in_order(log: EventLog, clock: Clock, sink: Sink) -> None:
    await log.append(records(3, 1))
    other = Sink()
    await start(log, sink)
    await start(log, other, "other", max_batch=1)
    await log.append([*records(9, topic="user.followed"), *records(2, topic="tweet.deleted")])
    await until(lambda: sink.ids == other.ids == [3, 1, 2])
    assert sink.events[0][1:] == (clock.now_ms, "tweet.created", 7, 3, b"payload 3", "00-trace")
    assert sink.events[2].topic == "tweet.deleted"
    assert set(other.batches) == {1}


async def test_consumer_order_per_key_matches_offsets(log: EventLog, sink: Sink) -> None:
    await start(log, sink, max_batch=7)
    for first in range(0, 200, 50):
        await log.append(
            [Record(TOPICS[i % 2], i % 5, i, b"payload") for i in range(first, first + 50)],
        )
    await until(lambda: len(sink.ids) >= 200)
    for key in range(5):
        mine = [event for event in sink.events if event.key == key]
        assert [event.event_id for event in mine] == list(range(key, 200, 5))
        assert [event.offset for event in mine] == sorted({event.offset for event in mine})
    assert max(sink.batches) <= 7


async def test_append_reaches_idle_consumer(log: EventLog, sink: Sink) -> None:
    await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.ids == [1])
    await log.append(records(2))
    await until(lambda: sink.ids == [1, 2])


async def test_append_concurrent_calls_store_all_events(log: EventLog, sink: Sink) -> None:
    await asyncio.gather(*(log.append(records(i, key=i)) for i in range(100)), log.append([]))
    await start(log, sink)
    await until(lambda: sorted(sink.ids) == list(range(100)))


async def test_consumer_resumes_at_stored_offset_after_restart(open_log: Open, sink: Sink) -> None:
    for expected in ([1, 2], [1, 2, 3, 4]):
        log = await open_log()
        await log.append(records(*expected[-2:]))
        consumer = await start(log, sink)
        await until(lambda expected=expected: sink.ids == expected)  # type: ignore[misc]
        await consumer.stop()
        await consumer.start()
        await log.close()
    assert sink.ids == [1, 2, 3, 4]


async def test_stop_completes_current_batch_and_stores_offset(log: EventLog, sink: Sink) -> None:
    sink.gate.clear()
    consumer = await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.calls == 1)
    stopping, other = asyncio.create_task(consumer.stop()), Sink()
    await start(log, other, "other")
    await until(lambda: other.ids == [1])
    assert not stopping.done()
    sink.gate.set()
    await stopping
    assert await consumer.lag() == Lag(0, 0.0)
    await log.append(records(2))
    await until(lambda: other.ids == [1, 2])
    assert sink.ids == [1]


async def test_pause_delivers_nothing_until_resume(log: EventLog, sink: Sink) -> None:
    consumer = await start(log, sink)
    consumer.pause()
    await log.append(records(1))
    await until_lag(consumer, 1)
    other = Sink()
    await start(log, other, "other")
    await until(lambda: other.ids == [1])
    assert sink.ids == []
    consumer.resume()
    await until(lambda: sink.ids == [1])


async def test_lag_counts_unapplied_events_and_oldest_age(log: EventLog, clock: Clock, sink: Sink) -> None:
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
    await until_lag(consumer, 0)
    assert await consumer.lag() == Lag(0, 0.0)


async def test_lag_of_stopped_group_counts_unapplied_events(log: EventLog, clock: Clock, sink: Sink) -> None:
    await log.append(records(1, 2))
    clock.now_ms += 2000
    consumer = log.consumer("g", TOPICS, sink.apply)
    assert await consumer.lag() == Lag(2, 2.0)
    await consumer.start()
    await until(lambda: sink.ids == [1, 2])
    await consumer.stop()
    await log.append(records(3))
    assert await consumer.lag() == Lag(1, 0.0)


async def test_consumer_second_start_or_invalid_batch_is_rejected(log: EventLog, sink: Sink) -> None:
    await start(log, sink)
    with pytest.raises(ValueError, match="group g"):
        await start(log, sink)
    with pytest.raises(ValueError, match="max_batch"):
        log.consumer("h", TOPICS, sink.apply, event_log.MAX_BATCH + 1)
    with pytest.raises(ValueError, match="max_batch"):
        log.consumer("h", TOPICS, sink.apply, 0)
