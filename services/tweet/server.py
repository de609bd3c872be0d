"""Composition root of the tweet service."""

from __future__ import annotations

from roost.graph.v1.graph_service_pb2_grpc import GraphServiceStub
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub

from services.platform.backends import OpenedStore, open_store
from services.platform.events.records import EventBuilder
from services.platform.service import Service, ServiceContext
from services.shared.absences import TOPICS as ABSENCE_TOPICS
from services.shared.absences import following_absences
from services.shared.hydration.factory import hydrator_of
from services.shared.hydration.user_pages import VisibleUserPages
from services.tweet import purged_authors
from services.tweet.pages import TweetPages
from services.tweet.reply_service import ReplyServicer
from services.tweet.service import TweetServicer
from services.tweet.store import TweetStores
from services.tweet.threads import Threads
from services.tweet.writer import TweetWriter

# Consumer group for the events that a user is suspended, deactivated or active again.
ABSENCES = "tweet-absences"


async def build(context: ServiceContext) -> Service:
    """Returns the tweet service, on SQLite on the embedded backend, on Cassandra and Redis on the cluster backend."""
    opened: OpenedStore[TweetStores] = await open_store(context)
    stores = opened.store
    hydrator = hydrator_of(context)
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
            *opened.workers,
            context.log.consumer(ABSENCES, ABSENCE_TOPICS, following_absences(stores.tweets.set_absent)),
            context.log.consumer(
                purged_authors.GROUP,
                purged_authors.TOPICS,
                purged_authors.deleting_tweets(stores, EventBuilder(context.ids, context.clock)),
            ),
        ),
        resources=(stores,),
    )
