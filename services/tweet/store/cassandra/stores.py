"""Opens the tweet stores on Cassandra, with versions in Redis."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.platform.backends.cluster import ClusterBackends
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox, PublishAll
from services.platform.detached import DetachedWork
from services.platform.events.log import EventLog
from services.tweet.store import TweetStores
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.cores import TweetCores
from services.tweet.store.cassandra.links import CassandraLinkLists
from services.tweet.store.cassandra.lists import CassandraTweetLists
from services.tweet.store.cassandra.purge import Purger
from services.tweet.store.cassandra.tweets import CassandraTweetStore
from services.tweet.store.cassandra.writes import BatchWriter


@dataclass(frozen=True, slots=True)
class CassandraTweetStores(TweetStores):
    """The stores on one keyspace. The service must run `outbox` as a worker, and a consumer of its own events that
    calls `finish_side_effects`.

    `writes` are the writes in progress, for which `close` waits. `close` does not close connections: they belong to the
    process's backends.
    """

    keyspace: Keyspace
    outbox: Outbox
    writes: DetachedWork
    finish_side_effects: Callable[[Sequence[int]], Coroutine[Any, Any, None]]


async def open_stores(cluster: ClusterBackends, log: EventLog, clock: Callable[[], float]) -> CassandraTweetStores:
    """Opens the keyspace and applies its migrations. `clock` returns Unix seconds. Raises UNAVAILABLE if Cassandra does
    not answer, and FAILED_PRECONDITION if a newer release migrated the keyspace or migrations are missing and
    `migrate_at_start` is off."""
    keyspace = await cluster.keyspace(cql.KEYSPACE, cql.KEYSPACES[cql.KEYSPACE])
    # PublishAll: a tweet and its event are written in one logged batch, so every event in the outbox belongs to a
    # committed write.
    outbox = Outbox(keyspace, log, clock, PublishAll())
    writer = BatchWriter(keyspace, outbox, cluster.shared)
    writes = DetachedWork()
    lists = CassandraTweetLists(keyspace, cluster.shared)
    links = CassandraLinkLists(keyspace, cluster.shared, partial(writer.now_us, 0))
    tweets = CassandraTweetStore(writer, writes, TweetCores(keyspace, cluster.shared, links), lists)
    return CassandraTweetStores(
        tweets=tweets,
        lists=lists,
        links=links,
        purge=Purger(writer),
        close=writes.wait,
        keyspace=keyspace,
        outbox=outbox,
        writes=writes,
        finish_side_effects=tweets.finish_side_effects,
    )
