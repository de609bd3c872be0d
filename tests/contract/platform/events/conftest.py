"""Fixtures of the event log's contract tests: one class per backend."""

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
from tests.waiting import wait_until, wait_until_async

HOUR_MS = 3_600_000
# Shorter than in production, so that a test sees many retries.
RETRY_FIRST_S = 0.001
TOPICS = ("tweet.created", "tweet.deleted")


class Clock:
    """A clock that only a test advances. It starts an hour ago, because brokers reject timestamps in the future."""

    def __init__(self) -> None:
        self.now_ms = time.time_ns() // 1_000_000 - HOUR_MS

    def __call__(self) -> int:
        return self.now_ms


class Backend(Protocol):
    """Opens event logs on one backend."""

    async def open(self, folder: Path, clock: Clock) -> EventLog:
        """Opens the log of this folder, with its earlier content. On Kafka several logs may be open at once."""


class Embedded:
    """The embedded backend."""

    async def open(self, folder: Path, clock: Clock) -> EventLog:
        return await EmbeddedLog.open(folder / "log.db", clock, RETRY_FIRST_S)


class ClusterBackends:
    """The cluster backend: a folder stands for a namespace on the servers."""

    async def open(self, folder: Path, clock: Clock) -> EventLog:
        from services.platform.kafka.event_log import KafkaLog

        return await KafkaLog.open(Settings(**cluster.backend.of(folder).settings), clock, RETRY_FIRST_S)


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
        """Returns the ids of applied events, in order."""
        return [event.event_id for event in self.events]


def records(*ids: int, topic: str = "tweet.created", key: int = 7) -> list[Record]:
    """Returns records of one key, whose order is kept."""
    return [Record(topic, key, i, b"payload %d" % i, "00-trace") for i in ids]


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the condition is true, for at most 30 seconds."""
    await wait_until(condition)


async def until_lag(consumer: Consumer, events: int) -> None:
    """Waits until the consumer's lag is `events`; members publish their offsets once per second."""

    async def reached() -> bool:
        return (await consumer.lag()).events == events

    await wait_until_async(reached)


async def start(log: EventLog, sink: Sink, group: str = "g", max_batch: int = 500, broadcast: bool = False) -> Consumer:
    """Starts a consumer of TOPICS."""
    consumer = log.consumer(group, TOPICS, sink.apply, max_batch, broadcast)
    await consumer.start()
    return consumer


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend of this run."""
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
    """Opens the log of this test, any number of times; closes open logs at the end."""
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
