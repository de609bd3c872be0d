"""The Cassandra adapter: pairs by compare-and-set, lists by user beside them, and relation versions shared through Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import Change
from services.graph.store import Judged, Listing, Outcome, Position, TierHook
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.follow_counts import BUCKETS, Tallies
from services.graph.store.cassandra.intent_sweeper import Sweeper
from services.graph.store.cassandra.popular import Popular
from services.graph.store.cassandra.relationship import FOLLOWERS, FOLLOWING, Act, Pair, ends, pair_of
from services.graph.store.cassandra.tier_rows import TierRows
from services.graph.store.cassandra.user_index import People
from services.graph.store.cassandra.visibility_cache import TOP, Filters
from services.graph.tier_publisher import TierRule
from services.platform.backends.cluster import ClusterBackends
from services.platform.cassandra.keyspace import Keyspace, Row
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import EventLog, Record
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors

T = TypeVar("T")

# Some seconds' worth of changes; more would only hold calls past their deadlines.
MAX_WRITES = 2_000
# Followees of followees: at most 2,500 rows in 51 reads.
SUGGEST_FROM_FOLLOWEES = 50
SUGGEST_FROM_EACH = 50
# Of a list in buckets, at first: twice a bucket's even share, so that a second reading is the exception.
SHARE_FACTOR = 2
# Sources of edges looked into side by side by a scan, and their edges a read.
SCAN_SOURCES = 50
SCAN_ROWS = 5_000
_SCANNED = {
    pb.EDGE_KIND_FOLLOW: Listing.FOLLOWING,
    pb.EDGE_KIND_BLOCK: Listing.BLOCKS,
    pb.EDGE_KIND_MUTE: Listing.MUTES,
}
_THRESHOLD = "celebrity_threshold"
# Rows read and written in one go when somebody goes or comes back.
ABSENT_A_STEP = 500


class CassandraGraphStore:
    """GraphStore over Cassandra, for any number of processes at once. `workers` are to be run beside it.

    `mint` gives new ids, `clock` unix seconds.
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
        self._tallies = Tallies(keyspace, clock)
        self._stars = TierRows(keyspace, outbox, rule)
        self._people = People(keyspace)
        self._popular = Popular(keyspace, self._tallies, clock)
        self._ties = EdgeWriter(keyspace, shared, outbox, self._tallies, self._stars, mint, clock)
        self._filters = Filters(keyspace, shared, mint)
        self.workers = (outbox, Sweeper(keyspace, self._ties, clock))
        # Writes go on when their caller has gone: a change half done would be left to the sweeper.
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
        """Over the service's keyspace, brought up to date. Errors as `ClusterBackends.keyspace`."""
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
        await self._ties.close()

    def on_tier_change(self, hook: TierHook) -> None:
        self._stars.on_change(hook)

    async def follow(self, follower_id: int, followee_id: int, change: Change) -> Outcome:
        return await self._finished(self._ties.write(Act.FOLLOW, follower_id, followee_id, change))

    async def unfollow(self, follower_id: int, followee_id: int, change: Change) -> Outcome:
        return await self._finished(self._ties.write(Act.UNFOLLOW, follower_id, followee_id, change))

    async def block(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._finished(self._ties.write(Act.BLOCK, user_id, target_id, change))

    async def unblock(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._finished(self._ties.write(Act.UNBLOCK, user_id, target_id, change))

    async def mute(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._finished(self._ties.write(Act.MUTE, user_id, target_id, change))

    async def unmute(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._finished(self._ties.write(Act.UNMUTE, user_id, target_id, change))

    async def relationships(self, user_id: int, other_ids: Sequence[int]) -> list[pb.Relationship]:
        others = list(other_ids)
        keys = [ends(user_id, other) for other in others]
        rows = await self.keyspace.read_each(schema.PAIR, keys)
        found = [
            Pair.of(*key, row[0] if row else None).relationship(user_id) for key, row in zip(keys, rows, strict=True)
        ]
        for other, tie in zip(others, found, strict=True):
            tie.user_id = other
        return found

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        if listing is not Listing.FOLLOWERS:
            rows = await self.keyspace.read(schema.PAGES[listing], user_id, *(below or TOP), limit)
            return [Position(*row) for row in rows]
        buckets = await self._tallies.buckets(user_id)
        return await self._merged(user_id, buckets, below or TOP, limit)

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        edges: list[pb.Edge] = []
        sources = [after[0]] if after[0] else []
        async for user_id in self._people.after(after[0]):
            sources.append(user_id)
            if len(sources) >= SCAN_SOURCES:
                edges += await self._edges(kind, sources, after)
                sources.clear()
                if len(edges) >= limit:
                    return edges[:limit]
        edges += await self._edges(kind, sources, after)
        return edges[:limit]

    async def visibility(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        return await self._filters.answer(request)

    async def relation_version(self, user_id: int) -> int:
        return await self._filters.version(user_id)

    async def counts(self, user_ids: Sequence[int]) -> dict[int, pb.UserCounts]:
        found = await self._tallies.of(user_ids)
        return {
            user_id: pb.UserCounts(followers=followers.edges, following=following.edges)
            for user_id, (followers, following) in found.items()
            if followers.edges or following.edges
        }

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        """See the port. A follow that is made in the very moment that its follower goes may be missed: it is counted until then."""
        for listing, side in ((Listing.FOLLOWING, FOLLOWERS), (Listing.FOLLOWERS, FOLLOWING)):
            below: Position | None = None
            while page := await self.page(listing, user_id, below, ABSENT_A_STEP):
                await self._tallies.set_absent(user_id, side, [entry.user_id for entry in page], absent, at_us)
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
            ties = await self.relationships(user_id, best[start : start + limit])
            suggested += [t.user_id for t in ties if not (t.following or t.blocking or t.blocked_by or t.muting)]
            if len(suggested) >= limit:
                break
        return suggested[:limit]

    async def popular(self, limit: int) -> list[int]:
        return await self._popular.best(limit)

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: Change
    ) -> tuple[pb.Tier.ValueType, bool]:
        async def override() -> tuple[pb.Tier.ValueType, bool]:
            followers = await self._tallies.followers(user_id)
            return await self._stars.override(user_id, choice, followers.edges, change, change.event_ids[0])

        return await self._finished(override())

    async def tiers(self, since_ms: int) -> list[pb.TierEntry]:
        entries = await self._stars.all()
        return [entry for entry in entries if entry.tier == pb.TIER_CELEBRITY or entry.changed_at_ms >= since_ms]

    async def judge_afresh(self, after_id: int, limit: int, change: Change) -> Judged:
        people: list[int] = []
        async for user_id in self._people.after(after_id):
            people.append(user_id)
            if len(people) == limit:
                break
        counts = await self._tallies.of(people)
        followers = {user_id: counts[user_id][0].edges if user_id in counts else 0 for user_id in people}
        moved = 0
        for user_id, event_id in zip(await self._stars.misclassified(followers), change.event_ids, strict=False):
            moved += await self._stars.judge(user_id, followers[user_id], change, event_id, from_count_alone=True)
        return Judged(moved, people[-1] if people else 0)

    async def threshold(self) -> int:
        rows = await self.keyspace.read(schema.SETTING, _THRESHOLD)
        return int(rows[0][0]) if rows else 0

    async def set_threshold(self, threshold: int) -> None:
        await self.keyspace.write(schema.SET_SETTING, _THRESHOLD, threshold)

    async def _make_readable(self, records: Sequence[Record]) -> None:
        """Before events go out that were found in their rows alone: the rest of their batch may not have come to be."""
        for low, high in sorted({key for record in records if (key := pair_of(record))}):
            await self._ties.settled(low, high)

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the write in a task of its own, also to its end when the caller has gone. RESOURCE_EXHAUSTED when too many run."""
        if len(self._writes) >= MAX_WRITES:
            work.close()
            raise errors.resource_exhausted("too many writes are under way")
        task = asyncio.create_task(work)
        self._writes.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            # Whoever asked may have gone: then nobody else fetches it, and that is no news.
            task.exception()

    async def _merged(self, user_id: int, buckets: range, below: Position, limit: int) -> list[Position]:
        """One page over all buckets. What lies under a bucket's last entry read is not known yet, so nothing under the highest of
        those is given out: each round reads on where that was."""
        share = limit if len(buckets) == 1 else min(limit, SHARE_FACTOR * limit // BUCKETS + 1)
        found: list[Position] = []
        read_to = dict.fromkeys(buckets, below)
        while True:
            keys = [(user_id, bucket, *position, share) for bucket, position in read_to.items()]
            pages = await self.keyspace.read_each(schema.FOLLOWERS_PAGE, keys)
            for bucket, page in zip(tuple(read_to), pages, strict=True):
                found += [Position(*row) for row in page]
                if len(page) < share:
                    del read_to[bucket]
                else:
                    read_to[bucket] = Position(*page[-1])
            found.sort(reverse=True)
            frontier = max(read_to.values(), default=None)
            if frontier is None or (len(found) >= limit and found[limit - 1] >= frontier):
                return found[:limit]

    async def _edges(
        self, kind: pb.EdgeKind.ValueType, sources: Sequence[int], after: tuple[int, int]
    ) -> list[pb.Edge]:
        """The edges of these sources behind the pair `after`, by ascending source and target."""
        rows: dict[int, list[Row]] = {source: [] for source in sources}
        asked = [(source, *TOP, SCAN_ROWS) for source in sources]
        while asked:
            pages = await self.keyspace.read_each(schema.PAGES[_SCANNED[kind]], asked)
            read, asked = asked, []
            for (source, *_), page in zip(read, pages, strict=True):
                rows[source] += page
                if len(page) == SCAN_ROWS:
                    asked.append((source, *Position(*page[-1]), SCAN_ROWS))
        return [
            pb.Edge(from_id=source, to_id=target, created_at_ms=at_ms)
            for source, found in rows.items()
            for at_ms, target in sorted(found, key=lambda row: row[1])
            if (source, target) > after
        ]
