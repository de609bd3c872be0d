"""Stores tweets in SQLite, with caches of the most frequent reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.events.log import Record
from services.platform.sqlite.absences import decide
from services.platform.sqlite.database import Database
from services.platform.sqlite.versioned_writes import VersionedWrites
from services.tweet.store import Claim, TweetLists
from services.tweet.store.cache import ShardedVersions
from services.tweet.store.sqlite import schema as sql
from services.tweet.store.sqlite import transactions
from services.tweet.store.sqlite.cached_reads import CachedReads, core_of, frame_core

# Maximum number of tweets that `set_absent` excludes or includes per transaction. Posts wait while a transaction runs.
ABSENCE_STEP = 500


class SqliteTweetStore:
    """Implements TweetStore on SQLite.

    A write changes the caches after its commit and before its response, even if the call is cancelled meanwhile. A read
    caches a loaded value only if no row of the value was written meanwhile.
    """

    def __init__(
        self, db: Database, writes: VersionedWrites, cached: CachedReads, threads: ShardedVersions, lists: TweetLists
    ) -> None:
        """`threads` are the versions of conversations."""
        self._db = db
        self._writes = writes
        self._cached = cached
        self._threads = threads
        self._lists = lists

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        def apply(change: transactions.WriteResult) -> None:
            if change.changed:
                self._cached.invalidate_tweets(change.recounted_ids)
                self._cached.add(core)
                if core.head.reply_to_id:
                    self._threads.advance(conversation_id)

        write = partial(transactions.create, core=core, conversation_id=conversation_id, event=event, claim=claim)
        return (await self._writes.write(write, apply)).tweet_id

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        return await self._change(lambda c: transactions.hide(c, tweet_id, sql.DELETED, 0, at_s, event))

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        return await self._change(lambda c: transactions.hide(c, tweet_id, sql.REMOVED, action_id, at_s, event))

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        return await self._change(lambda c: transactions.restore(c, tweet_id, action_id, event))

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        return await self._change(lambda c: transactions.revise(c, core, revision, event))

    async def _change(self, transaction: Callable[[sqlite3.Connection], transactions.WriteResult]) -> bool:
        def apply(change: transactions.WriteResult) -> None:
            self._cached.invalidate_tweets((change.tweet_id, *change.recounted_ids))
            self._cached.invalidate_author(change.author_id)

        return (await self._writes.write(transaction, apply)).changed

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        return await self._db.read(lambda c: transactions.revisions(c, tweet_id))

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        return await self._db.read(lambda c: transactions.find_claimed(c, user_id, claim))

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        # The decision is stored before the loop: posts from now on read it, and the loop handles the earlier tweets.
        if not await self._db.write(lambda c: decide(c, author_id, absent, at_us)):
            return
        before_id = 0
        while ids := await self._lists.list_author(author_id, before_id, ABSENCE_STEP):
            recount = partial(transactions.set_absent, tweet_ids=ids, absent=absent)
            await self._writes.write(recount, lambda recounted: self._cached.invalidate_tweets(recounted.tweet_ids))
            before_id = ids[-1]

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        frames = await self.batch_get_serialized(ids, viewer_id)
        return tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frames)

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        frames = await self._cached.frames(ids)
        if viewer_id and (retweeted := await self._cached.find_retweets(viewer_id, ids)):
            frames = [
                _with_retweeted(frame) if frame is not None and i in retweeted else frame
                for i, frame in zip(ids, frames, strict=True)
            ]
        return b"".join(filter(None, frames))

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        rows = await self._db.read(lambda c: c.execute(sql.SCAN, (after_id, limit)).fetchall())
        return [core_of(row) for row in rows]


def _with_retweeted(frame: bytes) -> bytes:
    """Returns the frame of the same tweet with `retweeted` set to true."""
    core = tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frame).cores[0]
    core.retweeted = True
    return frame_core(core.SerializeToString())
