"""Fixtures for the contract tests of the graph stores, on the backend of this run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from services.graph.events import WriteStamp
from services.graph.store import MAX_EVENTS, GraphStores
from services.graph.store.sqlite.stores import SqliteGraphStores, open_stores
from services.graph.tier_publisher import TierRule
from services.platform.events.log import Record
from services.platform.ids.snowflake import first_id_at, wall_clock_ms
from services.platform.versions import MemoryVersions
from tests.cluster import backend as family_of_run

THRESHOLD = 5
START_MS = 1_800_000_000_000


@dataclass
class StampFactory:
    """Returns write stamps; each is a millisecond later than the one before unless `at_ms` is given."""

    now_ms: int = START_MS
    # Minted now, because an outbox may order and keep events by the time of their ids.
    last_id: int = field(default_factory=lambda: first_id_at(wall_clock_ms()))
    traceparent: str = ""

    def __call__(self, at_ms: int | None = None, events: int = MAX_EVENTS) -> WriteStamp:
        self.now_ms += 1
        version = self.last_id + 1
        self.last_id = version + events
        return WriteStamp(at_ms or self.now_ms, version, tuple(range(version + 1, self.last_id + 1)), self.traceparent)


class Backend(Protocol):
    """How a backend opens, closes and inspects its stores."""

    async def open(self, folder: Path, threshold: int = THRESHOLD) -> GraphStores:
        """Opens the store of this folder, new or with its former contents."""

    async def close(self, stores: GraphStores) -> None:
        """Closes the store and the connections opened for it alone."""

    async def published(self, stores: GraphStores) -> list[Record]:
        """Returns the events committed so far, in order."""


class EmbeddedBackend:
    """Opens SQLite stores."""

    async def open(self, folder: Path, threshold: int = THRESHOLD) -> GraphStores:
        return await open_stores(folder / "graph.db", TierRule(threshold), MemoryVersions())

    async def close(self, stores: GraphStores) -> None:
        await stores.close()

    async def published(self, stores: GraphStores) -> list[Record]:
        assert isinstance(stores, SqliteGraphStores)
        query = "SELECT topic, key, event_id, payload, traceparent FROM outbox ORDER BY seq"
        return await stores.db.read(lambda c: [Record(*row) for row in c.execute(query)])


def backend_of_run() -> Backend:
    """Returns the backend selected by --backend."""
    if family_of_run.name == "embedded":
        return EmbeddedBackend()
    # Imported on use, so that the embedded backend needs no drivers.
    from tests.contract.graph.cluster import CassandraBackend

    return CassandraBackend()


@pytest.fixture
def backend() -> Backend:
    """The backend selected by --backend."""
    return backend_of_run()


@dataclass
class ReopenableStore:
    """A store that can be closed and opened again."""

    backend: Backend
    folder: Path
    stores: GraphStores = field(init=False)

    async def reopen(self, threshold: int = THRESHOLD) -> GraphStores:
        """Closes the store and opens it again with its contents."""
        await self.backend.close(self.stores)
        self.stores = await self.backend.open(self.folder, threshold)
        return self.stores


@pytest.fixture
async def reopenable(backend: Backend, tmp_path: Path) -> AsyncIterator[ReopenableStore]:
    """An empty store that can be reopened."""
    reopenable = ReopenableStore(backend, tmp_path)
    reopenable.stores = await backend.open(tmp_path)
    yield reopenable
    await backend.close(reopenable.stores)


@pytest.fixture
def stores(reopenable: ReopenableStore) -> GraphStores:
    """Empty stores."""
    return reopenable.stores


@pytest.fixture
def stamp() -> StampFactory:
    """Makes write stamps."""
    return StampFactory()


@pytest.fixture
def published(backend: Backend, stores: GraphStores) -> Callable[[], Awaitable[list[str]]]:
    """Returns the topics of the events committed so far, in order."""

    async def topics() -> list[str]:
        return [record.topic for record in await backend.published(stores)]

    return topics
