"""Composition root of the search service."""

from __future__ import annotations

from services.platform.backends import OpenedStore, open_store
from services.platform.service import Service, ServiceContext
from services.search.best import BestMatches
from services.search.consumer import TREND_TOPICS, PositionedConsumer, TrendCounter
from services.search.rebuild import Rebuilder
from services.search.service import CachedRanking, SearchService
from services.search.store import SearchIndex
from services.search.trends import TAG_MIN_ACTORS, TWEET_MIN_ACTORS, Trends
from services.search.tweets import TweetSearch
from services.search.users import UserSearch
from services.shared.hydration.factory import hydrator_of


async def build(context: ServiceContext) -> Service:
    """Returns the search service, on Tantivy on the embedded backend, on OpenSearch on the cluster backend. Each
    process counts trends itself, so its consumer (`broadcast`) gets the events of all partitions."""
    opened: OpenedStore[SearchIndex] = await open_store(context)
    index = opened.store
    tags: Trends[str] = Trends(context.clock, TAG_MIN_ACTORS)
    tweets: Trends[int] = Trends(context.clock, TWEET_MIN_ACTORS)
    trending_tags, trending_tweets = CachedRanking(tags, context.clock), CachedRanking(tweets, context.clock)
    counter = TrendCounter(context.channel, tags, tweets, context.clock)
    counting = context.log.consumer("search-trends", TREND_TOPICS, counter.apply, broadcast=True)
    rebuilder = Rebuilder(context.channel, index)
    people = UserSearch(context.channel, index, context.cursors)
    hydrator = hydrator_of(context)
    best = BestMatches(context.channel, index, trending_tweets.strengths)
    search = TweetSearch(index, best, people, hydrator, context.cursors, context.clock)
    servicer = SearchService(index, search, people, trending_tags, trending_tweets, rebuilder, context.cursors)
    return Service(
        context.name,
        servicers={"roost.search.v1.SearchService": servicer},
        workers=(*opened.workers, PositionedConsumer(counting, counter.start_position), rebuilder),
        resources=(index,),
    )
