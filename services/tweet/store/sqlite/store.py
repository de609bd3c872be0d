"""The embedded tweet store: one SQLite file behind write-through caches of the most frequent reads."""

from __future__ import annotations

import asyncio
import sqlite3
from array import array
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.caching.read_tracking import ChangeTracker
from services.platform.events.log import Record
from services.platform.sqlite.absences import decide
from services.platform.sqlite.database import Database
from services.shared.hydration.fragments import framed
from services.tweet.store import Claim
from services.tweet.store.cache import AuthorIds, GenerationalCache, OwnRetweets, ShardedVersions
from services.tweet.store.sqlite import schema as sql
from services.tweet.store.sqlite import transactions
from services.tweet.store.sqlite.link_queries import LinkLists

T = TypeVar("T")

# About 0.4 KB each: at most some 50 MB.
CACHED_CORES = 65_536
# Mostly a few ids, at most 8 KB each.
CACHED_AUTHORS = 16_384
# Ids loaded for an author who is not cached: a few pages.
FILL_IDS = 128
# Rows that a purge deletes per transaction: a longer transaction would delay posts.
PURGE_STEP = 500
# Tweets recounted per transaction when their author becomes absent or active.
ABSENCE_STEP = 500
# Retweets cached per user; those of more active users are read from the database.
CACHED_RETWEETS = 1_000
# Mostly empty, at most 0.1 MB each.
CACHED_RETWEETERS = 16_384
# Must be prime. Conversations that share a counter invalidate each other: at 1,000 replies/s a version still lasts a
# minute.
CONVERSATION_SHARDS = 65_521

_FRAME_TAG = b"\x0a"


