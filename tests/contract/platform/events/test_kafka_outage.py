"""Kafka killed and restarted, on a broker of the test's own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from services.platform.config import Settings
from services.platform.events.log import Record
from services.platform.kafka import producer
from services.platform.kafka.event_log import KafkaLog
from services.platform.rpc import errors
from tests.contract.platform.events.conftest import RETRY_FIRST_S, TOPICS, Clock, Sink, records, start, until, until_lag

pytestmark = pytest.mark.cluster


class Broker:
    """A Kafka broker on its own port."""

    def __init__(self, data: Path) -> None:
        # A port range by process id, because other runs may test on this machine too.
        shift = 1_000 + os.getpid() % 20_000
        self.address = f"127.0.0.1:{9092 + shift}"
        self._arguments = ["kafka", "--processes", "--shift", str(shift), "--data", str(data)]

    def up(self) -> None:
        self._run("up")

    def kill(self) -> None:
        self._run("down", "--kill")

    def remove(self) -> None:
        self._run("down", "--kill", "--wipe")

    def _run(self, command: str, *options: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "roost_cli.backends", command, *self._arguments, *options],
            check=True,
            capture_output=True,
        )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    try:
        broker.up()
        yield broker
    finally:
        broker.remove()


@pytest.fixture
async def log(broker: Broker, clock: Clock) -> AsyncIterator[KafkaLog]:
    broker.up()
    settings = Settings(
        backend="cluster",
        kafka_bootstrap_servers=broker.address,
        namespace=f"o{time.time_ns() % 10**9}",
        kafka_partitions=2,
    )
    log = await KafkaLog.open(settings, clock, RETRY_FIRST_S)
    yield log
    # In time even if the broker is down.
    await log.close()


async def test_open_without_broker_raises_unavailable_in_time() -> None:
    async with asyncio.timeout(60):
        with pytest.raises(errors.RoostError, match="Kafka cannot be reached") as raised:
            await KafkaLog.open(Settings(backend="cluster", kafka_bootstrap_servers="127.0.0.1:1"))
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    # The address is for operators only, so it is in a note.
    assert "127.0.0.1:1" in errors.notes_of(raised.value)


@pytest.mark.slow
async def test_broker_restart_rejects_in_time_then_recovers(broker: Broker, log: KafkaLog, sink: Sink) -> None:
    """Appended events survive, rejections come in time, and consumers resume by themselves."""
    consumer = await start(log, sink)
    broadcast = Sink()
    await start(log, broadcast, "everywhere", broadcast=True)
    await log.append(records(1, 2))
    await until(lambda: sink.ids == broadcast.ids == [1, 2])
    await asyncio.to_thread(broker.kill)
    async with asyncio.timeout(10 * (producer.DELIVERY_TIMEOUT_S + producer.QUEUE_TIMEOUT_S)):
        with pytest.raises(errors.RoostError) as raised:
            await log.append(records(3))
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    assert raised.value.reason == "LOG_UNAVAILABLE"
    with pytest.raises(errors.RoostError):
        await consumer.lag()
    await asyncio.to_thread(broker.up)
    # Retries until the broker accepts it, as an outbox does.
    async with asyncio.timeout(60):
        while True:
            try:
                await log.append(records(3, 4))
                break
            except errors.RoostError:
                await asyncio.sleep(0.1)
    await until(lambda: set(sink.ids) == set(broadcast.ids) == {1, 2, 3, 4})
    await until_lag(consumer, 0)


@pytest.mark.slow
async def test_acknowledged_events_survive_broker_kill(broker: Broker, log: KafkaLog, sink: Sink) -> None:
    acknowledged: set[int] = set()

    async def append() -> None:
        for i in range(100_000):
            try:
                await log.append([Record(TOPICS[0], i % 5, i, b"x" * 100)])
                acknowledged.add(i)
            except errors.RoostError:
                return

    appending = [asyncio.create_task(append())]
    await until(lambda: len(acknowledged) > 100)
    await asyncio.to_thread(broker.kill)
    await asyncio.gather(*appending)
    await asyncio.to_thread(broker.up)
    await start(log, sink)
    await until(lambda: acknowledged <= set(sink.ids))


@pytest.mark.slow
async def test_append_full_queue_is_rejected_and_close_is_bounded(
    broker: Broker, log: KafkaLog, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "MAX_QUEUED", 10)
    monkeypatch.setattr(producer, "QUEUE_TIMEOUT_S", 0.5)
    small = await KafkaLog.open(log.settings)
    consumer = await start(log, sink)
    await log.append(records(1))
    await until(lambda: sink.ids == [1])
    await asyncio.to_thread(broker.kill)
    with pytest.raises(errors.RoostError, match="the queue to Kafka is full"):
        await small.append(records(*range(100)))
    async with asyncio.timeout(15):
        await consumer.stop()
    async with asyncio.timeout(15):
        await small.close()
    with pytest.raises(errors.RoostError, match="closed"):
        await small.append(records(1))
