"""What the port's promises are checked against: one entry a family."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.search.query import parse
from services.search.store import Change, Collection, Document, Query, SearchIndex
from services.search.store.embedded import EmbeddedSearchIndex
from services.search.words import words

TWEETS, USERS = Collection.TWEETS, Collection.USERS


class Embedded:
    """The family that needs nothing but a folder."""

    async def open(self, folder: Path) -> SearchIndex:
        """The index that lives in this folder, new or as it was left."""
        return await EmbeddedSearchIndex.open(folder / "search")

    async def commit(self, index: SearchIndex) -> None:
        """Makes durable what was applied, without waiting for the second to be over."""
        assert isinstance(index, EmbeddedSearchIndex)
        await index.commit()


@pytest.fixture(params=[Embedded])
def family(request: pytest.FixtureRequest) -> Embedded:
    """One family of adapters after the other."""
    return request.param()  # type: ignore[no-any-return]


def tweet(tweet_id: int, text: str, *exact: str, author: int = 1, version: int = 0) -> Change:
    """A tweet that stands."""
    return Change(TWEETS, tweet_id, Document(tweet_id, version, author, exact, words(text)))


def person(user_id: int, *exact: str, version: int = 1) -> Change:
    """A person who takes part."""
    return Change(USERS, user_id, Document(user_id, version, user_id, exact, ()))


def gone(key: int, collection: Collection = TWEETS) -> Change:
    """Something that is not to be found any more."""
    return Change(collection, key, None)


def asked(text: str) -> Query:
    """The query of a text without authors."""
    found = parse(text)
    assert not found.authors
    return Query(found.exact, found.phrases)


@dataclass
class Opened:
    """An index with short words for questions, and the way to close and open it again."""

    family: Embedded
    folder: Path
    index: SearchIndex = field(init=False)

    async def apply(self, *changes: Change, position: int = 0) -> None:
        await self.index.apply(changes, position)

    async def commit(self) -> None:
        await self.family.commit(self.index)

    async def newest(self, text: str, before_id: int = 0, limit: int = 100) -> list[int]:
        return list(await self.index.newest(TWEETS, asked(text), before_id, limit))

    async def best(self, text: str, before_id: int = 0, limit: int = 100) -> list[int]:
        return sorted(hit.id for hit in await self.index.best(asked(text), before_id, limit))

    async def people(self, *exact: str, limit: int = 100) -> list[int]:
        return list(await self.index.oldest(USERS, Query(exact), limit))

    async def again(self) -> SearchIndex:
        """Closes the index and opens what it left."""
        await self.index.close()
        self.index = await self.family.open(self.folder)
        return self.index

    async def rebuilt(self, changes: Iterable[Change]) -> None:
        """Builds the index anew from these."""
        await self.index.begin()
        await self.index.fill(list(changes))
        await self.index.finish()


@pytest.fixture
async def opened(family: Embedded, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty index that can be reopened."""
    opened = Opened(family, tmp_path)
    opened.index = await family.open(tmp_path)
    yield opened
    await opened.index.close()
