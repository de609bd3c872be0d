"""What the port's promises are checked against: the store of the family of this run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from services.graph.events import Change
from services.graph.store import MAX_EVENTS, GraphStore
from services.graph.store.sqlite.store import EmbeddedGraphStore
from services.graph.tier_publisher import TierRule
from services.platform.events.log import Record
from services.platform.ids.snowflake import first_id_at, wall_clock_ms
from tests.cluster import backend as family_of_run

THRESHOLD = 5
START_MS = 1_800_000_000_000


@dataclass
class WriteTimestamps:
    """Stamps of writes: a millisecond later each time, unless told otherwise."""

    now_ms: int = START_MS
    # As if minted now: an outbox may keep events by the time of their ids.
    last_id: int = field(default_factory=lambda: first_id_at(wall_clock_ms()))
    traceparent: str = ""

    def __call__(self, at_ms: int | None = None, events: int = MAX_EVENTS) -> Change:
        self.now_ms += 1
        version = self.last_id + 1
        self.last_id = version + events
        return Change(at_ms or self.now_ms, version, tuple(range(version + 1, self.last_id + 1)), self.traceparent)


class Backend(Protocol):
    """How a family opens, closes and inspects its store."""

    async def open(self, folder: Path, threshold: int = THRESHOLD) -> GraphStore:
        """The store that belongs to this folder, new or as it was left."""

    async def close(self, store: GraphStore) -> None:
        """Closes it, and what was opened for it alone."""

    async def published(self, store: GraphStore) -> list[Record]:
        """The events committed so far, in order."""


class Embedded:
    """The family that needs nothing but a folder."""

    async def open(self, folder: Path, threshold: int = THRESHOLD) -> GraphStore:
        return await EmbeddedGraphStore.open(folder / "graph.db", TierRule(threshold))

    async def close(self, store: GraphStore) -> None:
        await store.close()

    async def published(self, store: GraphStore) -> list[Record]:
        assert isinstance(store, EmbeddedGraphStore)
        query = "SELECT topic, key, event_id, payload, traceparent FROM outbox ORDER BY seq"
        return await store.db.read(lambda c: [Record(*row) for row in c.execute(query)])


def one_family() -> Backend:
    """The family of this run."""
    if family_of_run.name == "embedded":
        return Embedded()
    # The drivers are imported where they are needed alone.
    from tests.contract.graph.cluster import CassandraFamily

    return CassandraFamily()


@pytest.fixture
def backend() -> Backend:
    """The family of this run."""
    return one_family()


@dataclass
class Opened:
    """A store, and the way to close and open it again."""

    backend: Backend
    folder: Path
    store: GraphStore = field(init=False)

    async def again(self, threshold: int = THRESHOLD) -> GraphStore:
        """Closes the store and opens what it left."""
        await self.backend.close(self.store)
        self.store = await self.backend.open(self.folder, threshold)
        return self.store


@pytest.fixture
async def opened(backend: Backend, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty store that can be reopened."""
    opened = Opened(backend, tmp_path)
    opened.store = await backend.open(tmp_path)
    yield opened
    await backend.close(opened.store)


@pytest.fixture
def store(opened: Opened) -> GraphStore:
    """An empty store."""
    return opened.store


@pytest.fixture
def stamp() -> WriteTimestamps:
    """Makes the stamps of writes."""
    return WriteTimestamps()


@pytest.fixture
def published(backend: Backend, store: GraphStore) -> Callable[[], Awaitable[list[str]]]:
    """The topics of the events committed so far, in order."""

    async def topics() -> list[str]:
        return [record.topic for record in await backend.published(store)]

    return topics
