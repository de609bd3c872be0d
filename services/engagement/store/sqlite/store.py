"""The embedded engagement store: one SQLite file behind write-through caches of the counts and reactions that every
page reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import orjson
from roost.engagement.v1 import engagement_service_pb2 as pb

from services.engagement.store import ReactionEntry, ReactionKind
from services.engagement.store.sqlite.cache import (
    MAX_CACHED_PER_USER,
    NEWEST_COUNTS,
    CountCache,
    ReactedIds,
    ReactionCache,
)
from services.platform.events.log import Record
from services.platform.sqlite import outbox
from services.platform.sqlite.absences import ABSENCES_SCHEMA, decide, is_absent
from services.platform.sqlite.database import Database
from services.platform.sqlite.versioned_writes import VersionedWrites
from services.platform.versions import Kind, MemoryVersions, key_of

# Every like has a row in two tables, one by user and one by tweet. `place` is the reaction id. An undone like is
# deleted.
SCHEMA = """
CREATE TABLE likes_by_user (
    user_id INTEGER NOT NULL, tweet_id INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (user_id, tweet_id)
) WITHOUT ROWID;
CREATE INDEX likes_by_user_place ON likes_by_user (user_id, place, tweet_id);
CREATE TABLE likes_by_tweet (
    tweet_id INTEGER NOT NULL, place INTEGER NOT NULL, user_id INTEGER NOT NULL, PRIMARY KEY (tweet_id, place)
) WITHOUT ROWID;
CREATE TABLE bookmarks (
    user_id INTEGER NOT NULL, tweet_id INTEGER NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (user_id, tweet_id)
) WITHOUT ROWID;
CREATE INDEX bookmarks_by_place ON bookmarks (user_id, place, tweet_id);
CREATE TABLE counts (
    tweet_id INTEGER PRIMARY KEY, likes INTEGER NOT NULL CHECK (likes >= 0),
    bookmarks INTEGER NOT NULL CHECK (bookmarks >= 0)
);
"""
_UNCOUNTED_SCHEMA = """
CREATE TABLE uncounted_likes (
    user_id INTEGER NOT NULL, tweet_id INTEGER NOT NULL, PRIMARY KEY (user_id, tweet_id)
) WITHOUT ROWID;
"""
MIGRATIONS = (SCHEMA, outbox.OUTBOX_SCHEMA, ABSENCES_SCHEMA, _UNCOUNTED_SCHEMA)
# Maximum number of likes recounted in one transaction when a user becomes absent or active again; other writes wait
# until the transaction ends.
ABSENCE_STEP = 500
_UNCOUNT = "INSERT OR IGNORE INTO uncounted_likes (user_id, tweet_id) VALUES (?, ?)"
_RECOUNT = "DELETE FROM uncounted_likes WHERE user_id = ? AND tweet_id = ?"
_HAS_LIKE = "SELECT 1 FROM likes_by_user WHERE user_id = ? AND tweet_id = ?"
_ADD_LIKE = "INSERT OR IGNORE INTO likes_by_user (user_id, tweet_id, place) VALUES (?, ?, ?)"
_ADD_LIKER = "INSERT INTO likes_by_tweet (tweet_id, place, user_id) VALUES (?, ?, ?)"
_DROP_LIKE = "DELETE FROM likes_by_user WHERE user_id = ? AND tweet_id = ? RETURNING place"
_DROP_LIKER = "DELETE FROM likes_by_tweet WHERE tweet_id = ? AND place = ?"
_ADD_BOOKMARK = "INSERT OR IGNORE INTO bookmarks (user_id, tweet_id, place) VALUES (?, ?, ?)"
_DROP_BOOKMARK = "DELETE FROM bookmarks WHERE user_id = ? AND tweet_id = ?"
_COUNT_UP = """
INSERT INTO counts (tweet_id, likes, bookmarks) VALUES (?, ?, ?)
ON CONFLICT (tweet_id) DO UPDATE SET likes = likes + excluded.likes, bookmarks = bookmarks + excluded.bookmarks
RETURNING likes, bookmarks
"""
# A separate statement, because _COUNT_UP fails with negative numbers: SQLite applies a CHECK to the row to insert even
# if the insert becomes an update.
_COUNT_DOWN = """
UPDATE counts SET likes = likes - ?, bookmarks = bookmarks - ? WHERE tweet_id = ? RETURNING likes, bookmarks
"""
_COUNTS = "SELECT likes, bookmarks FROM counts WHERE tweet_id = ?"
_NEWEST_COUNTS = """
SELECT tweet_id, likes, bookmarks FROM counts WHERE likes > 0 OR bookmarks > 0 ORDER BY tweet_id DESC LIMIT ?
"""
_COUNTS_OF = """
SELECT tweet_id, likes, bookmarks FROM counts WHERE tweet_id IN (SELECT value FROM json_each(?))
"""
_LIKERS = "SELECT place, user_id FROM likes_by_tweet WHERE tweet_id = ? AND place < ? ORDER BY place DESC LIMIT ?"
# The table names are constants, so they may be formatted into a statement.
_TABLES = {ReactionKind.LIKE: "likes_by_user", ReactionKind.BOOKMARK: "bookmarks"}
_TWEETS = {
    kind: f"SELECT place, tweet_id FROM {table} WHERE user_id = ? AND place < ? ORDER BY place DESC LIMIT ?"  # noqa: S608 (see above)
    for kind, table in _TABLES.items()
}
_REACTED = {
    kind: f"SELECT tweet_id FROM {table} WHERE user_id = ? LIMIT ?"  # noqa: S608 (see above)
    for kind, table in _TABLES.items()
}
_REACTED_AMONG = {
    kind: f"SELECT tweet_id FROM {table} WHERE user_id = ? AND tweet_id IN (SELECT value FROM json_each(?))"  # noqa: S608 (see above)
    for kind, table in _TABLES.items()
}
_NO_BOUND = (1 << 63) - 1


class _Outcome(NamedTuple):
    """Whether a write of the user's reaction to the tweet changed anything, and the tweet's counts after it."""

    tweet_id: int
    user_id: int
    changed: bool
    likes: int
    bookmarks: int

    def version_keys(self) -> tuple[int, ...]:
        """Implements Change."""
        keys = key_of(Kind.REACTION_COUNTS, self.tweet_id), key_of(Kind.REACTIONS, self.user_id)
        return keys if self.changed else ()


class _Recounted(NamedTuple):
    """Rows of (tweet id, likes, bookmarks) of the tweets whose counts a transaction changed, and the user whose likes it
    excluded or included."""

    rows: Sequence[tuple[int, int, int]]
    user_id: int

    def version_keys(self) -> list[int]:
        """Implements Change."""
        # `BatchGetCounts` returns no reactions of the user to tweets without counts, so these change too.
        keys = [key_of(Kind.REACTION_COUNTS, tweet_id) for tweet_id, _, _ in self.rows]
        return [*keys, key_of(Kind.REACTIONS, self.user_id)] if keys else []


class SqliteEngagementStore:
    """An EngagementStore on one SQLite file that this process owns.

    A write updates the caches after its commit and before it returns, in a task that goes on if the caller is
    cancelled. The tasks run in the order of the commits, so the caches hold the counts of the last commit.
    """

    def __init__(self, db: Database, versions: MemoryVersions, counts: CountCache) -> None:
        self.db = db
        self._writes = VersionedWrites(db, versions, Kind.REACTION_COUNTS, Kind.REACTIONS)
        self._counts = counts
        self._reactions = ReactionCache()
        # Number of committed writes. A read caches its result only if this number did not change during the read;
        # otherwise the result may be older than a write.
        self._writes_committed = 0

    @classmethod
    async def open(cls, path: Path, versions: MemoryVersions) -> Self:
        """Opens or creates the database file. Raises FAILED_PRECONDITION if another process owns the file, if the file
        cannot be opened as a database, or if a newer release migrated it."""
        db = await Database.open(path, MIGRATIONS)
        try:
            rows = await db.read(lambda c: c.execute(_NEWEST_COUNTS, (NEWEST_COUNTS,)).fetchall())
        except BaseException:
            # Closes the database, because otherwise the lock on the file would remain after a failed start.
            await db.close()
            raise
        floor = rows[-1][0] if len(rows) == NEWEST_COUNTS else 0
        return cls(db, versions, CountCache([(row[0], _frame(*row)) for row in reversed(rows)], floor))

    async def like(self, tweet_id: int, user_id: int, event: Record) -> int:
        def transaction(connection: sqlite3.Connection) -> _Outcome:
            if not connection.execute(_ADD_LIKE, (user_id, tweet_id, event.event_id)).rowcount:
                return _unchanged(connection, tweet_id, user_id)
            connection.execute(_ADD_LIKER, (tweet_id, event.event_id, user_id))
            outbox.enqueue(connection, (event,))
            if is_absent(connection, user_id):
                connection.execute(_UNCOUNT, (user_id, tweet_id))
                return _unchanged(connection, tweet_id, user_id)._replace(changed=True)
            return _Outcome(tweet_id, user_id, True, *connection.execute(_COUNT_UP, (tweet_id, 1, 0)).fetchone())

        return (await self._write(transaction, ReactionKind.LIKE, tweet_id, user_id, present=True)).likes

    async def unlike(self, tweet_id: int, user_id: int, event: Record) -> int:
        def transaction(connection: sqlite3.Connection) -> _Outcome:
            rows = connection.execute(_DROP_LIKE, (user_id, tweet_id)).fetchall()
            if not rows:
                return _unchanged(connection, tweet_id, user_id)
            connection.execute(_DROP_LIKER, (tweet_id, rows[0][0]))
            outbox.enqueue(connection, (event,))
            if connection.execute(_RECOUNT, (user_id, tweet_id)).rowcount:
                return _unchanged(connection, tweet_id, user_id)._replace(changed=True)
            return _Outcome(tweet_id, user_id, True, *connection.execute(_COUNT_DOWN, (1, 0, tweet_id)).fetchone())

        return (await self._write(transaction, ReactionKind.LIKE, tweet_id, user_id, present=False)).likes

    async def bookmark(self, tweet_id: int, user_id: int, reaction_id: int) -> bool:
        def transaction(connection: sqlite3.Connection) -> _Outcome:
            if not connection.execute(_ADD_BOOKMARK, (user_id, tweet_id, reaction_id)).rowcount:
                return _unchanged(connection, tweet_id, user_id)
            return _Outcome(tweet_id, user_id, True, *connection.execute(_COUNT_UP, (tweet_id, 0, 1)).fetchone())

        return (await self._write(transaction, ReactionKind.BOOKMARK, tweet_id, user_id, present=True)).changed

    async def unbookmark(self, tweet_id: int, user_id: int) -> bool:
        def transaction(connection: sqlite3.Connection) -> _Outcome:
            if not connection.execute(_DROP_BOOKMARK, (user_id, tweet_id)).rowcount:
                return _unchanged(connection, tweet_id, user_id)
            return _Outcome(tweet_id, user_id, True, *connection.execute(_COUNT_DOWN, (0, 1, tweet_id)).fetchone())

        return (await self._write(transaction, ReactionKind.BOOKMARK, tweet_id, user_id, present=False)).changed

    async def _write(
        self,
        transaction: Callable[[sqlite3.Connection], _Outcome],
        kind: ReactionKind,
        tweet_id: int,
        user_id: int,
        present: bool,
    ) -> _Outcome:
        def apply(outcome: _Outcome) -> None:
            if outcome.changed:
                self._writes_committed += 1
                self._counts.put(tweet_id, _frame(tweet_id, outcome.likes, outcome.bookmarks))
                self._reactions.change(user_id, kind, tweet_id, present)

        return await self._writes.write(transaction, apply)

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        # The absence is stored first: later likes check it, and the loop below recounts the earlier likes.
        if not await self.db.write(lambda c: decide(c, user_id, absent, at_us)):
            return
        below = 0
        while page := await self.list_tweets(ReactionKind.LIKE, user_id, below, ABSENCE_STEP):
            recount = partial(_recount, user_id=user_id, tweet_ids=[entry.id for entry in page], absent=absent)
            await self._writes.write(recount, self._put_counts)
            below = page[-1].reaction_id

    def _put_counts(self, recounted: _Recounted) -> None:
        self._writes_committed += 1
        for tweet_id, likes, bookmarks in recounted.rows:
            self._counts.put(tweet_id, _frame(tweet_id, likes, bookmarks))

    async def list_likers(self, tweet_id: int, below: int, limit: int) -> list[ReactionEntry]:
        values = (tweet_id, below or _NO_BOUND, limit)
        return await self.db.read(lambda c: [ReactionEntry(*row) for row in c.execute(_LIKERS, values)])

    async def list_tweets(self, kind: ReactionKind, user_id: int, below: int, limit: int) -> list[ReactionEntry]:
        values = (user_id, below or _NO_BOUND, limit)
        return await self.db.read(lambda c: [ReactionEntry(*row) for row in c.execute(_TWEETS[kind], values)])

    async def batch_get_counts(self, ids: Sequence[int]) -> pb.BatchGetCountsResponse:
        frames = self._counts.frames(ids)
        if None in frames:
            missing = [tweet_id for tweet_id, frame in zip(ids, frames, strict=True) if frame is None]
            loaded = await self._load_counts(missing)
            frames = [loaded[i] if frame is None else frame for i, frame in zip(ids, frames, strict=True)]
        return pb.BatchGetCountsResponse.FromString(b"".join(filter(None, frames)))

    async def _load_counts(self, ids: Sequence[int]) -> dict[int, bytes]:
        writes_before = self._writes_committed
        rows = await self.db.read(lambda c: c.execute(_COUNTS_OF, (_json(ids),)).fetchall())
        loaded = dict.fromkeys(ids, b"") | {row[0]: _frame(*row) for row in rows}
        if writes_before == self._writes_committed:
            for tweet_id, frame in loaded.items():
                self._counts.put(tweet_id, frame)
        return loaded

    async def batch_get_viewer_states(self, user_id: int, ids: Sequence[int]) -> pb.BatchGetViewerStatesResponse:
        reacted = self._reactions.get(user_id) if user_id in self._reactions else await self._load_reactions(user_id)
        if reacted is None:
            likes, bookmarks = await self._reacted_among(user_id, ids)
        else:
            likes, bookmarks = reacted.likes.intersection(ids), reacted.bookmarks.intersection(ids)
        response = pb.BatchGetViewerStatesResponse()
        if likes or bookmarks:
            add = response.states.add
            for tweet_id in ids:
                if (liked := tweet_id in likes) | (bookmarked := tweet_id in bookmarks):
                    add(tweet_id=tweet_id, liked=liked, bookmarked=bookmarked)
        return response

    async def _load_reactions(self, user_id: int) -> ReactedIds | None:
        def transaction(connection: sqlite3.Connection) -> ReactedIds:
            bound = (user_id, MAX_CACHED_PER_USER + 1)
            return ReactedIds(*({row[0] for row in connection.execute(_REACTED[kind], bound)} for kind in ReactionKind))

        writes_before = self._writes_committed
        found = await self.db.read(transaction)
        reacted = found if len(found.likes) + len(found.bookmarks) <= MAX_CACHED_PER_USER else None
        if writes_before == self._writes_committed:
            self._reactions.put(user_id, reacted)
        return reacted

    async def _reacted_among(self, user_id: int, ids: Sequence[int]) -> tuple[set[int], set[int]]:
        def transaction(connection: sqlite3.Connection) -> list[set[int]]:
            values = (user_id, _json(ids))
            return [{row[0] for row in connection.execute(_REACTED_AMONG[kind], values)} for kind in ReactionKind]

        likes, bookmarks = await self.db.read(transaction)
        return likes, bookmarks

    async def close(self) -> None:
        await self.db.close()


def _recount(connection: sqlite3.Connection, user_id: int, tweet_ids: Sequence[int], absent: bool) -> _Recounted:
    """Excludes the user's likes of these tweets from the counts (`absent`), or includes these likes again."""
    changed = []
    for tweet_id in tweet_ids:
        # The like may have been undone since it was listed.
        if absent and not connection.execute(_HAS_LIKE, (user_id, tweet_id)).fetchone():
            continue
        if connection.execute(_UNCOUNT if absent else _RECOUNT, (user_id, tweet_id)).rowcount:
            statement, values = (_COUNT_DOWN, (1, 0, tweet_id)) if absent else (_COUNT_UP, (tweet_id, 1, 0))
            changed.append((tweet_id, *connection.execute(statement, values).fetchone()))
    return _Recounted(changed, user_id)


def _unchanged(connection: sqlite3.Connection, tweet_id: int, user_id: int) -> _Outcome:
    return _Outcome(tweet_id, user_id, False, *(connection.execute(_COUNTS, (tweet_id,)).fetchone() or (0, 0)))


def _frame(tweet_id: int, likes: int, bookmarks: int) -> bytes:
    """Returns the counts of one tweet as a serialized BatchGetCountsResponse (a frame); empty if the tweet has no likes
    and bookmarks. Concatenated frames parse as one response."""
    if not (likes or bookmarks):
        return b""
    counts = pb.TweetCounts(tweet_id=tweet_id, likes=likes, bookmarks=bookmarks)
    return pb.BatchGetCountsResponse(counts=[counts]).SerializeToString()


def _json(ids: Sequence[int]) -> str:
    return orjson.dumps(list(ids)).decode()
