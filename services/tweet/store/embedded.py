"""The embedded tweet store: one SQLite file, and in front of it what reads ask for most, written through."""

from __future__ import annotations

import asyncio
import sqlite3
from array import array
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.common import errors, outbox
from services.common.drivers.sqlite import Database
from services.common.event_log import Record
from services.common.hydrate import framed
from services.tweet.store import IDEMPOTENCY_TTL_S, Claim
from services.tweet.store import schema as sql
from services.tweet.store.links import LinkLists
from services.tweet.store.memory import AuthorIds, Epochs, Recent

T = TypeVar("T")

# About 0.4 KB each: at most some 50 MB for the tweets that pages are made of.
CACHED_CORES = 65_536
# Mostly a few ids, at most 8 KB each.
CACHED_AUTHORS = 16_384
# What a list not in memory is filled with: some pages of one author.
FILL_IDS = 128
# Rows a purge deletes in one transaction: a longer one would hold up those who post.
PURGE_STEP = 500
# Expired keys swept by each post that brings one: more than one, so that they cannot pile up.
SWEPT_KEYS = 4

_FRAME_TAG = b"\x0a"

_INSERT = """
INSERT INTO tweets (id, author_id, version, state, core, conversation_id, reply_to_id, reply_to_author_id,
    retweet_of_id, retweet_of_author_id, quote_of_id, quote_of_author_id)
VALUES (?, ?, 1, 0, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_COUNT = """
INSERT INTO author_counts (author_id, tweets) VALUES (?, ?)
ON CONFLICT (author_id) DO UPDATE SET tweets = tweets + excluded.tweets
"""
_BY_IDS = "SELECT * FROM cores WHERE id IN (SELECT value FROM json_each(?))"
_SCAN = "SELECT * FROM cores WHERE id > ? ORDER BY id LIMIT ?"
_STATE = "SELECT author_id, state, action_id FROM tweets WHERE id = ?"
_HIDE = "UPDATE tweets SET state = ?, action_id = ?, hidden_at_s = ? WHERE id = ?"
_AUTHOR_IDS = "SELECT id FROM tweets WHERE author_id = ? AND state = 0 AND id < ? ORDER BY id DESC LIMIT ?"
_AUTHOR_IDS_NARROWED = """
SELECT id FROM tweets WHERE author_id = ? AND state = 0 AND id < ?
    AND (? OR reply_to_id = 0) AND (? OR retweet_of_id = 0) ORDER BY id DESC LIMIT ?
