"""The backends that the contract of the port is tested on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.config import Settings
from services.platform.events.log import Record
from services.platform.rpc.errors import RoostError
from services.platform.sqlite.event_log import EmbeddedLog
from services.platform.versions import MemoryVersions
from services.tweet.store import Claim, TweetStores
from services.tweet.store.sqlite.stores import SqliteTweetStores, open_stores
from tests.cluster import backend as namespaces
from tests.conftest import LONG, SHORT

OPEN_TRIES = 5

_numbers = count(1)


class Backend(Protocol):
    """Opens the stores of one backend and reads their events. EXAMPLES: histories that the model test tries, by length."""

    EXAMPLES: Mapping[str, int]

    async def open(self, folder: Path, place: Path | None = None) -> TweetStores:
        """Opens the store of this folder, new or existing. In the cluster backend `place` names another folder whose
        tweets it uses."""

    async def published(self, stores: TweetStores) -> list[Record]:
        """Returns the committed events in the order of their ids."""

    async def wait_for_writes(self, stores: TweetStores) -> None:
        """Waits for the writes of callers who were cancelled."""


class Embedded:
    """The embedded backend: needs only a folder."""

    EXAMPLES: ClassVar = {SHORT: 30, LONG: 100}

    async def open(self, folder: Path, place: Path | None = None) -> TweetStores:
        return await open_stores(folder / "tweet.db", MemoryVersions())

    async def published(self, stores: TweetStores) -> list[Record]:
        assert isinstance(stores, SqliteTweetStores)
        query = "SELECT topic, key, event_id, payload, traceparent FROM outbox ORDER BY event_id"
        return await stores.db.read(lambda c: [Record(*row) for row in c.execute(query)])

    async def wait_for_writes(self, stores: TweetStores) -> None:
        # Commits are in order: after the next one, all earlier ones are done.
        assert isinstance(stores, SqliteTweetStores)
        await stores.db.write(lambda _: None)


class Clustered:
    """The cluster backend on real servers: each folder has its own namespace there, and each open store its own
    connections, as a process has."""

    # Each takes 15 s.
    EXAMPLES: ClassVar = {SHORT: 3, LONG: 15}

    async def open(self, folder: Path, place: Path | None = None) -> TweetStores:
        from services.platform.backends.cluster import ClusterBackends
        from services.tweet.store.cassandra import stores as cassandra

        stack = AsyncExitStack()
        settings = Settings(**namespaces.of(place or folder).settings)
        for left in reversed(range(OPEN_TRIES)):
            try:
                cluster = await ClusterBackends.open(settings, stack)
                break
            except RoostError:
                # A busy machine may take longer to answer than a process waits: retry, as a supervisor does.
                if not left:
                    raise
        log = await EmbeddedLog.open(folder / "log.db")
        stack.push_async_callback(log.close)
        stores = await cassandra.open_stores(cluster, log, time.time)

        async def close() -> None:
            await stores.close()
            await stack.aclose()

        return dataclasses.replace(stores, close=close)

    async def published(self, stores: TweetStores) -> list[Record]:
        from services.tweet.store.cassandra.stores import CassandraTweetStores

        assert isinstance(stores, CassandraTweetStores)
        rows = await stores.keyspace.read("SELECT topic, key, event_id, payload, traceparent FROM outbox")
        # An event that was written again in another minute has two rows.
        return sorted({Record(*row) for row in rows}, key=lambda record: record.event_id)

    async def wait_for_writes(self, stores: TweetStores) -> None:
        from services.tweet.store.cassandra.stores import CassandraTweetStores

        assert isinstance(stores, CassandraTweetStores)
        await stores.writes.wait()


BACKEND_NAMES: dict[str, type[Backend]] = {"embedded": Embedded, "cluster": Clustered}


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend of this run."""
    return BACKEND_NAMES[request.config.getoption("--backend")]()


def make_core(tweet_id: int, author_id: int, text: str = "hello", **head: int) -> tweet_pb2.TweetCore:
    """Returns a live tweet as `create` takes it."""
    tweet = tweet_pb2.Tweet(id=tweet_id, author_id=author_id, text=text)
    return tweet_pb2.TweetCore(
        head=tweet_pb2.TweetHead(id=tweet_id, author_id=author_id, **head), core=tweet.SerializeToString()
    )


def event(topic: str, tweet_id: int) -> Record:
    """Returns an event with a new id and the tweet id as payload."""
    return Record(topic, 1, next(_numbers), b"%d" % tweet_id)


@dataclass
class Opened:
    """A store with helpers for writes, which can be closed and opened again."""

    backend: Backend
    folder: Path
    stores: TweetStores = field(init=False)

    async def post(
        self, tweet_id: int, author_id: int = 1, claim: Claim | None = None, conversation_id: int = 0, **head: Any
    ) -> int:
        """Creates a tweet, in a conversation of its own if none is given. Returns the id that the store returns."""
        core = make_core(tweet_id, author_id, **head)
        return await self.stores.tweets.create(
            core, conversation_id or tweet_id, event("tweet.created", tweet_id), claim
        )

    async def delete(self, tweet_id: int, at_s: int = 0) -> bool:
        """Deletes the tweet as its author does."""
        return await self.stores.tweets.delete(tweet_id, at_s, event("tweet.deleted", tweet_id))

    async def edit(self, tweet_id: int, author_id: int, version: int, text: str, **head: Any) -> bool:
        """Stores a version whose time is its number in seconds."""
        revision = tweet_service_pb2.TweetRevision(version=version, text=text)
        revision.created_at.FromSeconds(version)
        core = make_core(tweet_id, author_id, text, **head)
        return await self.stores.tweets.revise(core, revision, event("tweet.edited", tweet_id))

    async def reopen(self) -> TweetStores:
        """Closes the store and opens it again."""
        await self.stores.close()
        self.stores = await self.backend.open(self.folder)
        return self.stores

    async def topics(self) -> list[tuple[str, int]]:
        """Returns the events so far as (topic, tweet)."""
        return [(record.topic, int(record.payload)) for record in await self.backend.published(self.stores)]

    async def ids_of(self, author_id: int, before_id: int = 0, per_author: int = 832) -> list[int]:
        """Returns the author's newest ids."""
        response = await self.stores.lists.batch_list_author_ids([author_id], before_id, per_author)
        return list(response.authors[0].ids) if response.authors else []


@pytest.fixture
async def opened(backend: Backend, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty store that can be reopened."""
    opened = Opened(backend, tmp_path)
    opened.stores = await backend.open(tmp_path)
    yield opened
    await opened.stores.close()
