"""What the port's promises are checked against: one entry a family."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.common.event_log import Record
from services.graph.facts import Change
from services.graph.store import MAX_EVENTS, GraphStore
from services.graph.store.embedded import EmbeddedGraphStore
from services.graph.tiers import TierRule

THRESHOLD = 5
START_MS = 1_800_000_000_000


@dataclass
class Stamps:
    """Stamps of writes: a millisecond later each time, unless told otherwise."""

    now_ms: int = START_MS
    last_id: int = 0
    traceparent: str = ""

    def __call__(self, at_ms: int | None = None, events: int = MAX_EVENTS) -> Change:
        self.now_ms += 1
        version = self.last_id + 1
        self.last_id = version + events
        return Change(at_ms or self.now_ms, version, tuple(range(version + 1, self.last_id + 1)), self.traceparent)


class Embedded:
    """The family that needs nothing but a folder."""

    async def open(self, folder: Path, threshold: int = THRESHOLD) -> GraphStore:
        """The store that lives in this folder, new or as it was left."""
        return await EmbeddedGraphStore.open(folder / "graph.db", TierRule(threshold))

    async def published(self, store: GraphStore) -> list[Record]:
        """The events committed so far, in order."""
        assert isinstance(store, EmbeddedGraphStore)
        query = "SELECT topic, key, event_id, payload, traceparent FROM outbox ORDER BY seq"
        return await store.db.read(lambda c: [Record(*row) for row in c.execute(query)])


@pytest.fixture(params=[Embedded])
def family(request: pytest.FixtureRequest) -> Embedded:
    """One family of adapters after the other."""
    return request.param()  # type: ignore[no-any-return]


@dataclass
class Opened:
    """A store, and the way to close and open it again."""

    family: Embedded
    folder: Path
    store: GraphStore = field(init=False)

    async def again(self, threshold: int = THRESHOLD) -> GraphStore:
        """Closes the store and opens what it left."""
        await self.store.close()
        self.store = await self.family.open(self.folder, threshold)
        return self.store


@pytest.fixture
async def opened(family: Embedded, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty store that can be reopened."""
    opened = Opened(family, tmp_path)
    opened.store = await family.open(tmp_path)
    yield opened
    await opened.store.close()


@pytest.fixture
def store(opened: Opened) -> GraphStore:
    """An empty store."""
    return opened.store


@pytest.fixture
def stamp() -> Stamps:
    """Makes the stamps of writes."""
    return Stamps()


@pytest.fixture
def published(family: Embedded, store: GraphStore) -> Callable[[], Awaitable[list[str]]]:
    """The topics of the events committed so far, in order."""

    async def topics() -> list[str]:
        return [record.topic for record in await family.published(store)]

    return topics
