"""The servicer of roost.search.v1.SearchService."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from roost.identity.v1 import user_pb2
from roost.search.v1 import search_service_pb2 as pb
from roost.search.v1.search_service_pb2_grpc import SearchServiceServicer
from roost.tweet.v1 import tweet_pb2

from services.platform.log_events import LogEvent
from services.platform.pagination.cursors import Cursors
from services.platform.pagination.page_size import page_size_of
from services.platform.rpc import context as calls
from services.search.documents import completion_prefix, spelling_prefix, tag_of_term
from services.search.query import MAX_TERMS, only_excludes, parse, parse_names
from services.search.rebuild import Rebuilder
from services.search.store import SearchIndex
from services.search.tokenizer import words
from services.search.trends import Trend, Trends
from services.search.tweets import TweetSearch
from services.search.users import UserSearch

# Seconds for which a ranking of trends is cached, because computing it is slow and trends change over minutes.
RANKING_TTL_S = 1.0

log = structlog.get_logger(__name__)

# The generated type of the context differs per method. No method here uses the context.
_Context = Any


class CachedRanking:
    """Caches the ranking of trends for RANKING_TTL_S seconds. `clock` returns Unix seconds."""

    def __init__(self, trends: Trends[Any], clock: Callable[[], float]) -> None:
        self._trends = trends
        self._clock = clock
        self._at_s = float("-inf")
        self._ranked: Sequence[Trend] = ()

    def __call__(self) -> Sequence[Trend]:
        """Returns the ranking, strongest trend first, at most RANKING_TTL_S seconds old."""
        now_s = self._clock()
        if abs(now_s - self._at_s) >= RANKING_TTL_S:
            self._at_s, self._ranked = now_s, self._trends.ranking()
        return self._ranked

    def strengths(self) -> Mapping[Any, float]:
        """Returns the strengths of the trends by key, divided by the greatest strength, so that they are from 0 to
        1."""
        ranked = self()
        return {trend.key: trend.strength / ranked[0].strength for trend in ranked if ranked[0].strength > 0}


class SearchService(SearchServiceServicer):
    """Serves search, completion, trends and reindexing."""

    def __init__(
        self,
        index: SearchIndex,
        tweets: TweetSearch,
        people: UserSearch,
        trending_tags: CachedRanking,
        trending_tweets: CachedRanking,
        rebuilder: Rebuilder,
        cursors: Cursors,
    ) -> None:
        self._index = index
        self._tweets = tweets
        self._user_search = people
        self._trending_tags = trending_tags
        self._trending_tweets = trending_tweets
        self._rebuilder = rebuilder
        self._cursors = cursors

    async def SearchTweets(self, request: pb.SearchTweetsRequest, context: _Context) -> tweet_pb2.SerializedTweetPage:
        tweets, next_cursor = await self._find_tweets(request)
        return tweet_pb2.SerializedTweetPage(tweets=tweets, next_cursor=next_cursor)

    async def SearchUsers(self, request: pb.SearchUsersRequest, context: _Context) -> pb.SearchUsersResponse:
        names = parse_names(request.query)
        if names.excluded and not names.words:
            raise only_excludes()
        users, next_cursor = await self._user_search.page(
            names, request.cursor, page_size_of(request), calls.reader_id()
        )
        return pb.SearchUsersResponse(users=users, next_cursor=next_cursor)

    async def Search(self, request: pb.SearchRequest, context: _Context) -> pb.SerializedSearchPage:
        if request.type == pb.SEARCH_TYPE_USERS:
            users, next_cursor = await self._find_users(request)
            return pb.SerializedSearchPage(users=users, next_cursor=next_cursor)
        if request.type == pb.SEARCH_TYPE_TWEETS or request.cursor:
            tweets, next_cursor = await self._find_tweets(request)
            return pb.SerializedSearchPage(tweets=tweets, next_cursor=next_cursor)
        (tweets, next_cursor), (users, _) = await asyncio.gather(self._find_tweets(request), self._find_users(request))
        return pb.SerializedSearchPage(tweets=tweets, next_cursor=next_cursor, users=users)

    async def Suggest(self, request: pb.SuggestRequest, context: _Context) -> pb.SuggestResponse:
        text, size = request.query.strip(), page_size_of(request)
        users: Sequence[user_pb2.UserRef] = ()
        tags: Sequence[str] = ()
        if not text.startswith("#"):
            users = await self._user_search.suggest(parse_names(text), size, calls.reader_id())
        if name := "" if text.startswith("@") else text.lstrip("#"):
            tags = await self._complete_tag(name, size)
        return pb.SuggestResponse(users=users, tags=tags)

    async def ListTrendingTags(
        self, request: pb.ListTrendingTagsRequest, context: _Context
    ) -> pb.ListTrendingTagsResponse:
        ranked, start, size = (
            self._trending_tags(),
            self._offset(request.cursor, "trending_tags"),
            page_size_of(request),
        )
        end = start + size
        return pb.ListTrendingTagsResponse(
            tags=[pb.TrendingTag(tag=trend.spelling, tweets=trend.acts) for trend in ranked[start:end]],
            next_cursor=self._cursors.seal("trending_tags", 0, end) if end < len(ranked) else "",
        )

    async def ListTrendingTweets(
        self, request: pb.ListTrendingTweetsRequest, context: _Context
    ) -> tweet_pb2.SerializedTweetPage:
        ids = [int(str(trend.key)) for trend in self._trending_tweets()]

        def seal(place: int) -> str:
            return self._cursors.seal("trending_tweets", 0, place)

        start = self._offset(request.cursor, "trending_tweets")
        tweets, next_cursor = await self._tweets.in_order(ids, start, page_size_of(request), calls.reader_id(), seal)
        return tweet_pb2.SerializedTweetPage(tweets=tweets, next_cursor=next_cursor)

    async def Reindex(self, request: pb.ReindexRequest, context: _Context) -> pb.ReindexResponse:
        started = self._rebuilder.begin()
        call = calls.current()
        log.info(
            LogEvent.SEARCH_INDEX_REBUILD_REQUESTED,
            actor_id=call.actor.user_id,
            caller=call.caller,
            request_id=call.request_id,
            started=started,
        )
        return pb.ReindexResponse(started=started)

    async def GetReindex(self, request: pb.GetReindexRequest, context: _Context) -> pb.GetReindexResponse:
        build = await self._index.build_status()
        return pb.GetReindexResponse(index=build.number, building=build.filled is not None, documents=build.filled or 0)

    async def _find_tweets(self, request: pb.SearchTweetsRequest | pb.SearchRequest) -> tuple[list[bytes], str]:
        parsed = parse(request.query, request.keywords, request.tags)
        find = self._tweets.latest if request.order == pb.SEARCH_ORDER_LATEST else self._tweets.top
        return await find(parsed, request.cursor, page_size_of(request), calls.reader_id())

    async def _find_users(self, request: pb.SearchRequest) -> tuple[list[user_pb2.User], str]:
        names = parse_names(request.query)
        names = names._replace(words=(*names.words, *words(" ".join(request.keywords)))[:MAX_TERMS])
        return await self._user_search.page(names, request.cursor, page_size_of(request), calls.reader_id())

    async def _complete_tag(self, beginning: str, limit: int) -> list[str]:
        """Returns up to `limit` hashtags that begin with `beginning` (without `#`), the most used first, each in its
        most used spelling."""
        terms = await self._index.terms(completion_prefix(beginning), limit)
        keys = [tag_of_term(term) for term in terms]
        spellings = await self._index.most_used([spelling_prefix(key) for key in keys])
        # `most_used` returns no spelling if the last tweet with the hashtag was deleted between the two calls. Then the
        # key of the hashtag takes its place.
        return [tag_of_term(term) or key for key, term in zip(keys, spellings, strict=True)]

    def _offset(self, cursor: str, list_name: str) -> int:
        """Returns the index in the list at which the page begins: that in the cursor, 0 if `cursor` is empty. Raises
        INVALID_ARGUMENT if the cursor belongs to another list."""
        return int(self._cursors.open(cursor, list_name, 0)[0]) if cursor else 0
