"""Writes edges: first the row of the two users by compare-and-set, then the rows and events that depend on it.

The writer whose compare-and-set is applied has made the change, so concurrent attempts cause one change and one event.
The follow-up writes (lists by user, dirty counts, outbox) are one unlogged batch. The batch need not be logged, because
it is idempotent and any process can repeat it: the writer stores an intent, which names the pair, before the change,
and marks the intent as finished after the batch. If a process dies in between, the next writer of the pair or the
intent sweeper runs the follow-up writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any
from weakref import WeakValueDictionary

import structlog
from cachetools import LRUCache

from services.graph.events import WriteStamp
from services.graph.store import Outcome
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.compare_and_set import MAX_ROUNDS, back_off, compare_and_set
from services.graph.store.cassandra.follow_counts import RECOUNT_EVERY_MS, FollowCounts
from services.graph.store.cassandra.intent_log import IntentLog
from services.graph.store.cassandra.relationship import (
    FOLLOWERS,
    Edge,
    EdgeAction,
    EdgeChange,
    Edges,
    Pair,
    Statement,
    pair_key,
)
from services.graph.store.cassandra.tier_rows import TierRows
from services.graph.store.cassandra.user_index import UserIndex
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.log_events import LogEvent
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, current_call

# Maximum number of background tasks per process. A task counts the followers of a user again, or writes relation
# versions that Redis did not accept. If the maximum is reached, no task is started: the next follow of the user counts
# the followers, and the intent sweeper writes the versions.
MAX_DEFERRED = 1_000
# Time in seconds between two attempts to write a relation version to Redis. Until it is written, processes that reach
# Redis may use cached edges from before the change.
PUBLISH_RETRY_S = 0.5
# A user is far from a tier change if at least FAR_FROM_CHANGE followers are missing to the next tier. The followers of
# such a user are not counted at each follow, because the count takes half of the time of a follow. They are counted
# again after FAR_FROM_CHANGE_S seconds, or when this process has written a quarter of the missing follows. If many
# processes together write all missing follows within that time, the tier changes late.
FAR_FROM_CHANGE = 500
FAR_FROM_CHANGE_S = 60.0
# Maximum number of users remembered as far from a tier change; beyond it, the least recently used one is dropped, and
# the next follow counts the user's followers. A user takes about 150 bytes: 15 MB in all.
MAX_FAR_FROM_CHANGE = 100_000

log = structlog.get_logger(__name__)


class EdgeWriter:
    """Writes all pairs of one keyspace. `mint` returns new ids, `clock` returns Unix seconds."""

    def __init__(
        self,
        keyspace: Keyspace,
        shared: SharedVersions,
        outbox: Outbox,
        follow_counts: FollowCounts,
        tier_rows: TierRows,
        mint: Callable[[], Awaitable[int]],
        clock: Callable[[], float],
    ) -> None:
        self._keyspace = keyspace
        self._shared = shared
        self._outbox = outbox
        self._follow_counts = follow_counts
        self._tier_rows = tier_rows
        self._user_index = UserIndex(keyspace)
        self._intents = IntentLog(keyspace, clock)
        self._mint = mint
        self._clock = clock
        # By pair of users: the lock for which this process's writers of that pair queue. Writers of one pair take
        # turns, because a writer whose conditional write (LWT) fails must repeat it.
        self._queues: WeakValueDictionary[tuple[int, int], asyncio.Lock] = WeakValueDictionary()
        self._deferred: dict[Hashable, asyncio.Task[None]] = {}
        # Ids of users whose last count of followers may lack a later follow; a deferred task counts them again.
        self._stale: set[int] = set()
        # By user id: the event loop time until which, and the number of further follows for which, the user's followers
        # are not counted.
        self._far_from_change: LRUCache[int, tuple[float, int]] = LRUCache(MAX_FAR_FROM_CHANGE)

    async def write(self, action: EdgeAction, source_id: int, target_id: int, change: WriteStamp) -> Outcome:
        """Applies the action of `source_id` on `target_id` and returns the outcome.

        Raises UNAVAILABLE if the outcome is unknown or too many concurrent writes conflict on the row, and
        PERMISSION_DENIED for a follow if either user blocks the other.
        """
        key = pair_key(source_id, target_id)
        queue = self._queues.setdefault(key, asyncio.Lock())
        async with queue:
            for attempt in range(MAX_ROUNDS):
                pair = await self.read_finished(*key)
                edge = Edge(change.at_ms, self._follow_counts.bucket(target_id, source_id))
                edges = pair.after(action, source_id, edge)
                if edges is None:
                    return Outcome(pair.relationship(source_id), False)
                changed = await self._apply(pair, edges, change)
                if changed:
                    return Outcome(changed.relationship(source_id), True)
                await back_off(attempt)
        raise errors.unavailable("too many concurrent changes of this relationship: retry later")

    async def read_finished(self, low: int, high: int) -> Pair:
        """Returns the row of two users (`low` < `high`). If the follow-up writes of the row's last change are pending,
        runs these writes first."""
        rows = await self._keyspace.read(schema.PAIR, low, high)
        pair = Pair.of(low, high, rows[0] if rows else None)
        if pair.change is not None and not await self._intents.is_finished(pair):
            await self.finish(pair, await self._mint())
        return pair

    async def finish(self, pair: Pair, version: int) -> None:
        """Runs the follow-up writes of the pair's last change, and writes `version` to Redis as the new relation
        version of the users whose edges the change touched.

        Idempotent: any process may call this method any number of times.
        """
        edge_change = EdgeChange.of(pair)
        changed_counts = edge_change.changed_counts()
        events = edge_change.events()
        # The list is copied before tier changes add events of their own, which are published separately.
        records = list(events.records)
        statements: list[Statement] = [
            *edge_change.rows(),
            *self._follow_counts.dirty_statements(changed_counts),
            *self._outbox.statements(records),
        ]
        await self._keyspace.unlogged_batch(statements)
        self._outbox.publish(records)
        # Relation versions and counts are written after the rows, because a reader that sees a new relation version
        # reads the rows again.
        unused_event_ids = iter(edge_change.change.event_ids[len(records) :])
        followees = {user_id: None for user_id, side, _ in changed_counts if side == FOLLOWERS}
        published, *_ = await asyncio.gather(
            self._shared.change_relations(edge_change.readers(), version),
            *(self._classify(user_id, edge_change.change, next(unused_event_ids)) for user_id in followees),
        )
        if published:
            await self._intents.finish(pair)
        else:
            self._defer((pair.low, pair.high), self._publish_versions(pair, edge_change.readers()))

    async def close(self) -> None:
        """Cancels the deferred tasks. Instead of them, the intent sweeper writes the relation versions to Redis, and
        the next follow of a user counts the user's followers."""
        tasks = tuple(self._deferred.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _apply(self, pair: Pair, edges: Edges, change: WriteStamp) -> Pair | None:
        """Applies the change to the pair's row, then runs the follow-up writes. Returns the new row, or None if another
        writer changed the row first. Raises UNAVAILABLE or DEADLINE_EXCEEDED if the outcome is unknown."""
        key = (pair.low, pair.high)
        changed = pair.changed(edges, change, int(self._clock() * 1_000_000))
        # The intent is stored before the change, so that the intent sweeper finds a change whose follow-up writes are
        # missing.
        index_statements = self._user_index.statements(key)
        await asyncio.gather(self._intents.begin(changed), self._keyspace.write_each(index_statements))
        self._user_index.add_written(key)

        async def is_applied() -> bool:
            rows = await self._keyspace.read_serial(schema.PAIR, *key)
            return bool(rows) and rows[0][0] == change.version

        if not await compare_and_set(
            self._keyspace, schema.SWAP_PAIR, (*changed.values(), *key, pair.change), is_applied
        ):
            return None
        # The change is committed, so the follow-up writes run even if the caller's deadline passes. Each statement
        # still has its own timeout.
        current_call.set(current_call.get()._replace(deadline=NEVER))
        await self.finish(changed, change.version)
        return changed

    async def _publish_versions(self, pair: Pair, readers: list[int]) -> None:
        """Retries until Redis accepts new relation versions of the readers, then finishes the intent."""
        while True:
            if await self._shared.change_relations(readers, await self._mint()):
                await self._intents.finish(pair)
                return
            await asyncio.sleep(PUBLISH_RETRY_S)

    async def _classify(self, user_id: int, change: WriteStamp, event_id: int) -> None:
        """Counts the user's followers and sets the user's tier (celebrity or not) from the count.

        Does nothing if the last count was at least FAR_FROM_CHANGE followers away from a tier change and is still
        recent. If the count is not fresh, starts a background task that counts again. The event of a tier change gets
        the id `event_id`.
        """
        until, room = self._far_from_change.get(user_id, (0.0, 0))
        now = asyncio.get_running_loop().time()
        if room > 0 and now < until:
            self._far_from_change[user_id] = (until, room - 1)
            return
        count = await self._follow_counts.followers(user_id)
        await self._tier_rows.classify(user_id, count.edges, change, event_id)
        if (followers_until_change := self._tier_rows.followers_until_change(count.edges)) >= FAR_FROM_CHANGE:
            self._far_from_change[user_id] = (now + FAR_FROM_CHANGE_S, followers_until_change // 4)
            return
        if not count.fresh:
            self._stale.add(user_id)
            if not self._defer(user_id, self._classify_after_recount(user_id)):
                self._stale.discard(user_id)

    async def _classify_after_recount(self, user_id: int) -> None:
        """Waits RECOUNT_EVERY_MS milliseconds, counts the user's followers again, and sets the user's tier (celebrity
        or not) from the new count.

        A count of more than a thousand rows runs at most once in RECOUNT_EVERY_MS milliseconds; in between `followers`
        returns the previous number, which lacks the newest follows. So the wait makes sure that the tier reflects the
        last follow of a burst too. Repeats the wait and the count while further follows of the user arrive.
        """
        while user_id in self._stale:
            await asyncio.sleep(RECOUNT_EVERY_MS / 1000)
            # The user is removed before the count, so that a follow that arrives during the count adds the user again.
            self._stale.discard(user_id)
            count = await self._follow_counts.followers(user_id)
            version, event_id = await self._mint(), await self._mint()
            change = WriteStamp(int(self._clock() * 1000), version, (event_id,))
            await self._tier_rows.classify(user_id, count.edges, change, event_id)

    def _defer(self, key: Hashable, work: Coroutine[Any, Any, None]) -> bool:
        """Runs `work` in a background task. Drops `work` instead if a task with the same key is running, or if
        MAX_DEFERRED tasks are. Returns whether a task with this key is running now."""
        if key in self._deferred or len(self._deferred) >= MAX_DEFERRED:
            work.close()
            return key in self._deferred

        async def run() -> None:
            # No caller waits for this task, so no caller's deadline may end it.
            current_call.set(current_call.get()._replace(deadline=NEVER))
            try:
                await work
            except errors.RoostError as error:
                log.warning(LogEvent.DEFERRED_WRITE_FAILED, key=key, error=str(error))
            finally:
                del self._deferred[key]

        self._deferred[key] = asyncio.create_task(run())
        return True