class EmbeddedTweetStore(LinkLists):
    """A TweetStore on one SQLite file that this process owns.

    Caches change after the commit and before the writer gets its response, in a task that the caller's cancellation
    does not reach. A read caches what it loaded only if none of it was written meanwhile.
    """

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        # Serialized TweetCore messages, each with the field tag of BatchGetTweetCoresResponse in front.
        self._cores: GenerationalCache[int, bytes] = GenerationalCache(CACHED_CORES)
        self._authors: GenerationalCache[int, AuthorIds] = GenerationalCache(CACHED_AUTHORS)
        self._retweets: GenerationalCache[int, OwnRetweets] = GenerationalCache(CACHED_RETWEETERS)
        # Keys are tweet ids and author ids.
        self._revisions = ChangeTracker()
        # By conversation id.
        self._versions = ShardedVersions(CONVERSATION_SHARDS)
        # True at the start, because a process that died between a purge and the wipe left the texts in the log.
        self._log_to_wipe = True

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Opens or creates the file. Raises FAILED_PRECONDITION if another process has it open."""
        return cls(await Database.open(path, sql.MIGRATIONS))

    @property
    def db(self) -> Database:
        """The database, for the relay of its outbox."""
        return self._db

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        async def write() -> int:
            change = await self._db.write(lambda c: transactions.create(c, core, conversation_id, event, claim))
            if change.changed:
                self._invalidate_counts(change)
                self._cache_new(core)
                if core.head.reply_to_id:
                    self._versions.advance(conversation_id)
            return change.tweet_id

        return await _run_to_completion(write())

    def _cache_new(self, core: tweet_pb2.TweetCore) -> None:
        head = core.head
        self._cores.put(head.id, _frame(core.SerializeToString()))
        if (known := self._authors.get(head.author_id)) is not None:
            known.add(head.id)
        if head.retweet_of_id and (retweets := self._retweets.get(head.author_id)) is not None:
            retweets.ids[head.retweet_of_id] = head.id
            if len(retweets.ids) > 2 * CACHED_RETWEETS:
                self._retweets.pop(head.author_id)

    def _invalidate_counts(self, change: transactions.WriteResult) -> None:
        """Invalidates the tweets whose counts changed, and the author, for caches and reads in progress."""
        self._revisions.changed((change.author_id, *change.recounted_ids))
        for tweet_id in change.recounted_ids:
            self._cores.pop(tweet_id)

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        return await _run_to_completion(
            self._change(lambda c: transactions.hide(c, tweet_id, sql.DELETED, 0, at_s, event))
        )

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        return await _run_to_completion(
            self._change(lambda c: transactions.hide(c, tweet_id, sql.REMOVED, action_id, at_s, event))
        )

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        return await _run_to_completion(self._change(lambda c: transactions.restore(c, tweet_id, action_id, event)))

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        return await _run_to_completion(self._change(lambda c: transactions.revise(c, core, revision, event)))

    async def _change(self, transaction: Callable[[sqlite3.Connection], transactions.WriteResult]) -> bool:
        change = await self._db.write(transaction)
        self._invalidate_counts(change)
        self._revisions.changed((change.tweet_id,))
        self._cores.pop(change.tweet_id)
        self._invalidate_author(change.author_id)
        return change.changed

    def _invalidate_author(self, author_id: int) -> None:
        self._revisions.changed((author_id,))
        self._authors.pop(author_id)
        self._retweets.pop(author_id)

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        return await self._db.read(lambda c: transactions.revisions(c, tweet_id))

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        return await self._db.read(lambda c: transactions.find_claimed(c, user_id, claim))

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        # Stored first: posts from now on check it, and the loop below recounts the earlier ones.
        if not await self._db.write(lambda c: decide(c, author_id, absent, at_us)):
            return
        before_id = 0
        while ids := await self.list_author(author_id, before_id, ABSENCE_STEP):
            await _run_to_completion(self._uncount(ids, absent))
            before_id = ids[-1]

    async def _uncount(self, ids: Sequence[int], absent: bool) -> None:
        changed = await self._db.write(lambda c: transactions.set_absent(c, ids, absent))
        self._revisions.changed(changed)
        for tweet_id in changed:
            self._cores.pop(tweet_id)

    async def purge(self, before_s: int, limit: int) -> int:
        purged = 0
        while purged < limit:
            step = min(PURGE_STEP, limit - purged)
            found = await _run_to_completion(self._purge_step(before_s, step))
            purged += found
            if found < step:
                break
        self._log_to_wipe |= purged > 0
        if self._log_to_wipe:
            # Otherwise the purged texts would stay in the write-ahead log until it is overwritten.
            await self._db.wipe_log()
            self._log_to_wipe = False
        return purged

    async def _purge_step(self, before_s: int, step: int) -> int:
        gone = await self._db.write(lambda c: transactions.purge(c, before_s, step))
        for tweet_id, retweeter_id in gone:
            self._revisions.changed((tweet_id,))
            self._cores.pop(tweet_id)
            if retweeter_id:
                self._invalidate_author(retweeter_id)
        return len(gone)

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        frames = await self.batch_get_serialized(ids, viewer_id)
        return tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frames)

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        # A retweet changes the original's counts, so the versions of the tweets cover `retweeted` too.
        self._revisions.read(ids)
        get = self._cores.get
        frames = [get(tweet_id) for tweet_id in ids]
        if None in frames:
            loaded = await self._load_cores([i for i, frame in zip(ids, frames, strict=True) if frame is None])
            frames = [frame or loaded.get(i) for i, frame in zip(ids, frames, strict=True)]
        if viewer_id and (retweeted := await self.find_retweets(viewer_id, ids)):
            frames = [
                _with_retweeted(frame) if frame is not None and i in retweeted else frame
                for i, frame in zip(ids, frames, strict=True)
            ]
        return b"".join(filter(None, frames))

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        known = self._retweets.get(user_id)
        if known is None:
            known = await self._load_retweets(user_id)
        ids = known.ids
        found = {i: ids[i] for i in original_ids if i in ids} if ids else {}
        if not known.complete and len(found) < len(original_ids):
            wanted = orjson.dumps([i for i in original_ids if i not in found]).decode()
            found.update(await self._db.read(lambda c: c.execute(sql.SOME_OWN_RETWEETS, (user_id, wanted)).fetchall()))
        return found

    async def _load_retweets(self, user_id: int) -> OwnRetweets:
        since = self._revisions.now
        values = (user_id, CACHED_RETWEETS + 1)
        rows = await self._db.read(lambda c: c.execute(sql.OWN_RETWEETS, values).fetchall())
        loaded = OwnRetweets(dict(rows), complete=len(rows) <= CACHED_RETWEETS)
        if self._revisions.unchanged((user_id,), since):
            self._retweets.put(user_id, loaded)
        return loaded

    async def _load_cores(self, ids: Sequence[int]) -> dict[int, bytes]:
        since = self._revisions.now
        rows = await self._db.read(lambda c: c.execute(sql.BY_IDS, (orjson.dumps(ids).decode(),)).fetchall())
        loaded = {row[0]: _frame(_core(row).SerializeToString()) for row in rows}
        for tweet_id in ids:
            if tweet_id in loaded and self._revisions.unchanged((tweet_id,), since):
                self._cores.put(tweet_id, loaded[tweet_id])
        return loaded

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        self._revisions.read(author_ids)
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
        since = self._revisions.now
        fill = max(per_author, FILL_IDS)

        def transaction(connection: sqlite3.Connection) -> list[tuple[AuthorIds, Sequence[int]]]:
            return [_read_author_ids(connection, author_id, before_id, per_author, fill) for author_id in author_ids]

        found: dict[int, Sequence[int]] = {}
        loaded = await self._db.read(transaction)
        for author_id, (newest, ids) in zip(author_ids, loaded, strict=True):
            found[author_id] = ids
            if self._revisions.unchanged((author_id,), since):
                self._authors.put(author_id, newest)
        return found

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        if replies and retweets:
            known = self._authors.get(author_id)
            kept = known.newest(before_id, limit) if known is not None else None
            return (await self._load_author_ids([author_id], before_id, limit))[author_id] if kept is None else kept
        values = (author_id, before_id or sql.NO_BOUND, replies, retweets, limit)
        return await self._db.read(lambda c: [row[0] for row in c.execute(sql.AUTHOR_IDS_NARROWED, values)])

    async def list_recent(self, before_id: int, limit: int) -> Sequence[int]:
        values = (before_id or sql.NO_BOUND, limit)
        return await self._db.read(lambda c: [row[0] for row in c.execute(sql.RECENT_IDS, values)])

    async def thread_version(self, conversation_id: int) -> int:
        return self._versions.now(conversation_id)

    async def batch_count(self, author_ids: Sequence[int]) -> Mapping[int, int]:
        wanted = orjson.dumps(list(author_ids)).decode()
        return await self._db.read(lambda c: dict(c.execute(sql.COUNTS, (wanted,)).fetchall()))

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        rows = await self._db.read(lambda c: c.execute(sql.SCAN, (after_id, limit)).fetchall())
        return [_core(row) for row in rows]

    async def close(self) -> None:
        await self._db.close()


async def _run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even if the caller is cancelled: the caches must follow every commit."""
    return await asyncio.shield(asyncio.ensure_future(work))


def _read_author_ids(
    connection: sqlite3.Connection, author_id: int, before_id: int, per_author: int, fill: int
) -> tuple[AuthorIds, Sequence[int]]:
    """Returns the author's newest `fill` ids for the cache, and the `per_author` newest below `before_id`."""
    rows = connection.execute(sql.AUTHOR_IDS, (author_id, sql.NO_BOUND, fill)).fetchall()
    newest = AuthorIds(array("q", [row[0] for row in reversed(rows)]), complete=len(rows) < fill)
    ids: Sequence[int] | None = newest.newest(before_id, per_author)
    if ids is None:
        ids = [row[0] for row in connection.execute(sql.AUTHOR_IDS, (author_id, before_id or sql.NO_BOUND, per_author))]
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
            deleted=state != sql.LIVE,
        ),
        core=row[9] if state == sql.LIVE else b"",
        replies=row[10],
        retweets=row[11],
        quotes=row[12],
    )


def _frame(core: bytes) -> bytes:
    return framed(_FRAME_TAG, core)


def _with_retweeted(frame: bytes) -> bytes:
    """Returns the framed TweetCore with `retweeted` set."""
    core = tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frame).cores[0]
    core.retweeted = True
    return _frame(core.SerializeToString())
