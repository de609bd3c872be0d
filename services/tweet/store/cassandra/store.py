"""The Cassandra tweet store: what writes decide and store, and what reads are made of."""

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
from services.tweet.store.cassandra.changes import Change, Changer
from services.tweet.store.cassandra.rows import Post
from services.tweet.store.cassandra.writes import Writer

T = TypeVar("T")

# Tweets read and written in one go when their author goes or comes back.
ABSENT_A_STEP = 500


class CassandraTweetStore(CachedQueries):
    """A TweetStore on a Cassandra cluster, which any number of processes share.

    Where the port says that nothing was stored, here it may be unknown: UNAVAILABLE with reason OUTCOME_UNKNOWN. A repeat with the same
    idempotency key finds out.
    """

    def __init__(self, writer: Writer, outbox: Outbox, shared: SharedVersions) -> None:
        super().__init__(writer.keyspace, shared)
        self.outbox = outbox
        self._writer = writer
        self._changer = Changer(writer)
        self._begun: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, cluster: ClusterBackends, log: EventLog, clock: Callable[[], float]) -> Self:
        """Opens the keyspace and brings it up to date. The outbox is a worker of the process."""
        keyspace = await cluster.keyspace(cql.KEYSPACE, cql.KEYSPACES[cql.KEYSPACE])
        outbox = Outbox(keyspace, log, clock)
        return cls(Writer(keyspace, outbox, cluster.shared), outbox, cluster.shared)

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        """See the port."""
        return await self._whole(self._writer.create(Post(core, conversation_id, event), claim))

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        """See the port."""
        return await self._whole(self._hide(self._changer.delete(tweet_id, at_s, event)))

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        """See the port."""
        return await self._whole(self._hide(self._changer.remove(tweet_id, action_id, at_s, event)))

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        """See the port."""
        return await self._whole(self._hide(self._changer.restore(tweet_id, action_id, event)))

    async def finish_side_effects(self, tweet_ids: Sequence[int]) -> None:
        """Does again what follows a commit, for tweets that were edited, hidden or restored: other processes are told, retweets count
        or not. UNAVAILABLE where that cannot be for now."""
        await self._whole(self._changer.follow_up(tweet_ids))

    async def _hide(self, work: Coroutine[Any, Any, Change]) -> bool:
        change = await work
        if change.tweet is not None:
            await self._changer.count_retweets(change.tweet.head.id)
        return change.changed

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        """See the port."""
        return (await self._whole(self._changer.revise(core, revision, event))).changed

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        """See the port."""
        return await self._whole(self._changer.list_revisions(tweet_id))

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        """See the port."""
        return await self._whole(self._writer.find_claimed(user_id, claim))

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        """See the port. A tweet that is posted in the very moment that its author goes may be missed: it is counted until then."""
        before_id = 0
        while ids := await self.list_author(author_id, before_id, ABSENT_A_STEP):
            await self._whole(self._changer.set_absent(ids, absent, at_us))
            before_id = ids[-1]

    async def purge(self, before_s: int, limit: int) -> int:
        """See the port."""
        return await self._changer.purge(before_s, limit)

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        """See the port."""
        found: list[tweet_pb2.TweetCore] = []
        # A listed id may have no tweet for a moment, while its batch is being written or it is being purged.
        while wanted := limit - len(found):
            ids = await self.ids_from(after_id, wanted)
            cores = await self.cores(ids)
            found += [cores[tweet_id] for tweet_id in ids if tweet_id in cores]
            if len(ids) < wanted:
                break
            after_id = ids[-1]
        return found

    async def thread_version(self, conversation_id: int) -> int:
        """See the port. Another one at each call while Redis does not answer."""
        version = await self._shared.thread_version(conversation_id)
        return self._writer.now_us(0) if version is None else version

    @property
    def keyspace(self) -> Keyspace:
        """Where the tweets are."""
        return self._keyspace

    async def settle(self) -> None:
        """Waits for the writes under way, also those whose callers are gone."""
        while self._begun:
            await asyncio.wait(self._begun)

    async def close(self) -> None:
        """See the port. The connections are the process's."""
        await self.settle()

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a write to its end, whatever becomes of its caller: in a context of its own, where only the store's own time-outs end it."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return await asyncio.shield(task)
