"""Seeks, and broadcast consumers."""

from __future__ import annotations

import asyncio

from services.platform.events.log import EventLog
from tests.contract.platform.events.conftest import TOPICS, Clock, Open, Sink, records, start, until, until_lag


async def test_seek_replays_from_offset_or_time(log: EventLog, clock: Clock, sink: Sink) -> None:
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    clock.now_ms += 1000
    await log.append(records(3))
    await until(lambda: sink.ids == [1, 2, 3])
    await consumer.seek(offset=sink.events[1].offset)
    await until(lambda: sink.ids == [1, 2, 3, 2, 3])
    await consumer.seek(time_ms=clock.now_ms)
    await until(lambda: sink.ids == [1, 2, 3, 2, 3, 3])
    await consumer.seek(time_ms=clock.now_ms + 1)
    await log.append(records(4))
    await until(lambda: sink.ids == [1, 2, 3, 2, 3, 3, 4])
    await consumer.seek(offset=0)
    await until(lambda: sink.ids[7:] == [1, 2, 3, 4])


async def test_seek_after_last_event_delivers_next_appended(log: EventLog, sink: Sink) -> None:
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    await until(lambda: sink.ids == [1, 2])
    await consumer.seek(offset=1_000_000)
    assert (await consumer.lag()).events == 0
    await log.append(records(3))
    await until(lambda: sink.ids == [1, 2, 3])


async def test_seek_during_batch_overrides_batch_offset(log: EventLog, sink: Sink) -> None:
    sink.gate.clear()
    consumer = await start(log, sink)
    await log.append(records(1, 2))
    await until(lambda: sink.calls == 1)
    await consumer.seek(offset=0)
    sink.gate.set()
    # The current batch may have contained both events or only the first.
    await until(lambda: sink.ids in ([1, 2, 1, 2], [1, 1, 2]))


async def test_lag_after_seek_counts_from_new_offset(log: EventLog, sink: Sink) -> None:
    consumer = await start(log, sink)
    await log.append(records(*range(20)))
    await until(lambda: len(sink.ids) == 20)
    sink.gate.clear()
    await consumer.seek(offset=0)
    assert (await consumer.lag()).events == 20
    sink.gate.set()
    await until_lag(consumer, 0)


async def test_seek_before_start_sets_start_offset(open_log: Open, clock: Clock, sink: Sink) -> None:
    log = await open_log()
    await log.append(records(1))
    clock.now_ms += 1000
    await log.append(records(2))
    consumer = log.consumer("g", TOPICS, sink.apply)
    await consumer.seek(time_ms=clock.now_ms)
    await log.close()
    again = await open_log()
    await start(again, sink)
    await until(lambda: sink.ids == [2])


async def test_broadcast_consumer_starts_at_end(log: EventLog, sink: Sink) -> None:
    await log.append(records(1))
    consumer = await start(log, sink, broadcast=True)
    assert (await consumer.lag()).events == 0
    await log.append(records(2))
    await until(lambda: sink.ids == [2])
    await until_lag(consumer, 0)


async def test_broadcast_consumer_starts_at_sought_offset(log: EventLog, clock: Clock, sink: Sink) -> None:
    await log.append(records(1))
    clock.now_ms += 1000
    await log.append(records(2))
    consumer = log.consumer("g", TOPICS, sink.apply, broadcast=True)
    await consumer.seek(time_ms=clock.now_ms)
    await consumer.start()
    await until(lambda: sink.ids == [2])
    await consumer.seek(offset=0)
    await until(lambda: sink.ids == [2, 1, 2])


async def test_broadcast_consumer_offset_is_not_stored(open_log: Open, sink: Sink) -> None:
    log = await open_log()
    consumer = await start(log, sink, broadcast=True)
    await log.append(records(1))
    await until(lambda: sink.ids == [1])
    await consumer.stop()
    await log.append(records(2))
    await consumer.start()
    await until(lambda: sink.ids == [1, 2])
    await consumer.stop()
    await log.append(records(3))
    await log.close()
    again = await open_log()
    await start(again, sink, broadcast=True)
    await again.append(records(4))
    await until(lambda: sink.ids == [1, 2, 4])


async def test_broadcast_consumer_ignores_stored_group_offset(open_log: Open, sink: Sink) -> None:
    """As after an upgrade that made the consumer a broadcast one: the group's stored offset is not used."""
    log = await open_log()
    await log.append(records(1))
    ordinary = await start(log, sink)
    await until(lambda: sink.ids == [1])
    await ordinary.stop()
    await log.append(records(2))
    await start(log, sink, broadcast=True)
    await asyncio.sleep(0.3)
    await log.append(records(3))
    await until(lambda: sink.ids == [1, 3])
