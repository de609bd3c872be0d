"""The backends that the contract of the port is tested on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from services.engagement.store import EngagementStore, ReactionKind
from services.engagement.store.sqlite.store import SqliteEngagementStore
from services.platform.config import Settings
from services.platform.events.log import Record
from services.platform.sqlite.event_log import EmbeddedLog
from services.platform.versions import MemoryVersions
from tests import cluster


class Backend(Protocol):
    """Opens the stores of one backend and reads their events."""

    async def open(self, folder: Path) -> EngagementStore:
        """Opens the store of this folder, new or existing."""

    async def close(self, store: EngagementStore) -> None:
        """Closes the store and all that was opened for it."""

    async def published(self, store: EngagementStore) -> list[Record]:
        """Returns the committed events in order."""


class Embedded:
    """The embedded backend: needs only a folder."""

    async def open(self, folder: Path) -> EngagementStore:
        return await SqliteEngagementStore.open(folder / "engagement.db", MemoryVersions())

    async def close(self, store: EngagementStore) -> None:
        await store.close()

    async def published(self, store: EngagementStore) -> list[Record]:
        assert isinstance(store, SqliteEngagementStore)
        query = "SELECT topic, key, event_id, payload, traceparent FROM outbox ORDER BY seq"
        return await store.db.read(lambda c: [Record(*row) for row in c.execute(query)])


class ClusterBackends:
    """The cluster backend on real servers: each folder has its own namespace there."""

    def __init__(self) -> None:
        self._stacks: dict[int, AsyncExitStack] = {}

    async def open(self, folder: Path) -> EngagementStore:
        from services.engagement.store.cassandra.store import CassandraEngagementStore
        from services.platform.backends.cluster import ClusterBackends

        stack = AsyncExitStack()
        connections = await ClusterBackends.open(Settings(**cluster.backend.of(folder).settings), stack)
        # The tests do not read the log.
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
        # The outbox also contains events whose transaction was not applied; the store knows which ones were.
        events = sorted((Record(*row) for row in rows), key=lambda one: one.event_id)
        return list(await store.writer.validator.publishable(events))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend of this run."""
    return Embedded() if request.config.getoption("--backend") == "embedded" else ClusterBackends()


@dataclass
class Opened:
    """A store with helpers for writes and reads, which can be closed and opened again."""

    backend: Backend
    folder: Path
    store: EngagementStore = field(init=False)
    # Unique over all runs, as real ids are: a deleted reaction id is never used again.
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

    async def reopen(self) -> EngagementStore:
        """Closes the store and opens it again."""
        await self.backend.close(self.store)
        self.store = await self.backend.open(self.folder)
        return self.store

    async def events(self) -> list[tuple[str, int, int]]:
        """Returns the events so far as (topic, user, tweet)."""
        return [(one.topic, one.key, int(one.payload)) for one in await self.backend.published(self.store)]

    async def likers(self, tweet_id: int, below: int = 0, limit: int = 100) -> list[int]:
        return [entry.id for entry in await self.store.list_likers(tweet_id, below, limit)]

    async def tweets(self, kind: ReactionKind, user_id: int, below: int = 0, limit: int = 100) -> list[int]:
        return [entry.id for entry in await self.store.list_tweets(kind, user_id, below, limit)]

    async def counts(self, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """Returns (tweet, likes, bookmarks) of each tweet that has any."""
        answer = await self.store.batch_get_counts(ids)
        return [(one.tweet_id, one.likes, one.bookmarks) for one in answer.counts]

    async def states(self, user_id: int, ids: Sequence[int]) -> list[tuple[int, bool, bool]]:
        """Returns (tweet, liked, bookmarked) of each tweet that the user reacted to."""
        answer = await self.store.batch_get_viewer_states(user_id, ids)
        return [(one.tweet_id, one.liked, one.bookmarked) for one in answer.states]


@pytest.fixture
async def opened(backend: Backend, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty store that can be reopened."""
    opened = Opened(backend, tmp_path)
    opened.store = await backend.open(tmp_path)
    yield opened
    await backend.close(opened.store)
