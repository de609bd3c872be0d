"""Failures: a transient failure loses no event, and a poison event does not block others."""

from __future__ import annotations

import asyncio

import pytest

from services.platform.events import log as event_log
from services.platform.events.log import EventLog
from services.platform.rpc import errors
from tests.contract.platform.events.conftest import Clock, Open, Sink, records, start, until
from tests.waiting import WITHIN_S


async def test_poison_event_becomes_dead_letter_and_others_are_applied(log: EventLog, clock: Clock, sink: Sink) -> None:
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
    assert letters[0].event[1:] == (clock.now_ms, "tweet.created", 7, 5, b"payload 5", "00-trace")
    assert letters[0].reason == "ValueError('poison')"
    assert letters[0].failed_ms == clock.now_ms
    assert await log.dead_letters("other") == []


async def test_poison_event_alone_is_tried_five_times(log: EventLog, sink: Sink) -> None:
    sink.poison = {1}
    await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.calls >= event_log.MAX_TRIES)
    await log.append(records(2))
    await until(lambda: sink.ids == [2])
    assert sink.calls == event_log.MAX_TRIES + 1 == 6
    assert len(await log.dead_letters("g")) == 1


async def test_dead_letter_is_not_delivered_after_restart(open_log: Open, sink: Sink) -> None:
    sink.poison = {1}
    log = await open_log()
    await log.append(records(1, 2))
    await start(log, sink)
    await until(lambda: sink.ids == [2])
    await log.close()
    sink.poison = set()
    again = await open_log()
    await start(again, sink)
    await again.append(records(3))
    await until(lambda: sink.ids == [2, 3])
    assert [letter.event.event_id for letter in await again.dead_letters("g")] == [1]


async def test_redrive_delivers_dead_letters_again(log: EventLog, sink: Sink) -> None:
    sink.poison = {1, 2}
    await start(log, sink)
    await log.append(records(1, 2, 3))
    await until(lambda: sink.ids == [3])
    sink.poison = set()
    assert await log.redrive("other") == 0
    assert await log.redrive("g") == 2
    await until(lambda: sink.ids == [3, 1, 2])
    assert await log.dead_letters("g") == []
    assert await log.redrive("g") == 0


async def test_dead_letters_are_separate_per_group(log: EventLog, sink: Sink) -> None:
    other = Sink()
    sink.poison, other.poison = {1}, {1, 2}
    await start(log, sink)
    await start(log, other, "other")
    await log.append(records(1, 2, 3))
    await until(lambda: sink.ids == [2, 3] and other.ids == [3])
    sink.poison, other.poison = set(), {2}
    assert await log.redrive("g") == 1
    # Redriven events are appended again, so all groups receive them.
    await until(lambda: sink.ids == [2, 3, 1] and other.ids == [3, 1])
    assert [letter.event.event_id for letter in await log.dead_letters("other")] == [1, 2]


async def test_redriven_event_failing_again_becomes_dead_letter(log: EventLog, sink: Sink) -> None:
    sink.poison = {1}
    await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.calls == event_log.MAX_TRIES)
    await log.append(records(2))
    await until(lambda: sink.ids == [2])
    assert await log.redrive("g") == 1
    await log.append(records(3))
    await until(lambda: sink.ids == [2, 3])
    assert [letter.event.event_id for letter in await log.dead_letters("g")] == [1]


@pytest.mark.parametrize(
    "failure", [errors.unavailable("x"), TimeoutError(), ConnectionError(), asyncio.CancelledError()], ids=repr
)
async def test_apply_transient_failure_is_retried_until_success(
    log: EventLog, sink: Sink, failure: BaseException
) -> None:
    sink.down = failure
    await log.append(records(1, 2))
    await start(log, sink)
    await until(lambda: sink.calls > event_log.MAX_TRIES + 2)
    sink.down = None
    await until(lambda: sink.ids == [1, 2])
    assert await log.dead_letters("g") == []


async def test_stop_during_transient_failure_returns_at_once(log: EventLog, sink: Sink) -> None:
    sink.down = errors.unavailable("x")
    await log.append(records(1))
    consumer = await start(log, sink)
    await until(lambda: sink.calls > 1)
    async with asyncio.timeout(WITHIN_S):
        await consumer.stop()
    sink.down = None
    assert (await consumer.lag()).events == 1
    await consumer.start()
    await until(lambda: sink.ids == [1])


async def test_unapplied_events_are_delivered_after_restart(open_log: Open, sink: Sink) -> None:
    log = await open_log()
    await log.append(records(1, 2))
    sink.down = errors.unavailable("x")
    await start(log, sink)
    await until(lambda: sink.calls > 1)
    await log.close()
    sink.down = None
    again = await open_log()
    await start(again, sink)
    await until(lambda: sink.ids == [1, 2])
