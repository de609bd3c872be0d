"""Composition root of the tweet service: the only module that names an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.platform.backends import cluster_backends_of, shared_versions_of
from services.platform.periodic import always
from services.platform.service import Service, ServiceContext, Worker
from services.platform.sqlite.outbox import Relay
from services.shared.absences import TOPICS as ABSENCE_TOPICS
from services.shared.absences import following_absences
from services.shared.hydration.hydrator import Hydrator
from services.shared.hydration.user_pages import VisibleUserPages
from services.tweet.consumer import GROUP, TOPICS, finishing_side_effects
from services.tweet.pages import TweetPages
from services.tweet.purge import PURGE, purge_job
from services.tweet.reply_service import ReplyServicer
from services.tweet.service import TweetServicer
from services.tweet.store import TweetStores
from services.tweet.store.sqlite import stores as sqlite
from services.tweet.threads import Threads
from services.tweet.writer import TweetWriter

# Consumer group of the absence events.
ABSENCES = "tweet-absences"


async def build(context: ServiceContext) -> Service:
    """Builds the service on the stores of the process's backend."""
    stores, workers = await _open(context)
    hydrator = Hydrator(context.channel, shared_versions_of(context))
    writer = TweetWriter(stores, hydrator, context.ids, context.clock, context.settings.edit_window_s)
    user_pages = VisibleUserPages(
        UserServiceStub(context.channel), GraphServiceStub(context.channel).GetVisibilityFilter, context.cursors
    )
    pages = TweetPages(stores, hydrator, user_pages, context.cursors)
    threads = Threads(stores.links, pages, hydrator, context.cursors)
    tweets = TweetServicer(stores, writer, pages, hydrator, context.clock, context.settings.delete_grace_s)
    replies = ReplyServicer(stores.tweets, writer, pages, threads)
    return Service(
        context.name,
        servicers={"roost.tweet.v1.TweetService": tweets, "roost.tweet.v1.ReplyService": replies},
        workers=(
            *workers,
            context.log.consumer(ABSENCES, ABSENCE_TOPICS, following_absences(stores.tweets.set_absent)),
        ),
        resources=(stores,),
    )


async def _open(context: ServiceContext) -> tuple[TweetStores, Sequence[Worker]]:
    """Opens the stores and returns them with their workers: on `tweet.db` in the data directory, or on the Cassandra
    keyspace of the cluster."""
    cluster = cluster_backends_of(context)
    if cluster is None:
        embedded = await sqlite.open_stores(context.data_dir / "tweet.db")
        return embedded, (
            Relay(embedded.db, context.log),
            purge_job(embedded.purge, context.clock, context.settings.delete_grace_s, always),
        )
    # Imported only if used: the drivers take long to import.
    from services.tweet.store.cassandra.stores import open_stores

    stores = await open_stores(cluster, context.log, context.clock)
    lease = await cluster.job_lease(PURGE)
    purge = purge_job(stores.purge, context.clock, context.settings.delete_grace_s, lease.hold)
    return stores, (
        stores.outbox,
        context.log.consumer(GROUP, TOPICS, finishing_side_effects(stores.finish_side_effects)),
        purge,
    )
