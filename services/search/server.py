"""Composition root of the search service: the only module that names an adapter."""

from __future__ import annotations

from services.common.hydrate import Hydrator
from services.common.kit import Kit, Service
from services.search.consumer import INDEX_TOPICS, TREND_TOPICS, Indexer, StartingAt, TrendCounter
from services.search.people import PeopleSearch
from services.search.rebuild import Rebuilder
from services.search.service import RankedNow, SearchService
from services.search.store.embedded import EmbeddedSearchIndex
from services.search.trends import TAG_MIN_ACTORS, TWEET_MIN_ACTORS, Trends
from services.search.tweets import TweetSearch


async def build(kit: Kit) -> Service:
    """The search service on its embedded index, the folder `search` in the data directory."""
    index = await EmbeddedSearchIndex.open(kit.data_dir / "search")
    tags: Trends[str] = Trends(kit.clock, TAG_MIN_ACTORS)
    tweets: Trends[int] = Trends(kit.clock, TWEET_MIN_ACTORS)
    trending_tags, trending_tweets = RankedNow(tags, kit.clock), RankedNow(tweets, kit.clock)
    indexer = Indexer(kit.channel, index, kit.clock)
    counter = TrendCounter(kit.channel, tags, tweets, kit.clock)
    rebuilder = Rebuilder(kit.channel, index)
    people = PeopleSearch(kit.channel, index, kit.cursors)
    hydrator = Hydrator(kit.channel)
    search = TweetSearch(kit.channel, index, people, hydrator, kit.cursors, trending_tweets.strengths, kit.clock)
    servicer = SearchService(index, search, people, trending_tags, trending_tweets, rebuilder, kit.cursors)
    return Service(
        kit.name,
        servicers={"roost.search.v1.SearchService": servicer},
        workers=(
            StartingAt(kit.log.consumer("search", INDEX_TOPICS, indexer.apply), indexer.place),
            StartingAt(kit.log.consumer("search-trends", TREND_TOPICS, counter.apply, everywhere=True), counter.place),
            rebuilder,
        ),
        resources=(index,),
    )
