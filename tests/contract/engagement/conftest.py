"""What the port's promises are checked against: one class a family."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from services.engagement.store import EngagementStore, ReactionKind
from services.engagement.store.sqlite.store import EmbeddedEngagementStore
from services.platform.config import Settings
from services.platform.events.log import Record
from services.platform.sqlite.event_log import EmbeddedLog
from tests import cluster


class Backend(Protocol):
    """How stores of one family are opened and looked into."""

    async def open(self, folder: Path) -> EngagementStore:
        """The store that lives in this folder, new or as it was left."""

    async def close(self, store: EngagementStore) -> None:
        """Closes it, and all that was opened for it."""

    async def published(self, store: EngagementStore) -> list[Record]:
        """The events committed so far, in order."""


class Embedded:
    """The family that needs nothing but a folder."""

    async def open(self, folder: Path) -> EngagementStore:
        return await EmbeddedEngagementStore.open(folder / "engagement.db")

    async def close(self, store: EngagementStore) -> None:
        await store.close()

    async def published(self, store: EngagementStore) -> list[Record]:
        assert isinstance(store, EmbeddedEngagementStore)
        query = "SELECT topic, key, event_id, payload, traceparent FROM outbox ORDER BY seq"
        return await store.db.read(lambda c: [Record(*row) for row in c.execute(query)])


class ClusterBackends:
    """The family on the real servers: a folder stands for a namespace there."""

    def __init__(self) -> None:
        self._stacks: dict[int, AsyncExitStack] = {}

    async def open(self, folder: Path) -> EngagementStore:
        from services.engagement.store.cassandra.store import CassandraEngagementStore
        from services.platform.backends.cluster import ClusterBackends

        stack = AsyncExitStack()
        connections = await ClusterBackends.open(Settings(**cluster.backend.of(folder).settings), stack)
        # Where facts go is no concern of the store's promises.
        log = await EmbeddedLog.open(folder / "log.db")
        stack.push_async_callback(log.close)
        store = await CassandraEngagementStore.open(connections, log, time.time)
        self._stacks[id(store)] = stack
        return store

    async def close(self, store: EngagementStore) -> None:
        await store.close()
        await self._stacks.pop(id(store)).aclose()

    async def published(self, store: EngagementStore) -> list[Record]:
        from services.engagement.store.cassandra.store import CassandraEngagementStore

        assert isinstance(store, CassandraEngagementStore)
        rows = await store.keyspace.read("SELECT topic, key, event_id, payload, traceparent FROM outbox")
        # What stands there was meant to happen; whether it did is the store's to say.
        return await store.committed_events(sorted((Record(*row) for row in rows), key=lambda one: one.event_id))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The family of this run."""
    return Embedded() if request.config.getoption("--backend") == "embedded" else ClusterBackends()


@dataclass
class Opened:
    """A store with short words for writes and reads, and the way to close and open it again."""

    backend: Backend
    folder: Path
    store: EngagementStore = field(init=False)
    # Never given before, as in life: a place that was taken out is not taken again.
    last_id: int = field(default_factory=time.time_ns)

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    async def like(self, tweet_id: int, user_id: int) -> int:
        return await self.store.like(
            tweet_id, user_id, Record("tweet.liked", user_id, self.next_id(), b"%d" % tweet_id)
        )

    async def unlike(self, tweet_id: int, user_id: int) -> int:
        event = Record("tweet.unliked", user_id, self.next_id(), b"%d" % tweet_id)
        return await self.store.unlike(tweet_id, user_id, event)

    async def bookmark(self, tweet_id: int, user_id: int) -> bool:
        return await self.store.bookmark(tweet_id, user_id, self.next_id())

    async def unbookmark(self, tweet_id: int, user_id: int) -> bool:
        return await self.store.unbookmark(tweet_id, user_id)

    async def again(self) -> EngagementStore:
        """Closes the store and opens what it left."""
        await self.backend.close(self.store)
        self.store = await self.backend.open(self.folder)
        return self.store

    async def events(self) -> list[tuple[str, int, int]]:
        """The events so far: topic, user and tweet."""
        return [(one.topic, one.key, int(one.payload)) for one in await self.backend.published(self.store)]

    async def likers(self, tweet_id: int, below: int = 0, limit: int = 100) -> list[int]:
        return [entry.id for entry in await self.store.list_likers(tweet_id, below, limit)]

    async def tweets(self, kind: ReactionKind, user_id: int, below: int = 0, limit: int = 100) -> list[int]:
        return [entry.id for entry in await self.store.list_tweets(kind, user_id, below, limit)]

    async def counts(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """(tweet, likes, bookmarks) of each that has any."""
        answer = await self.store.batch_get_counts(ids)
        return [(one.tweet_id, one.likes, one.bookmarks) for one in answer.counts]

    async def states(self, user_id: int, ids: Sequence[int]) -> list[tuple[int, bool, bool]]:
        """(tweet, liked, bookmarked) of each where something is true."""
        answer = await self.store.batch_get_viewer_states(user_id, ids)
        return [(one.tweet_id, one.liked, one.bookmarked) for one in answer.states]


@pytest.fixture
async def opened(backend: Backend, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty store that can be reopened."""
    opened = Opened(backend, tmp_path)
    opened.store = await backend.open(tmp_path)
    yield opened
    await backend.close(opened.store)
