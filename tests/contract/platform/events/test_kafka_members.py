"""Several processes in one consumer group: shared work, rebalances and crashes. Each log here stands for a process."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from services.platform.config import Settings
from services.platform.events.log import EventLog, Record
from services.platform.rpc import errors
from tests import cluster
from tests.contract.platform.events.conftest import TOPICS, Clock, Open, Sink, records, start, until, until_lag
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

# A rebalance waits for each member, and the group removes a dead member after its session timeout of ten seconds.
REBALANCED_WITHIN_S = 60.0


def records_of_many_keys(*ids: int) -> list[Record]:
    """Returns records of many keys, which are spread over all partitions."""
    return [record for i in ids for record in records(i, key=i)]


async def until_both_receive(log: EventLog, one: Sink, other: Sink) -> None:
    """Appends until both sinks have received an event since the call."""
    before, serial = (len(one.events), len(other.events)), 1_000_000
    async with asyncio.timeout(REBALANCED_WITHIN_S):
        while len(one.events) == before[0] or len(other.events) == before[1]:
            serial += 10
            await log.append(records_of_many_keys(*range(serial, serial + 10)))
            await asyncio.sleep(0.05)


async def test_group_shares_partitions_and_stopped_member_loses_nothing(open_log: Open) -> None:
    first, second = await open_log(), await open_log()
    one, other = Sink(), Sink()
    await start(first, one)
    joined = await start(second, other)
    await until_both_receive(first, one, other)
    appended = list(range(300))
    for begin in range(0, 300, 30):
        await first.append(records_of_many_keys(*appended[begin : begin + 30]))
        if begin == 150:
            await joined.stop()
    await until(lambda: set(appended) <= {*one.ids, *other.ids})
    # After an orderly stop no event is delivered twice: the member committed its offsets before others took over.
    found = [i for i in (*one.ids, *other.ids) if i < 300]
    assert sorted(found) == appended


async def test_rebalance_keeps_order_per_key(open_log: Open) -> None:
    first, second = await open_log(), await open_log()
    together = Sink()
    await start(first, together, max_batch=3)
    appended: list[int] = []
    for begin in range(0, 200, 10):
        await first.append([Record(TOPICS[0], i % 4, i, b"") for i in range(begin, begin + 10)])
        appended += range(begin, begin + 10)
        if begin == 50:
            await start(second, together, max_batch=3)
        await asyncio.sleep(0.02)
    await until(lambda: set(together.ids) == set(appended))
    for key in range(4):
        mine = [event.event_id for event in together.events if event.key == key]
        assert list(dict.fromkeys(mine)) == list(range(key, 200, 4))


async def test_new_member_starts_at_applied_offset(open_log: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the offset that was committed last, which may be older."""
    from services.platform.kafka import fetcher

    monkeypatch.setattr(fetcher, "COMMIT_EVERY_S", 1_000.0)
    first, second = await open_log(), await open_log()
    one, other = Sink(), Sink()
    await start(first, one)
    await first.append(records_of_many_keys(*range(50)))
    await until(lambda: len(one.ids) == 50)
    await start(second, other)
    await until_both_receive(first, one, other)
    await until(lambda: len({*one.ids, *other.ids}) % 10 == 0)
    found = [*one.ids, *other.ids]
    assert sorted(found) == sorted(set(found))


