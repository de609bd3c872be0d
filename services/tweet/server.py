"""Composition root of the tweet service: the only module that names an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.platform.backends import cluster_of, shared_of
from services.platform.periodic import always
from services.platform.service import Kit, Service, Worker
from services.platform.sqlite.outbox import Relay
from services.shared.hydration.hydrator import Hydrator
from services.shared.hydration.user_pages import PeopleLists
from services.tweet.consumer import GROUP, TOPICS, settling
from services.tweet.pages import Lists
from services.tweet.purge import PURGE, purge_job
from services.tweet.reply_service import ReplyServicer
from services.tweet.service import TweetServicer
from services.tweet.store import TweetStore
from services.tweet.store.sqlite.store import EmbeddedTweetStore
from services.tweet.threads import Threads
from services.tweet.writer import Writes


async def build(kit: Kit) -> Service:
    """The service on the store of its family."""
    store, workers = await _open(kit)
    hydrator = Hydrator(kit.channel, shared_of(kit))
    writes = Writes(store, hydrator, kit.ids, kit.clock, kit.settings.edit_window_s)
    people = PeopleLists(UserServiceStub(kit.channel), GraphServiceStub(kit.channel).GetVisibilityFilter, kit.cursors)
    lists = Lists(store, hydrator, people, kit.cursors)
    threads = Threads(store, lists, hydrator, kit.cursors)
    tweets = TweetServicer(store, writes, lists, hydrator, kit.clock, kit.settings.delete_grace_s)
    replies = ReplyServicer(store, writes, lists, threads)
    return Service(
        kit.name,
        servicers={"roost.tweet.v1.TweetService": tweets, "roost.tweet.v1.ReplyService": replies},
        workers=workers,
        resources=(store,),
    )


async def _open(kit: Kit) -> tuple[TweetStore, Sequence[Worker]]:
    """The store, and what runs beside it: `tweet.db` in the data directory, or the keyspace of the cluster."""
    cluster = cluster_of(kit)
    if cluster is None:
        embedded = await EmbeddedTweetStore.open(kit.data_dir / "tweet.db")
        return embedded, (
            Relay(embedded.db, kit.log),
            purge_job(embedded, kit.clock, kit.settings.delete_grace_s, always),
        )
    # Not before it is asked for: drivers are slow to import.
    from services.tweet.store.cassandra.store import CassandraTweetStore

    store = await CassandraTweetStore.open(cluster, kit.log, kit.clock)
    lease = await cluster.job_lease(PURGE)
    purge = purge_job(store, kit.clock, kit.settings.delete_grace_s, lease.hold)
    return store, (store.outbox, kit.log.consumer(GROUP, TOPICS, settling(store.settle_changes)), purge)