"""
_RECENT_IDS = "SELECT id FROM tweets WHERE id < ? AND state = 0 ORDER BY id DESC LIMIT ?"
_COUNTS = (
    "SELECT author_id, tweets FROM author_counts WHERE author_id IN (SELECT value FROM json_each(?)) AND tweets > 0"
)
_EXPIRED = "SELECT user_id, key FROM idempotency_keys WHERE expires_at_s <= ? ORDER BY expires_at_s LIMIT ?"
_KEY = "SELECT body_hash, tweet_id FROM idempotency_keys WHERE user_id = ? AND key = ? AND expires_at_s > ?"
_PURGEABLE = "SELECT id FROM tweets WHERE state = 1 AND hidden_at_s < ? ORDER BY hidden_at_s, id LIMIT ?"


class EmbeddedTweetStore(LinkLists):
    """A TweetStore over one SQLite file of this process.

    Memory is changed after the commit and before the writer gets its answer, in a task that its caller's
    cancellation does not reach. A read that finds nothing in memory remembers what it read only if no write was
    told meanwhile.
    """

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        # Serialised TweetCore messages, framed as BatchGetTweetCoresResponse holds them.
        self._cores: Recent[int, bytes] = Recent(CACHED_CORES)
        self._authors: Recent[int, AuthorIds] = Recent(CACHED_AUTHORS)
        # Of tweet ids and author ids alike.
        self._epochs = Epochs()

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Opens or creates the file. FAILED_PRECONDITION if another owner has it."""
        return cls(await Database.open(path, sql.MIGRATIONS))

    @property
    def db(self) -> Database:
        """The database, for the relay of its outbox."""
        return self._db

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        """See the port."""

        def unit(connection: sqlite3.Connection) -> int:
            head = core.head
            if claim is not None and (earlier := _claim(connection, head.author_id, claim, head.id)):
                return earlier
            connection.execute(
                _INSERT,
                (
                    *(head.id, head.author_id, core.core, conversation_id, head.reply_to_id, head.reply_to_author_id),
                    *(head.retweet_of_id, head.retweet_of_author_id, head.quote_of_id, head.quote_of_author_id),
                ),
            )
            connection.execute(_COUNT, (head.author_id, 1))
            outbox.enqueue(connection, (event,))
            return head.id

        async def write() -> int:
            tweet_id = await self._db.write(unit)
            if tweet_id == core.head.id:
                self._epochs.advance(core.head.author_id)
                self._cores.put(tweet_id, _frame(core.SerializeToString()))
                if (known := self._authors.get(core.head.author_id)) is not None:
                    known.add(tweet_id)
            return tweet_id

        return await _whole(write())

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        """See the port."""
        return await self._hide(tweet_id, sql.DELETED, 0, at_s, event)

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        """See the port."""
        return await self._hide(tweet_id, sql.REMOVED, action_id, at_s, event)

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        """See the port."""

        def unit(connection: sqlite3.Connection) -> tuple[int, bool]:
            author_id, state, hidden_by = _state(connection, tweet_id)
            if state != sql.REMOVED:
                return author_id, False
            if hidden_by != action_id:
                raise errors.failed_precondition("another action hides the tweet", "OTHER_ACTION")
            connection.execute(_HIDE, (sql.STANDS, 0, 0, tweet_id))
            connection.execute(_COUNT, (author_id, 1))
            outbox.enqueue(connection, (event,))
            return author_id, True

        return await _whole(self._change(tweet_id, unit))

    async def _hide(self, tweet_id: int, into: int, action_id: int, at_s: int, event: Record) -> bool:
        def unit(connection: sqlite3.Connection) -> tuple[int, bool]:
            author_id, state, _ = _state(connection, tweet_id)
            if state == sql.DELETED:
                return author_id, False
            connection.execute(_HIDE, (into, action_id, at_s, tweet_id))
            if state == sql.STANDS:
                connection.execute(_COUNT, (author_id, -1))
                outbox.enqueue(connection, (event,))
            return author_id, state == sql.STANDS

        return await _whole(self._change(tweet_id, unit))

    async def _change(self, tweet_id: int, unit: Any) -> bool:
        author_id, changed = await self._db.write(unit)
        self._epochs.advance(tweet_id)
        self._epochs.advance(author_id)
        self._cores.pop(tweet_id)
        self._authors.pop(author_id)
        return bool(changed)

    async def purge(self, before_s: int, limit: int) -> int:
        """See the port."""
        purged = 0
        while purged < limit:
            step = min(PURGE_STEP, limit - purged)
            found = await _whole(self._purge_step(before_s, step))
            purged += found
            if found < step:
                break
        return purged

    async def _purge_step(self, before_s: int, step: int) -> int:
        def unit(connection: sqlite3.Connection) -> list[int]:
            rows = connection.execute(_PURGEABLE, (before_s, step)).fetchall()
            connection.executemany("DELETE FROM tweets WHERE id = ?", rows)
            return [row[0] for row in rows]

        gone = await self._db.write(unit)
        for tweet_id in gone:
            self._epochs.advance(tweet_id)
            self._cores.pop(tweet_id)
        return len(gone)

    async def batch_get(self, ids: Sequence[int]) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        """See the port."""
        get = self._cores.get
        frames = [get(tweet_id) for tweet_id in ids]
        if None in frames:
            loaded = await self._load_cores([i for i, frame in zip(ids, frames, strict=True) if frame is None])
            frames = [frame or loaded.get(i) for i, frame in zip(ids, frames, strict=True)]
        return tweet_service_pb2.BatchGetTweetCoresResponse.FromString(b"".join(filter(None, frames)))

    async def _load_cores(self, ids: Sequence[int]) -> dict[int, bytes]:
        epochs = [self._epochs.now(tweet_id) for tweet_id in ids]
        rows = await self._db.read(lambda c: c.execute(_BY_IDS, (orjson.dumps(ids).decode(),)).fetchall())
        loaded = {row[0]: _frame(_core(row).SerializeToString()) for row in rows}
        for tweet_id, epoch in zip(ids, epochs, strict=True):
            if tweet_id in loaded and self._epochs.now(tweet_id) == epoch:
                self._cores.put(tweet_id, loaded[tweet_id])
        return loaded

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        """See the port."""
        missing: list[int] = []
        lists: dict[int, Sequence[int]] = {}
        for author_id in author_ids:
            known = self._authors.get(author_id)
            kept = known.newest(before_id, per_author) if known is not None else None
            if kept is None:
                missing.append(author_id)
            lists[author_id] = () if kept is None else kept
        if missing:
            lists.update(await self._load_author_ids(missing, before_id, per_author))
        response = tweet_service_pb2.BatchListAuthorTweetIdsResponse()
        add = response.authors.add
        for author_id, ids in lists.items():
            if ids:
                add(author_id=author_id, ids=ids)
        return response

    async def _load_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> dict[int, Sequence[int]]:
        epochs = [self._epochs.now(author_id) for author_id in author_ids]
        fill = max(per_author, FILL_IDS)

        def unit(connection: sqlite3.Connection) -> list[tuple[AuthorIds, Sequence[int]]]:
            return [_read_author_ids(connection, author_id, before_id, per_author, fill) for author_id in author_ids]

        found: dict[int, Sequence[int]] = {}
        loaded = await self._db.read(unit)
        for author_id, epoch, (newest, ids) in zip(author_ids, epochs, loaded, strict=True):
            found[author_id] = ids
            if self._epochs.now(author_id) == epoch:
                self._authors.put(author_id, newest)
        return found

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        """See the port."""
        if replies and retweets:
            known = self._authors.get(author_id)
            kept = known.newest(before_id, limit) if known is not None else None
            return (await self._load_author_ids([author_id], before_id, limit))[author_id] if kept is None else kept
        values = (author_id, before_id or sql.NO_BOUND, replies, retweets, limit)
        return await self._db.read(lambda c: [row[0] for row in c.execute(_AUTHOR_IDS_NARROWED, values)])

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        """See the port."""
        values = (before_id or sql.NO_BOUND, limit)
        return await self._db.read(lambda c: [row[0] for row in c.execute(_RECENT_IDS, values)])

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        """See the port."""
        wanted = orjson.dumps(list(author_ids)).decode()
        return await self._db.read(lambda c: dict(c.execute(_COUNTS, (wanted,)).fetchall()))

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        """See the port."""
        rows = await self._db.read(lambda c: c.execute(_SCAN, (after_id, limit)).fetchall())
        return [_core(row) for row in rows]

    async def close(self) -> None:
        """See the port."""
        await self._db.close()


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work to its end even if the caller is cancelled meanwhile: memory must follow every commit."""
    return await asyncio.shield(asyncio.ensure_future(work))


def _claim(connection: sqlite3.Connection, user_id: int, claim: Claim, tweet_id: int) -> int:
    """The id of the tweet that the key made before; 0 if it is free, and taken now."""
    row = connection.execute(_KEY, (user_id, claim.key, claim.now_s)).fetchone()
    if row is not None:
        body_hash, earlier = row
        if body_hash != claim.body_hash:
            raise errors.already_exists("the idempotency key was used for another body", "IDEMPOTENCY_KEY_REUSED")
        return int(earlier)
    expired = connection.execute(_EXPIRED, (claim.now_s, SWEPT_KEYS)).fetchall()
    connection.executemany("DELETE FROM idempotency_keys WHERE user_id = ? AND key = ?", expired)
    connection.execute(
        "INSERT OR REPLACE INTO idempotency_keys (user_id, key, body_hash, tweet_id, expires_at_s) VALUES (?, ?, ?, ?, ?)",
        (user_id, claim.key, claim.body_hash, tweet_id, claim.now_s + IDEMPOTENCY_TTL_S),
    )
    return 0


def _state(connection: sqlite3.Connection, tweet_id: int) -> tuple[int, int, int]:
    row = connection.execute(_STATE, (tweet_id,)).fetchone()
    if row is None:
        raise errors.not_found("no such tweet")
    author_id, state, action_id = row
    return author_id, state, action_id


def _read_author_ids(
    connection: sqlite3.Connection, author_id: int, before_id: int, per_author: int, fill: int
) -> tuple[AuthorIds, Sequence[int]]:
    """The author's newest `fill` ids, to be kept, and those asked for."""
    rows = connection.execute(_AUTHOR_IDS, (author_id, sql.NO_BOUND, fill)).fetchall()
    newest = AuthorIds(array("q", [row[0] for row in reversed(rows)]), complete=len(rows) < fill)
    ids: Sequence[int] | None = newest.newest(before_id, per_author)
    if ids is None:
        ids = [row[0] for row in connection.execute(_AUTHOR_IDS, (author_id, before_id or sql.NO_BOUND, per_author))]
    return newest, ids


def _core(row: Sequence[Any]) -> tweet_pb2.TweetCore:
    state = row[8]
    return tweet_pb2.TweetCore(
        head=tweet_pb2.TweetHead(
            id=row[0],
            author_id=row[1],
            reply_to_author_id=row[2],
            reply_to_id=row[3],
            retweet_of_id=row[4],
            retweet_of_author_id=row[5],
            quote_of_id=row[6],
            quote_of_author_id=row[7],
            deleted=state != sql.STANDS,
        ),
        core=row[9] if state == sql.STANDS else b"",
        replies=row[10],
        retweets=row[11],
        quotes=row[12],
    )


def _frame(core: bytes) -> bytes:
    return framed(_FRAME_TAG, core)
