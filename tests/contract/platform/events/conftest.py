"""What the port's promises are checked against: one class a family."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from services.platform.config import Settings
from services.platform.events.log import ConsumedEvent, Consumer, EventLog, Record
from services.platform.sqlite.event_log import EmbeddedLog
from tests import cluster

HOUR_MS = 3_600_000
# Of retries, so that a test sees many of them.
RETRY_FIRST_S = 0.001
TOPICS = ("tweet.created", "tweet.deleted")


class Clock:
    """Stands still unless told. It begins an hour ago: brokers take no event of the future."""

    def __init__(self) -> None:
        self.now_ms = time.time_ns() // 1_000_000 - HOUR_MS

    def __call__(self) -> int:
        return self.now_ms


class Backend(Protocol):
    """How logs of one family are opened."""

    async def open(self, folder: Path, clock: Clock) -> EventLog:
        """The log that lives in this folder, new or as it was left; where others have it open too, only on Kafka."""


class Embedded:
    """The family that needs nothing but a folder."""

    async def open(self, folder: Path, clock: Clock) -> EventLog:
        return await EmbeddedLog.open(folder / "log.db", clock, RETRY_FIRST_S)


class ClusterBackends:
    """The family on the real servers: a folder stands for a namespace there."""

    async def open(self, folder: Path, clock: Clock) -> EventLog:
        from services.platform.kafka.event_log import KafkaLog

        return await KafkaLog.open(Settings(**cluster.backend.of(folder).settings), clock, RETRY_FIRST_S)


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
        """What was applied, in the order in which it was."""
        return [event.event_id for event in self.events]


def records(*ids: int, topic: str = "tweet.created", key: int = 7) -> list[Record]:
    """Facts about one author, whose order is kept."""
    return [Record(topic, key, i, b"payload %d" % i, "00-trace") for i in ids]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for it, for half a minute."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def until_lag(consumer: Consumer, events: int) -> None:
    """Waits until the consumer is so many events behind: other members tell once a second how far they are."""
    async with asyncio.timeout(30):
        while (await consumer.lag()).events != events:
            await asyncio.sleep(0.02)


async def start(log: EventLog, sink: Sink, group: str = "g", max_batch: int = 500, broadcast: bool = False) -> Consumer:
    """A consumer of TOPICS that runs."""
    consumer = log.consumer(group, TOPICS, sink.apply, max_batch, broadcast)
    await consumer.start()
    return consumer


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The family of this run."""
    return Embedded() if request.config.getoption("--backend") == "embedded" else ClusterBackends()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sink() -> Sink:
    return Sink()


Open = Callable[[], Awaitable[EventLog]]


@pytest.fixture
async def open_log(backend: Backend, tmp_path: Path, clock: Clock) -> AsyncIterator[Open]:
    """Opens the log of this test, again and again; what is open at the end is closed."""
    opened: list[EventLog] = []

    async def open_it() -> EventLog:
        opened.append(await backend.open(tmp_path, clock))
        return opened[-1]

    yield open_it
    for log in opened:
        await log.close()


@pytest.fixture
async def log(open_log: Open) -> EventLog:
    """An empty log."""
    return await open_log()