async def test_rebalance_member_retrying_batch_releases_partitions(
    open_log: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its partitions, with all unapplied events, go to another member."""
    from services.platform.kafka import fetcher

    # A rebalance does not wait for a batch that is being retried.
    monkeypatch.setattr(fetcher, "REVOKE_TIMEOUT_S", 1_000.0)
    first, second = await open_log(), await open_log()
    stuck, sound = Sink(), Sink()
    stuck.down = errors.unavailable("x")
    member: Any = first.consumer("g", TOPICS, stuck.apply)
    # While paused, events of all partitions collect in one batch.
    member.pause()
    await member.start()
    await first.append(records_of_many_keys(*range(50)))
    await until(lambda: sum(known.events for known in member.backlog.progress().values()) == 50)
    member.resume()
    await until(lambda: stuck.calls > 3)
    await start(second, sound)
    await until(lambda: bool(sound.ids))
    stuck.down = None
    await until(lambda: {*stuck.ids, *sound.ids} == set(range(50)))


async def test_seek_moves_members_in_other_processes(open_log: Open) -> None:
    first, second = await open_log(), await open_log()
    one, other = Sink(), Sink()
    mine = await start(first, one)
    await start(second, other)
    await first.append(records_of_many_keys(*range(40)))
    await until_both_receive(first, one, other)
    await until_lag(mine, 0)
    one.events.clear()
    other.events.clear()
    await mine.seek(offset=0)
    await until(lambda: set(range(40)) <= {*one.ids, *other.ids})
    assert other.ids


async def test_seek_without_local_member_moves_group(open_log: Open) -> None:
    first, second = await open_log(), await open_log()
    sink = Sink()
    await start(first, sink)
    await first.append(records_of_many_keys(*range(20)))
    await until(lambda: len(sink.ids) == 20)
    await second.consumer("g", TOPICS, Sink().apply).seek(offset=0)
    await until(lambda: len(sink.ids) == 40)


async def test_lag_includes_members_in_other_processes(open_log: Open, clock: Clock) -> None:
    first, second = await open_log(), await open_log()
    sink = Sink()
    await start(first, sink)
    watcher = second.consumer("g", TOPICS, Sink().apply)
    await first.append(records_of_many_keys(1, 2))
    await until(lambda: len(sink.ids) == 2)
    await until_lag(watcher, 0)
    sink.gate.clear()
    await first.append(records_of_many_keys(3, 4, 5))
    clock.now_ms += 4_000
    lag = await watcher.lag()
    assert (lag.events, lag.age_s) == (3, 4.0)
    sink.gate.set()
    await until_lag(watcher, 0)


async def test_broadcast_consumer_receives_events_in_every_process(open_log: Open) -> None:
    first, second = await open_log(), await open_log()
    one, other = Sink(), Sink()
    await start(first, one, broadcast=True)
    await start(second, other, broadcast=True)
    await first.append(records_of_many_keys(*range(20)))
    await until(lambda: sorted(one.ids) == sorted(other.ids) == list(range(20)))


MEMBER = """
import asyncio, sys
from services.platform.kafka.event_log import KafkaLog
from services.platform.config import Settings

async def main():
    async def apply(events):
        print("got", flush=True)
        await asyncio.Event().wait()
    log = await KafkaLog.open(Settings())
    await log.consumer("g", ["tweet.created", "tweet.deleted"], apply).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.slow
async def test_killed_process_unapplied_events_go_to_other_member(open_log: Open, tmp_path: Path, sink: Sink) -> None:
    log = await open_log()
    await log.append(records_of_many_keys(*range(20)))
    environment = cluster.backend.of(tmp_path).environment
    command = [sys.executable, "-c", MEMBER]
    member = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    try:
        assert member.stdout is not None
        assert await member.stdout.readline() == b"got\n"
    finally:
        member.send_signal(signal.SIGKILL)
        await member.wait()
    await start(log, sink)
    await wait_until(lambda: set(sink.ids) == set(range(20)), REBALANCED_WITHIN_S)


async def test_consumer_skips_foreign_records(open_log: Open, tmp_path: Path, sink: Sink) -> None:
    from confluent_kafka import Producer

    log = await open_log()
    settings = Settings(**cluster.backend.of(tmp_path).settings)
    foreign = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers})
    topic = f"{settings.namespace}.tweet"
    strange: list[list[tuple[str, str | bytes | None]]] = [
        [],
        [("type", b"tweet.created")],
        [("type", b"tweet.created"), ("id", b"\xff")],
    ]
    for headers in strange:
        for key in (None, b"", b"x", b"7"):
            foreign.produce(topic, b"who knows", key, headers=headers)
    assert foreign.flush(REBALANCED_WITHIN_S) == 0
    await log.append(records_of_many_keys(1, 2))
    consumer = await start(log, sink)
    await until(lambda: sorted(sink.ids) == [1, 2])
    await until_lag(consumer, 0)


async def test_backlog_is_bounded_and_keeps_order(open_log: Open, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.platform.kafka import consumer as kafka_consumer
    from services.platform.kafka import fetcher

    monkeypatch.setattr(kafka_consumer, "MIN_PREFETCHED", 20)
    monkeypatch.setattr(fetcher, "FETCH_MESSAGES", 10)
    monkeypatch.setattr(fetcher, "PAUSE_AFTER_S", 0.05)
    log = await open_log()
    sink.gate.clear()
    consumer = log.consumer("g", TOPICS, sink.apply, 5)
    await consumer.start()
    for begin in range(0, 500, 100):
        await log.append([Record(TOPICS[0], i % 6, i, b"") for i in range(begin, begin + 100)])
    # Another group receives everything: the fetcher of the first had the time to fetch as much.
    other = Sink()
    await start(log, other, "other")
    await until(lambda: len(other.ids) == 500)
    assert len(consumer.backlog._entries) <= 40  # type: ignore[attr-defined]
    assert (await consumer.lag()).events == 500
    sink.gate.set()
    await until(lambda: len(sink.ids) == 500)
    for key in range(6):
        assert [event.event_id for event in sink.events if event.key == key] == list(range(key, 500, 6))


async def test_append_oversized_record_raises_value_error_only_for_itself(open_log: Open, sink: Sink) -> None:
    log = await open_log()
    await start(log, sink)
    with pytest.raises(ValueError, match="larger than Kafka's limit"):
        await log.append([Record(TOPICS[0], 7, 1, bytes(2_000_000))])
    await log.append(records(2))
    await until(lambda: sink.ids == [2])


async def test_append_cancelled_callers_leave_no_pending_state(open_log: Open, sink: Sink) -> None:
    log = await open_log()
    await start(log, sink)
    appending = [asyncio.create_task(log.append(records(i))) for i in range(20)]
    await asyncio.sleep(0)
    for task in appending:
        task.cancel()
    await asyncio.gather(*appending, return_exceptions=True)
    await log.append(records(99))
    await until(lambda: 99 in sink.ids)


async def test_dead_letter_append_failure_keeps_offset(
    open_log: Open, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is retried, and the events after it stay in order."""
    log: Any = await open_log()
    dead_letter, refused = log.dead_letter_store.add, 0

    async def fail_twice(*arguments: Any) -> None:
        nonlocal refused
        refused += 1
        if refused <= 2:
            raise errors.unavailable("x")
        await dead_letter(*arguments)

    monkeypatch.setattr(log.dead_letter_store, "add", fail_twice)
    sink.poison = {1}
    await start(log, sink)
    await log.append(records(1, 2, 3))
    await until(lambda: refused == 3)
    await until(lambda: set(sink.ids) == {2, 3})
    assert [letter.event.event_id for letter in await log.dead_letters("g")] == [1]
