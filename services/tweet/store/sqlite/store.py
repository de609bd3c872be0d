"""The embedded tweet store: one SQLite file with caches of the most frequent reads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.caching.read_tracking import ChangeTracker
from services.platform.events.log import Record
from services.platform.sqlite.absences import decide
from services.platform.sqlite.database import Database
from services.tweet.store import Claim
from services.tweet.store.cache import ShardedVersions
from services.tweet.store.sqlite import schema as sql
from services.tweet.store.sqlite import transactions
from services.tweet.store.sqlite.cached_reads import CachedReads, core_of, frame_core
from services.tweet.store.sqlite.link_queries import LinkLists

T = TypeVar("T")

# Rows that a purge deletes per transaction: a longer transaction would delay posts.
PURGE_STEP = 500
# Tweets recounted per transaction when their author becomes absent or active.
ABSENCE_STEP = 500
# Must be prime. Conversations that share a counter invalidate each other: at 1,000 replies/s a version still lasts a
# minute.
CONVERSATION_SHARDS = 65_521


class EmbeddedTweetStore(LinkLists):
    """A TweetStore on one SQLite file that this process owns.

    Caches change after the commit and before the writer gets its response, in a task that the caller's cancellation
    does not reach. A read caches what it loaded only if none of it was written meanwhile.
    """

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        # Keys are tweet ids and author ids.
        self._changes = ChangeTracker()
        self._cached = CachedReads(db, self._changes)
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
                self._cached.invalidate_counts(change.author_id, change.recounted_ids)
                self._cached.add(core)
                if core.head.reply_to_id:
                    self._versions.advance(conversation_id)
            return change.tweet_id

        return await _run_to_completion(write())

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
        self._cached.invalidate_counts(change.author_id, change.recounted_ids)
        self._cached.invalidate_tweets((change.tweet_id,))
        self._cached.invalidate_author(change.author_id)
        return change.changed

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
        self._cached.invalidate_tweets(changed)

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
            self._cached.invalidate_tweets((tweet_id,))
            if retweeter_id:
                self._cached.invalidate_author(retweeter_id)
        return len(gone)

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        frames = await self.batch_get_serialized(ids, viewer_id)
        return tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frames)

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        # A retweet changes the original's counts, so the versions of the tweets cover `retweeted` too.
        self._changes.read(ids)
        frames = await self._cached.frames(ids)
        if viewer_id and (retweeted := await self._cached.find_retweets(viewer_id, ids)):
            frames = [
                _with_retweeted(frame) if frame is not None and i in retweeted else frame
                for i, frame in zip(ids, frames, strict=True)
            ]
        return b"".join(filter(None, frames))

    async def find_retweets(self, user_id: int, original_ids: Sequence[int]) -> Mapping[int, int]:
        return await self._cached.find_retweets(user_id, original_ids)

    async def batch_list_author_ids(
        self, author_ids: Sequence[int], before_id: int, per_author: int
    ) -> tweet_service_pb2.BatchListAuthorTweetIdsResponse:
        self._changes.read(author_ids)
        lists = await self._cached.newest_ids(author_ids, before_id, per_author)
        response = tweet_service_pb2.BatchListAuthorTweetIdsResponse()
        add = response.authors.add
        for author_id, ids in lists.items():
            if ids:
                add(author_id=author_id, ids=ids)
        return response

    async def list_author(
        self, author_id: int, before_id: int, limit: int, *, replies: bool = True, retweets: bool = True
    ) -> Sequence[int]:
        if replies and retweets:
            return (await self._cached.newest_ids((author_id,), before_id, limit))[author_id]
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
        return [core_of(row) for row in rows]

    async def close(self) -> None:
        await self._db.close()


async def _run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even if the caller is cancelled: the caches must follow every commit."""
    return await asyncio.shield(asyncio.ensure_future(work))


def _with_retweeted(frame: bytes) -> bytes:
    """Returns the framed TweetCore with `retweeted` set."""
    core = tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frame).cores[0]
    core.retweeted = True
    return frame_core(core.SerializeToString())
