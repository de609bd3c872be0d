"""The servicer of roost.tweet.v1.TweetService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as rpc
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceServicer

from services.platform.rpc import context as calls
from services.shared.hydration.hydrator import Hydrator
from services.shared.users import no_such_user
from services.tweet.pages import TweetPages
from services.tweet.store import TweetStores
from services.tweet.writer import Draft, TweetWriter

# Maximum number of tweets per message of ScanTweets, about 200 KB.
SCAN_PAGE = 500


class TweetServicer(TweetServiceServicer):
    """Serves roost.tweet.v1.TweetService. `clock` returns Unix seconds. PurgeDeletedTweets purges tweets that their
    authors deleted more than `delete_grace_s` seconds ago."""

    def __init__(
        self,
        stores: TweetStores,
        writer: TweetWriter,
        pages: TweetPages,
        hydrator: Hydrator,
        clock: Callable[[], float],
        delete_grace_s: int,
    ) -> None:
        self._stores = stores
        self._writer = writer
        self._pages = pages
        self._hydrator = hydrator
        self._clock = clock
        self._delete_grace_s = delete_grace_s

    async def CreateTweet(self, request: rpc.CreateTweetRequest, context: object) -> tweet_pb2.SerializedTweet:
        draft = Draft(calls.require_user(), request.text, request.reply_to_id, request.quote_of_id)
        return await self._writer.post(draft, request)

    async def GetTweet(self, request: rpc.GetTweetRequest, context: object) -> tweet_pb2.SerializedTweet:
        return await self._writer.hydrated(request.tweet_id)

    async def BatchGetTweets(self, request: rpc.BatchGetTweetsRequest, context: object) -> tweet_pb2.SerializedTweets:
        ids = list(request.ids)
        found = await self._hydrator.visible(calls.reader_id(), ids, len(ids))
        return tweet_pb2.SerializedTweets(tweets=[tweet.data for tweet in found])

    async def UpdateTweet(self, request: rpc.UpdateTweetRequest, context: object) -> tweet_pb2.SerializedTweet:
        return await self._writer.edit(calls.require_user(), request.tweet_id, request.text)

    async def ListTweetRevisions(
        self, request: rpc.ListTweetRevisionsRequest, context: object
    ) -> rpc.ListTweetRevisionsResponse:
        await self._writer.hydrated(request.tweet_id)
        return rpc.ListTweetRevisionsResponse(revisions=await self._stores.tweets.list_revisions(request.tweet_id))

    async def DeleteTweet(self, request: rpc.DeleteTweetRequest, context: object) -> rpc.DeleteTweetResponse:
        await self._writer.delete(calls.require_user(), request.tweet_id)
        return rpc.DeleteTweetResponse()

    async def Retweet(self, request: rpc.RetweetRequest, context: object) -> tweet_pb2.SerializedTweet:
        return await self._writer.retweet(calls.require_user(), request.tweet_id)

    async def Unretweet(self, request: rpc.UnretweetRequest, context: object) -> rpc.UnretweetResponse:
        await self._writer.unretweet(calls.require_user(), request.tweet_id)
        return rpc.UnretweetResponse()

    async def ListRecentTweets(
        self, request: rpc.ListRecentTweetsRequest, context: object
    ) -> tweet_pb2.SerializedTweetPage:
        return await self._pages.page(request, "recent_tweets", self._stores.lists.list_recent)

    async def ListUserTweets(
        self, request: rpc.ListUserTweetsRequest, context: object
    ) -> tweet_pb2.SerializedTweetPage:
        user_id = request.user_id
        replies = rpc.TWEET_KIND_REPLIES not in request.exclude
        retweets = rpc.TWEET_KIND_RETWEETS not in request.exclude

        def fetch(before_id: int, limit: int) -> Awaitable[Sequence[int]]:
            return self._stores.lists.list_author(user_id, before_id, limit, replies=replies, retweets=retweets)

        page = await self._pages.page(request, f"user_tweets/{user_id}/{replies:d}{retweets:d}", fetch)
        # A tweet on the page proves that the reader may see the author. An empty page proves nothing, so this is
        # checked.
        if not page.tweets and not await self._hydrator.author_fragments(calls.reader_id(), [user_id]):
            raise no_such_user()
        return page

    async def ListQuotes(self, request: rpc.ListQuotesRequest, context: object) -> tweet_pb2.SerializedTweetPage:
        return await self._pages.quotes(request)

    async def ListRetweeters(self, request: rpc.ListRetweetersRequest, context: object) -> rpc.ListRetweetersResponse:
        users, next_cursor = await self._pages.retweeters(request)
        return rpc.ListRetweetersResponse(users=users, next_cursor=next_cursor)

    async def BatchListAuthorTweetIds(
        self, request: rpc.BatchListAuthorTweetIdsRequest, context: object
    ) -> rpc.BatchListAuthorTweetIdsResponse:
        return await self._stores.lists.batch_list_author_ids(
            list(request.author_ids), request.before_id, request.per_author
        )

    async def BatchGetTweetCores(
        self, request: rpc.BatchGetTweetCoresRequest, context: object
    ) -> tweet_pb2.SerializedTweetCores:
        # The wire type SerializedTweetCores leaves each tweet serialized.
        cores = await self._stores.tweets.batch_get_serialized(list(request.ids), request.viewer_id)
        return tweet_pb2.SerializedTweetCores.FromString(cores)

    async def BatchGetAuthorCounts(
        self, request: rpc.BatchGetAuthorCountsRequest, context: object
    ) -> rpc.BatchGetAuthorCountsResponse:
        return rpc.BatchGetAuthorCountsResponse(tweets=await self._stores.lists.batch_count(request.user_ids))

    async def ScanTweets(
        self, request: rpc.ScanTweetsRequest, context: object
    ) -> AsyncIterator[rpc.ScanTweetsResponse]:
        after_id = request.after_id
        while cores := await self._stores.tweets.scan(after_id, SCAN_PAGE):
            yield rpc.ScanTweetsResponse(cores=cores)
            if len(cores) < SCAN_PAGE:
                return
            after_id = cores[-1].head.id

    async def PurgeDeletedTweets(
        self, request: rpc.PurgeDeletedTweetsRequest, context: object
    ) -> rpc.PurgeDeletedTweetsResponse:
        purged = await self._stores.purge.purge(int(self._clock()) - self._delete_grace_s, request.max_tweets)
        return rpc.PurgeDeletedTweetsResponse(purged=purged)

    async def RemoveTweet(self, request: rpc.RemoveTweetRequest, context: object) -> rpc.RemoveTweetResponse:
        await self._writer.remove(request.tweet_id, request.action_id)
        return rpc.RemoveTweetResponse()

    async def RestoreTweet(self, request: rpc.RestoreTweetRequest, context: object) -> rpc.RestoreTweetResponse:
        await self._writer.restore(request.tweet_id, request.action_id)
        return rpc.RestoreTweetResponse()
