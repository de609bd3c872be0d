"""Opens graph's stores on Cassandra: pairs by compare-and-set, copies by user, and relation versions shared through
Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.graph.store import GraphStores
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.counts import CassandraCountStore
from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.edges import CassandraEdgeStore
from services.graph.store.cassandra.finished_pairs import FinishedPairs
from services.graph.store.cassandra.follow_counts import FollowCounts
from services.graph.store.cassandra.intent_sweeper import IntentSweeper
from services.graph.store.cassandra.lists import CassandraEdgeLists
from services.graph.store.cassandra.popular_users import PopularUsers
from services.graph.store.cassandra.tier_rows import TierRows
from services.graph.store.cassandra.tiers import CassandraTierStore
from services.graph.store.cassandra.user_index import UserIndex
from services.graph.store.cassandra.visibility_cache import CassandraVisibilityCache
from services.graph.tier_publisher import TierRule
from services.platform.backends.cluster import ClusterBackends
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.detached import DetachedWork
from services.platform.events.log import EventLog
from services.platform.service import Worker

# Maximum number of concurrent writes of one process; a further write is rejected with RESOURCE_EXHAUSTED. This many
# writes take some seconds, so more would only wait past their deadlines.
MAX_WRITES = 2_000


@dataclass(frozen=True, slots=True)
class CassandraGraphStores(GraphStores):
    """The stores on one keyspace, for any number of processes at once. The process must run `workers` beside them."""

    keyspace: Keyspace
    workers: Sequence[Worker]


async def open_stores(
    cluster: ClusterBackends,
    log: EventLog,
    rule: TierRule,
    mint: Callable[[], Awaitable[int]],
    clock: Callable[[], float],
) -> CassandraGraphStores:
    """Opens the service's keyspace and applies missing migrations. `mint` returns new ids, `clock` Unix seconds. Raises
    UNAVAILABLE if Cassandra does not answer, and FAILED_PRECONDITION if a newer release migrated the keyspace or
    migrations are missing and `migrate_at_start` is off."""
    keyspace = await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE])
    outbox = Outbox(keyspace, log, clock, FinishedPairs(lambda: edge_writer))
    follow_counts = FollowCounts(keyspace, clock)
    tier_rows = TierRows(keyspace, outbox, rule)
    user_index = UserIndex(keyspace)
    edge_writer = EdgeWriter(keyspace, cluster.shared, outbox, follow_counts, tier_rows, mint, clock)
    # Writes keep the caller's context, and so the caller's deadline: a write that waits past the deadline is not
    # started.
    writes = DetachedWork(MAX_WRITES, keep_context=True)
    edges = CassandraEdgeStore(keyspace, edge_writer, writes)
    popular = PopularUsers(keyspace, follow_counts, clock)
    lists = CassandraEdgeLists(keyspace, follow_counts, user_index, edges, popular)

    async def close() -> None:
        await writes.wait()
        await edge_writer.close()

    return CassandraGraphStores(
        edges=edges,
        lists=lists,
        visibility=CassandraVisibilityCache(keyspace, cluster.shared, mint),
        counts=CassandraCountStore(follow_counts, lists),
        tiers=CassandraTierStore(keyspace, tier_rows, follow_counts, user_index, writes),
        close=close,
        keyspace=keyspace,
        workers=(outbox, IntentSweeper(keyspace, edge_writer, clock)),
    )
