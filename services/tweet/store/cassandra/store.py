"""The Cassandra tweet store: combines the writes and the cached reads into a TweetStore."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.backends.cluster import ClusterBackends
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import EventLog, Record
from services.platform.redis.shared_versions import SharedVersions
from services.tweet.store import Claim
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.cached_queries import CachedQueries
from services.tweet.store.cassandra.changes import ChangeResult, TweetUpdater
from services.tweet.store.cassandra.purge import Purger
from services.tweet.store.cassandra.rows import NewTweet
from services.tweet.store.cassandra.writes import BatchWriter

T = TypeVar("T")

# Tweets recounted per step when their author becomes absent or active.
ABSENCE_STEP = 500


class CassandraTweetStore(CachedQueries):
    """A TweetStore on a Cassandra cluster, shared by any number of processes.

    After a failed write it may be unknown whether it was stored, unlike in the port: then methods raise UNAVAILABLE with
    reason OUTCOME_UNKNOWN, and a repeat with the same idempotency key returns the result.
    """

    def __init__(self, writer: BatchWriter, outbox: Outbox, shared: SharedVersions) -> None:
        super().__init__(writer.keyspace, shared)
        self.outbox = outbox
        self._writer = writer
        self._updater = TweetUpdater(writer)
        self._purger = Purger(writer)
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, cluster: ClusterBackends, log: EventLog, clock: Callable[[], float]) -> Self:
        """Opens the keyspace and applies its migrations. The caller runs `outbox` as a worker."""
        keyspace = await cluster.keyspace(cql.KEYSPACE, cql.KEYSPACES[cql.KEYSPACE])
        outbox = Outbox(keyspace, log, clock)
        return cls(BatchWriter(keyspace, outbox, cluster.shared), outbox, cluster.shared)

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        return await self._run_detached(self._writer.create(NewTweet(core, conversation_id, event), claim))

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        return await self._run_detached(self._hide(self._updater.delete(tweet_id, at_s, event)))

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        return await self._run_detached(self._hide(self._updater.remove(tweet_id, action_id, at_s, event)))

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        return await self._run_detached(self._hide(self._updater.restore(tweet_id, action_id, event)))

    async def finish_side_effects(self, tweet_ids: Sequence[int]) -> None:
        """Repeats what follows a commit, for tweets that were edited, hidden or restored: publishes their versions and
        updates the counts of their retweeters. Raises UNAVAILABLE if Redis does not take the versions."""
        await self._run_detached(self._updater.repeat_side_effects(tweet_ids))

    async def _hide(self, work: Coroutine[Any, Any, ChangeResult]) -> bool:
        change = await work
        if change.tweet is not None:
            await self._updater.update_retweet_counts(change.tweet.head.id)
        return change.changed

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        return (await self._run_detached(self._updater.revise(core, revision, event))).changed

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        return await self._run_detached(self._updater.list_revisions(tweet_id))

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        return await self._run_detached(self._writer.find_claimed(user_id, claim))

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        """Implements `TweetStore.set_absent`. A tweet that its author posts at the same moment may be missed: it stays
        counted until the next decision."""
        before_id = 0
        while ids := await self.list_author(author_id, before_id, ABSENCE_STEP):
            await self._run_detached(self._updater.set_absent(ids, absent, at_us))
            before_id = ids[-1]

    async def purge(self, before_s: int, limit: int) -> int:
        return await self._purger.purge(before_s, limit)

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        found: list[tweet_pb2.TweetCore] = []
        # A listed id may have no tweet for a moment, while its batch is written or its purge is in progress.
        while wanted := limit - len(found):
            ids = await self.ids_from(after_id, wanted)
            cores = await self.cores(ids)
            found += [cores[tweet_id] for tweet_id in ids if tweet_id in cores]
            if len(ids) < wanted:
                break
            after_id = ids[-1]
        return found

    async def thread_version(self, conversation_id: int) -> int:
        """Implements `TweetStore.thread_version`. While Redis is unavailable, each call returns a different version."""
        version = await self._shared.thread_version(conversation_id)
        return self._writer.now_us(0) if version is None else version

    @property
    def keyspace(self) -> Keyspace:
        """The keyspace of the tweets."""
        return self._keyspace

    async def wait_for_writes(self) -> None:
        """Waits for all writes in progress, including those whose callers were cancelled."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Waits for the writes in progress. The connections belong to the process and stay open."""
        await self.wait_for_writes()

    async def _run_detached(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a write to its end even if the caller is cancelled, in a context without the caller's deadline: only the
        store's own time-outs end it."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)
