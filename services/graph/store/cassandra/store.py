"""The Cassandra adapter of graph's store: pairs by compare-and-set, copies by user, and relation versions shared
through Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import WriteStamp
from services.graph.store import Listing, Outcome, Position, ReclassifiedBatch, TierHook
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.edge_reader import EdgeReader
from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.follow_counts import FollowCounts
from services.graph.store.cassandra.intent_sweeper import IntentSweeper
from services.graph.store.cassandra.popular_users import PopularUsers
from services.graph.store.cassandra.relationship import FOLLOWERS, FOLLOWING, EdgeAction, Pair, pair_key, pair_key_of
from services.graph.store.cassandra.tier_rows import TierRows
from services.graph.store.cassandra.user_index import UserIndex
from services.graph.store.cassandra.visibility_cache import TOP, CassandraVisibilityCache
from services.graph.tier_publisher import TierRule
from services.platform.backends.cluster import ClusterBackends
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import EventLog, Record
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors

T = TypeVar("T")

# Writes in progress: some seconds' worth. More would only wait past their deadlines.
MAX_WRITES = 2_000
# Suggestions read at most 2,500 rows in 51 reads.
SUGGEST_FROM_FOLLOWEES = 50
SUGGEST_FROM_EACH = 50
_THRESHOLD = "celebrity_threshold"
# Edges processed per step when a user becomes inactive or active again.
ABSENCE_STEP = 500


class CassandraGraphStore:
    """GraphStore on Cassandra, for any number of processes at once. The process must run `workers` beside it.

    `mint` returns new ids, `clock` returns Unix seconds.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        shared: SharedVersions,
        log: EventLog,
        rule: TierRule,
        mint: Callable[[], Awaitable[int]],
        clock: Callable[[], float],
    ) -> None:
        self.keyspace = keyspace
        outbox = Outbox(keyspace, log, clock, self._make_readable)
        self._follow_counts = FollowCounts(keyspace, clock)
        self._tier_rows = TierRows(keyspace, outbox, rule)
        self._user_index = UserIndex(keyspace)
        self._edge_reader = EdgeReader(keyspace, self._follow_counts, self._user_index)
        self._popular = PopularUsers(keyspace, self._follow_counts, clock)
        self._edge_writer = EdgeWriter(keyspace, shared, outbox, self._follow_counts, self._tier_rows, mint, clock)
        self._visibility_cache = CassandraVisibilityCache(keyspace, shared, mint)
        self.workers = (outbox, IntentSweeper(keyspace, self._edge_writer, clock))
        # Writes continue after their caller has gone: a half-finished change would be left to the intent sweeper.
        self._writes: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(
        cls,
        cluster: ClusterBackends,
        log: EventLog,
        rule: TierRule,
        mint: Callable[[], Awaitable[int]],
        clock: Callable[[], float],
    ) -> Self:
        """Opens the store on the service's keyspace after applying pending migrations. Raises UNAVAILABLE if Cassandra
        cannot be reached."""
        return cls(
            await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE]),
            cluster.shared,
            log,
            rule,
            mint,
            clock,
        )

    async def close(self) -> None:
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._edge_writer.close()

    def on_tier_change(self, hook: TierHook) -> None:
        self._tier_rows.on_change(hook)

    async def follow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._run_to_completion(
            self._edge_writer.write(EdgeAction.FOLLOW, follower_id, followee_id, change)
        )

    async def unfollow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._run_to_completion(
            self._edge_writer.write(EdgeAction.UNFOLLOW, follower_id, followee_id, change)
        )

    async def block(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._run_to_completion(self._edge_writer.write(EdgeAction.BLOCK, user_id, target_id, change))

    async def unblock(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._run_to_completion(self._edge_writer.write(EdgeAction.UNBLOCK, user_id, target_id, change))

    async def mute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._run_to_completion(self._edge_writer.write(EdgeAction.MUTE, user_id, target_id, change))

    async def unmute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._run_to_completion(self._edge_writer.write(EdgeAction.UNMUTE, user_id, target_id, change))

    async def relationships(self, user_id: int, other_ids: Sequence[int]) -> list[pb.Relationship]:
        others = list(other_ids)
        keys = [pair_key(user_id, other) for other in others]
        rows = await self.keyspace.read_each(schema.PAIR, keys)
        found = [
            Pair.of(*key, row[0] if row else None).relationship(user_id) for key, row in zip(keys, rows, strict=True)
        ]
        for other, relationship in zip(others, found, strict=True):
            relationship.user_id = other
        return found

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        return await self._edge_reader.page(listing, user_id, below, limit)

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        return await self._edge_reader.scan(kind, after, limit)

    async def visibility(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        return await self._visibility_cache.answer(request)

    async def relation_version(self, user_id: int) -> int:
        return await self._visibility_cache.version(user_id)

    async def counts(self, user_ids: Sequence[int]) -> dict[int, pb.UserCounts]:
        found = await self._follow_counts.of(user_ids)
        return {
            user_id: pb.UserCounts(followers=followers.edges, following=following.edges)
            for user_id, (followers, following) in found.items()
            if followers.edges or following.edges
        }

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """Implements the port. A follow made in the moment in which its follower becomes inactive may be missed and
        stay counted."""
        for listing, side in ((Listing.FOLLOWING, FOLLOWERS), (Listing.FOLLOWERS, FOLLOWING)):
            below: Position | None = None
            while page := await self.page(listing, user_id, below, ABSENCE_STEP):
                await self._follow_counts.set_absent(user_id, side, [entry.user_id for entry in page], absent, at_us)
                below = page[-1]

    async def suggestions(self, user_id: int, limit: int) -> list[int]:
        newest = schema.PAGES[Listing.FOLLOWING]
        followees = [row[1] for row in await self.keyspace.read(newest, user_id, *TOP, SUGGEST_FROM_FOLLOWEES)]
        keys = [(followee, *TOP, SUGGEST_FROM_EACH) for followee in followees]
        found: Counter[int] = Counter()
        for rows in await self.keyspace.read_each(newest, keys):
            found.update(other_id for _, other_id in rows)
        found.pop(user_id, None)
        best = [candidate for candidate, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
        suggested: list[int] = []
        for start in range(0, len(best), limit):
            relationships = await self.relationships(user_id, best[start : start + limit])
            suggested += [
                t.user_id for t in relationships if not (t.following or t.blocking or t.blocked_by or t.muting)
            ]
            if len(suggested) >= limit:
                break
        return suggested[:limit]

    async def popular(self, limit: int) -> list[int]:
        return await self._popular.best(limit)

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: WriteStamp
    ) -> tuple[pb.Tier.ValueType, bool]:
        async def override() -> tuple[pb.Tier.ValueType, bool]:
            followers = await self._follow_counts.followers(user_id)
            return await self._tier_rows.override(user_id, choice, followers.edges, change, change.event_ids[0])

        return await self._run_to_completion(override())

    async def tiers(self, since_ms: int) -> list[pb.TierEntry]:
        entries = await self._tier_rows.all()
        return [entry for entry in entries if entry.tier == pb.TIER_CELEBRITY or entry.changed_at_ms >= since_ms]

    async def reclassify_batch(self, after_id: int, limit: int, change: WriteStamp) -> ReclassifiedBatch:
        people: list[int] = []
        async for user_id in self._user_index.ids_above(after_id):
            people.append(user_id)
            if len(people) == limit:
                break
        counts = await self._follow_counts.of(people)
        followers = {user_id: counts[user_id][0].edges if user_id in counts else 0 for user_id in people}
        moved = 0
        for user_id, event_id in zip(await self._tier_rows.misclassified(followers), change.event_ids, strict=False):
            moved += await self._tier_rows.classify(
                user_id, followers[user_id], change, event_id, from_count_alone=True
            )
        return ReclassifiedBatch(moved, people[-1] if people else 0)

    async def threshold(self) -> int:
        rows = await self.keyspace.read(schema.SETTING, _THRESHOLD)
        return int(rows[0][0]) if rows else 0

    async def set_threshold(self, threshold: int) -> None:
        await self.keyspace.write(schema.SET_SETTING, _THRESHOLD, threshold)

    async def _make_readable(self, records: Sequence[Record]) -> None:
        """Finishes the pairs of events that were found only in the outbox, before the events are published: the other
        statements of their batch may not have been applied."""
        for low, high in sorted({key for record in records if (key := pair_key_of(record))}):
            await self._edge_writer.read_finished(low, high)

    async def _run_to_completion(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the write in its own task, which continues if the caller is cancelled. Raises RESOURCE_EXHAUSTED if
        MAX_WRITES are running."""
        if len(self._writes) >= MAX_WRITES:
            work.close()
            raise errors.resource_exhausted("too many writes are in progress; retry")
        task = asyncio.create_task(work)
        self._writes.add(task)
        task.add_done_callback(self._discard)
        return await asyncio.shield(task)

    def _discard(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            # Retrieves the exception: if the caller is gone, asyncio would otherwise log it as never retrieved.
            task.exception()
