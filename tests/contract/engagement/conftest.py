"""What the port's promises are checked against: one entry a family."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.common.event_log import Record
from services.engagement.store import EngagementStore, Kind
from services.engagement.store.embedded import EmbeddedEngagementStore


class Embedded:
    """The family that needs nothing but a folder."""

    async def open(self, folder: Path) -> EngagementStore:
        """The store that lives in this folder, new or as it was left."""
        return await EmbeddedEngagementStore.open(folder / "engagement.db")

    async def published(self, store: EngagementStore) -> list[Record]:
        """The events committed so far, in order."""
        assert isinstance(store, EmbeddedEngagementStore)
        query = "SELECT topic, key, event_id, payload, traceparent FROM outbox ORDER BY seq"
        return await store.db.read(lambda c: [Record(*row) for row in c.execute(query)])


@pytest.fixture(params=[Embedded])
def family(request: pytest.FixtureRequest) -> Embedded:
    """One family of adapters after the other."""
    return request.param()  # type: ignore[no-any-return]


@dataclass
class Opened:
    """A store with short words for writes and reads, and the way to close and open it again."""

    family: Embedded
    folder: Path
    store: EngagementStore = field(init=False)
    last_id: int = 0

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
        await self.store.close()
        self.store = await self.family.open(self.folder)
        return self.store

    async def events(self) -> list[tuple[str, int, int]]:
        """The events so far: topic, user and tweet."""
        return [(one.topic, one.key, int(one.payload)) for one in await self.family.published(self.store)]

    async def likers(self, tweet_id: int, below: int = 0, limit: int = 100) -> list[int]:
        return [entry.id for entry in await self.store.list_likers(tweet_id, below, limit)]

    async def tweets(self, kind: Kind, user_id: int, below: int = 0, limit: int = 100) -> list[int]:
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
async def opened(family: Embedded, tmp_path: Path) -> AsyncIterator[Opened]:
    """An empty store that can be reopened."""
    opened = Opened(family, tmp_path)
    opened.store = await family.open(tmp_path)
    yield opened
    await opened.store.close()
