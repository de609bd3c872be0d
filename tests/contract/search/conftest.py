"""Fixtures for the contract tests of the search index, one entry for each backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from services.platform.config import Settings
from services.search.query import parse
from services.search.store import Collection, Document, IndexChange, Query, SearchIndex
from services.search.store.tantivy.store import EmbeddedSearchIndex
from services.search.tokenizer import words
from tests.cluster import backend as namespaces

TWEETS, USERS = Collection.TWEETS, Collection.USERS


class Backend(Protocol):
    """One backend under test. `keeps_position`: its index stores the log offset up to which it is durable."""

    keeps_position: bool

    async def open(self, folder: Path) -> SearchIndex:
        """Opens the index of this folder, new or as it was left."""

    async def commit(self, index: SearchIndex) -> None:
        """Commits applied changes now."""


class Embedded:
    """The Tantivy index in a folder."""

    keeps_position = True

    async def open(self, folder: Path) -> SearchIndex:
        return await EmbeddedSearchIndex.open(folder / "search")

    async def commit(self, index: SearchIndex) -> None:
        assert isinstance(index, EmbeddedSearchIndex)
        await index.commit()


class OpenSearch:
    """The index on a real OpenSearch server. Applied changes are durable there."""

    keeps_position = False

    async def open(self, folder: Path) -> SearchIndex:
        from services.search.store.opensearch.store import OpenSearchIndex

        return await OpenSearchIndex.open(Settings(**namespaces.of(folder).settings))

    async def commit(self, index: SearchIndex) -> None:
        pass


BACKEND_NAMES: dict[str, type[Backend]] = {"embedded": Embedded, "cluster": OpenSearch}


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The backend of this run."""
    return BACKEND_NAMES[request.config.getoption("--backend")]()


def tweet(tweet_id: int, text: str, *exact: str, author: int = 1, version: int = 0) -> IndexChange:
    """Returns a change with a live tweet."""
    return IndexChange(TWEETS, tweet_id, Document(tweet_id, version, author, exact, words(text)))


def user_change(user_id: int, *exact: str, version: int = 1, rank: int = 0) -> IndexChange:
    """Returns a change with an active user."""
    return IndexChange(USERS, user_id, Document(user_id, version, user_id, exact, (), rank))


def removal(key: int, collection: Collection = TWEETS) -> IndexChange:
    """Returns a change that removes a document."""
    return IndexChange(collection, key, None)


def query_of(text: str) -> Query:
    """Returns the index query of a search text without authors."""
    found = parse(text)
    assert not found.authors
    return Query(found.exact, found.phrases, found.excluded.exact, found.excluded.phrases)


@dataclass
class Opened:
    """An index with short forms of its methods, which can be closed and opened again."""

    backend: Backend
    folder: Path
    index: SearchIndex = field(init=False)

    async def apply(self, *changes: IndexChange, position: int = 0) -> None:
        await self.index.apply(changes, position)

    async def commit(self) -> None:
        await self.backend.commit(self.index)

    async def newest(self, text: str, before_id: int = 0, limit: int = 100) -> list[int]:
        return list(await self.index.newest(TWEETS, query_of(text), before_id, limit))

    async def best(self, text: str, before_id: int = 0, limit: int = 100) -> list[int]:
        return sorted(hit.id for hit in await self.index.best(query_of(text), before_id, limit))

    async def people(self, *exact: str, limit: int = 100) -> list[int]:
        return [place.id for place in await self.index.ranked(USERS, Query(exact), None, limit)]

    async def again(self) -> SearchIndex:
        """Closes the index and opens it again."""
        await self.index.close()
        self.index = await self.backend.open(self.folder)
        return self.index

    async def rebuilt(self, changes: Iterable[IndexChange]) -> None:
        """Rebuilds the index from these changes."""
        await self.index.begin()
        await self.index.fill(list(changes))
        await self.index.finish()


@pytest.fixture
async def opened(backend: Backend, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty index that can be reopened."""
    opened = Opened(backend, tmp_path)
    opened.index = await backend.open(tmp_path)
    yield opened
    await opened.index.close()
