"""Composition root of the search service: the only module of the service that names an adapter."""

from __future__ import annotations

from services.platform.backends import cluster_backends_of, shared_versions_of
from services.platform.service import Service, ServiceContext, Worker
from services.search.best import BestMatches
from services.search.consumer import INDEX_TOPICS, TREND_TOPICS, Indexer, PositionedConsumer, TrendCounter
from services.search.rebuild import Rebuilder
from services.search.service import CachedRanking, SearchService
from services.search.store import SearchIndex
from services.search.store.tantivy.store import EmbeddedSearchIndex
from services.search.trends import TAG_MIN_ACTORS, TWEET_MIN_ACTORS, Trends
from services.search.tweets import TweetSearch
from services.search.users import UserSearch
from services.shared.hydration.hydrator import Hydrator


async def build(context: ServiceContext) -> Service:
    """Builds the search service on the backends of the process. Each process counts trends by itself, from the whole
    event log.
    """
    index = await _open_index(context)
    tags: Trends[str] = Trends(context.clock, TAG_MIN_ACTORS)
    tweets: Trends[int] = Trends(context.clock, TWEET_MIN_ACTORS)
    trending_tags, trending_tweets = CachedRanking(tags, context.clock), CachedRanking(tweets, context.clock)
    counter = TrendCounter(context.channel, tags, tweets, context.clock)
    counting = context.log.consumer("search-trends", TREND_TOPICS, counter.apply, broadcast=True)
    rebuilder = Rebuilder(context.channel, index)
    people = UserSearch(context.channel, index, context.cursors)
    hydrator = Hydrator(context.channel, shared_versions_of(context))
    best = BestMatches(context.channel, index, trending_tweets.strengths)
    search = TweetSearch(index, best, people, hydrator, context.cursors, context.clock)
    servicer = SearchService(index, search, people, trending_tags, trending_tweets, rebuilder, context.cursors)
    return Service(
        context.name,
        servicers={"roost.search.v1.SearchService": servicer},
        workers=(_indexing(context, index), PositionedConsumer(counting, counter.start_position), rebuilder),
        resources=(index,),
    )


async def _open_index(context: ServiceContext) -> SearchIndex:
    """Opens the Tantivy index in `<data_dir>/search`, or the OpenSearch indexes that all processes of the mesh share."""
    if cluster_backends_of(context) is None:
        return await EmbeddedSearchIndex.open(context.data_dir / "search")
    from services.search.store.opensearch.store import OpenSearchIndex

    return await OpenSearchIndex.open(context.settings)


def _indexing(context: ServiceContext, index: SearchIndex) -> Worker:
    """Returns the consumer that applies events to the index."""
    indexer = Indexer(context.channel, index, context.clock)
    consumer = context.log.consumer("search", INDEX_TOPICS, indexer.apply)
    if cluster_backends_of(context) is None:
        return PositionedConsumer(consumer, indexer.start_position)
    # On OpenSearch, `apply` returns after the changes are durable, so the consumer group's committed offset is right.
    return consumer
