"""Composition root of the search service: the only module that names an adapter."""

from __future__ import annotations

from services.platform.backends import cluster_of, shared_of
from services.platform.service import Kit, Service, Worker
from services.search.best import BestMatches
from services.search.consumer import INDEX_TOPICS, TREND_TOPICS, Indexer, StartingAt, TrendCounter
from services.search.people import PeopleSearch
from services.search.rebuild import Rebuilder
from services.search.service import RankedNow, SearchService
from services.search.store import SearchIndex
from services.search.store.tantivy.store import EmbeddedSearchIndex
from services.search.trends import TAG_MIN_ACTORS, TWEET_MIN_ACTORS, Trends
from services.search.tweets import TweetSearch
from services.shared.hydration.hydrator import Hydrator


async def build(kit: Kit) -> Service:
    """The search service on its family's index; trends are of each process, and known to all from the log."""
    index = await _open_index(kit)
    tags: Trends[str] = Trends(kit.clock, TAG_MIN_ACTORS)
    tweets: Trends[int] = Trends(kit.clock, TWEET_MIN_ACTORS)
    trending_tags, trending_tweets = RankedNow(tags, kit.clock), RankedNow(tweets, kit.clock)
    counter = TrendCounter(kit.channel, tags, tweets, kit.clock)
    counting = kit.log.consumer("search-trends", TREND_TOPICS, counter.apply, everywhere=True)
    rebuilder = Rebuilder(kit.channel, index)
    people = PeopleSearch(kit.channel, index, kit.cursors)
    hydrator = Hydrator(kit.channel, shared_of(kit))
    best = BestMatches(kit.channel, index, trending_tweets.strengths)
    search = TweetSearch(index, best, people, hydrator, kit.cursors, kit.clock)
    servicer = SearchService(index, search, people, trending_tags, trending_tweets, rebuilder, kit.cursors)
    return Service(
        kit.name,
        servicers={"roost.search.v1.SearchService": servicer},
        workers=(_indexing(kit, index), StartingAt(counting, counter.place), rebuilder),
        resources=(index,),
    )


async def _open_index(kit: Kit) -> SearchIndex:
    """The folder `search` in the data directory, or the indexes that all processes of the mesh share."""
    if cluster_of(kit) is None:
        return await EmbeddedSearchIndex.open(kit.data_dir / "search")
    from services.search.store.opensearch.store import OpenSearchIndex

    return await OpenSearchIndex.open(kit.settings)


def _indexing(kit: Kit, index: SearchIndex) -> Worker:
    indexer = Indexer(kit.channel, index, kit.clock)
    consumer = kit.log.consumer("search", INDEX_TOPICS, indexer.apply)
    if cluster_of(kit) is None:
        return StartingAt(consumer, indexer.place)
    # What was applied is durable then: the place that the log keeps for the group is the index's own, whoever reads which part of it.
    return consumer
