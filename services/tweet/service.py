"""The tweet service's rules, as RPC methods."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as rpc
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceServicer

from services.common import context as calls
from services.common import errors
from services.common.cursor import Cursors
from services.common.event_log import Record
from services.common.hydrate import Hydrator, Joined, author_fragment
from services.common.snowflake import Snowflake, timestamp_ms
from services.tweet.store import Claim, TweetStore
from services.tweet.text import checked

DEFAULT_PAGE_SIZE = 20
# A page looks at some 1,200 ids at most before it answers short: many hidden tweets in a row must not hold up a call.
MAX_ROUNDS = 5
ROUND_IDS = 300
# A message of a scan: some 200 KB.
SCAN_PAGE = 500
# Posting does not depend on identity: this much of the answer's time is spent on naming the author in full.
AUTHOR_WAIT_S = 0.5

_NO_TWEET = "no such tweet"


class TweetServicer(TweetServiceServicer):
    """roost.tweet.v1.TweetService. `clock` gives unix seconds; deleted tweets are kept for `delete_grace_s` seconds."""

    def __init__(
        self,
        store: TweetStore,
        hydrator: Hydrator,
        ids: Snowflake,
        cursors: Cursors,
        clock: Callable[[], float],
        delete_grace_s: int,
    ) -> None:
        self._store = store
        self._hydrator = hydrator
        self._ids = ids
        self._cursors = cursors
        self._clock = clock
        self._delete_grace_s = delete_grace_s

    async def CreateTweet(self, request: rpc.CreateTweetRequest, context: object) -> Any:
        author_id = calls.require_user()
        if request.reply_to_id or request.quote_of_id or request.media_ids:
            raise errors.unimplemented("replies, quotes and media are not served yet")
        text = checked(request.text)
        author = await self._author(author_id)
        tweet_id = await self._ids.mint()
        core = _first_core(tweet_id, author_id, text)
        body = event_pb2.Event(tweet_created=event_pb2.TweetCreated(tweet_id=tweet_id, author_id=author_id))
        claim = self._claim(request) if request.idempotency_key else None
        stored_id = await self._store.create(core, tweet_id, await self._event("tweet.created", author_id, body), claim)
        if stored_id != tweet_id:
            return await self._joined(stored_id)
        return tweet_pb2.JoinedTweet(tweet=core.core + author)

    async def GetTweet(self, request: rpc.GetTweetRequest, context: object) -> Any:
        return await self._joined(request.tweet_id)

    async def BatchGetTweets(self, request: rpc.BatchGetTweetsRequest, context: object) -> Any:
        ids = list(request.ids)
        found = await self._hydrator.visible(calls.reader_id(), ids, limit=len(ids))
        return tweet_pb2.JoinedTweets(tweets=[tweet.data for tweet in found])

    async def DeleteTweet(self, request: rpc.DeleteTweetRequest, context: object) -> Any:
        user_id = calls.require_user()
        author_id = await self._author_of(request.tweet_id)
        if author_id != user_id:
            # Raises NOT_FOUND where the caller may not even know of it.
            await self._joined(request.tweet_id)
            raise errors.permission_denied("only its author deletes a tweet", "NOT_AUTHOR")
        event = await self._deleted_event(request.tweet_id, author_id)
        await self._store.delete(request.tweet_id, int(self._clock()), event)
        return rpc.DeleteTweetResponse()

    async def ListRecentTweets(self, request: rpc.ListRecentTweetsRequest, context: object) -> Any:
        return await self._page(request, "recent_tweets", self._store.list_recent)

    async def ListUserTweets(self, request: rpc.ListUserTweetsRequest, context: object) -> Any:
        user_id = request.user_id
        replies = rpc.TWEET_KIND_REPLIES not in request.exclude
        retweets = rpc.TWEET_KIND_RETWEETS not in request.exclude

        def fetch(before_id: int, limit: int) -> Awaitable[Sequence[int]]:
            return self._store.list_author(user_id, before_id, limit, replies=replies, retweets=retweets)

        page = await self._page(request, f"user_tweets/{user_id}/{replies:d}{retweets:d}", fetch)
        # Whoever has a tweet on the page may be seen; only an empty page needs the question.
        if not page.tweets and not await self._hydrator.author_fragments(calls.reader_id(), [user_id]):
            raise errors.not_found("no such user")
        return page

    async def BatchListAuthorTweetIds(self, request: rpc.BatchListAuthorTweetIdsRequest, context: object) -> Any:
        return await self._store.batch_list_author_ids(request.author_ids, request.before_id, request.per_author)

    async def BatchGetTweetCores(self, request: rpc.BatchGetTweetCoresRequest, context: object) -> Any:
        return await self._store.batch_get(request.ids)

    async def BatchGetAuthorCounts(self, request: rpc.BatchGetAuthorCountsRequest, context: object) -> Any:
        return rpc.BatchGetAuthorCountsResponse(tweets=await self._store.batch_count(request.user_ids))

    async def ScanTweets(
        self, request: rpc.ScanTweetsRequest, context: object
    ) -> AsyncIterator[rpc.ScanTweetsResponse]:
        after_id = request.after_id
        while cores := await self._store.scan(after_id, SCAN_PAGE):
            yield rpc.ScanTweetsResponse(cores=cores)
            if len(cores) < SCAN_PAGE:
                return
            after_id = cores[-1].head.id

    async def PurgeDeletedTweets(self, request: rpc.PurgeDeletedTweetsRequest, context: object) -> Any:
        purged = await self._store.purge(int(self._clock()) - self._delete_grace_s, request.max_tweets)
        return rpc.PurgeDeletedTweetsResponse(purged=purged)

    async def RemoveTweet(self, request: rpc.RemoveTweetRequest, context: object) -> Any:
        event = await self._deleted_event(request.tweet_id, await self._author_of(request.tweet_id))
        await self._store.remove(request.tweet_id, request.action_id, int(self._clock()), event)
        return rpc.RemoveTweetResponse()

    async def RestoreTweet(self, request: rpc.RestoreTweetRequest, context: object) -> Any:
        author_id = await self._author_of(request.tweet_id)
        fact = event_pb2.TweetRestored(tweet_id=request.tweet_id, author_id=author_id)
        event = await self._event("tweet.restored", author_id, event_pb2.Event(tweet_restored=fact))
        await self._store.restore(request.tweet_id, request.action_id, event)
        return rpc.RestoreTweetResponse()

    async def _joined(self, tweet_id: int) -> tweet_pb2.JoinedTweet:
        found = await self._hydrator.visible(calls.reader_id(), (tweet_id,), limit=1)
        if not found:
            raise errors.not_found(_NO_TWEET)
        return tweet_pb2.JoinedTweet(tweet=found[0].data)

    async def _page(
        self,
        request: rpc.ListRecentTweetsRequest | rpc.ListUserTweetsRequest,
        list_name: str,
        fetch: Callable[[int, int], Awaitable[Sequence[int]]],
    ) -> tweet_pb2.JoinedTweetPage:
        """A page of visible tweets; one more than the page holds is looked for, so that the last page says that it
        is the last."""
        page_size = request.page_size if request.HasField("page_size") else DEFAULT_PAGE_SIZE
        before_id = int(self._cursors.open(request.cursor, list_name, 0)[0]) if request.cursor else 0
        found: list[Joined] = []
        wanted = take = page_size + 1
        for _ in range(MAX_ROUNDS):
            ids = await fetch(before_id, take)
            found += await self._hydrator.visible(calls.reader_id(), ids, limit=wanted - len(found))
            if len(found) == wanted:
                before_id = found[page_size - 1].id
                break
            if len(ids) < take:
                before_id = 0
                break
            before_id, take = ids[-1], ROUND_IDS
        next_cursor = self._cursors.seal(list_name, 0, before_id) if before_id else ""
        return tweet_pb2.JoinedTweetPage(tweets=[tweet.data for tweet in found[:page_size]], next_cursor=next_cursor)

    async def _author(self, user_id: int) -> bytes:
        """The author fragment of the caller; with the id alone while identity does not answer: a post must not wait
        for it."""
        fragment = None
        try:
            async with asyncio.timeout(AUTHOR_WAIT_S):
                fragment = (await self._hydrator.author_fragments(0, [user_id])).get(user_id)
        except (grpc.aio.AioRpcError, TimeoutError):
            pass
        return fragment or author_fragment(user_pb2.UserRef(id=user_id).SerializeToString())

    async def _author_of(self, tweet_id: int) -> int:
        """Who posted the tweet, also where it is hidden; NOT_FOUND if there is none."""
        cores = (await self._store.batch_get((tweet_id,))).cores
        if not cores:
            raise errors.not_found(_NO_TWEET)
        return cores[0].head.author_id

    def _claim(self, request: rpc.CreateTweetRequest) -> Claim:
        body = rpc.CreateTweetRequest()
        body.CopyFrom(request)
        # The caller may or may not name themselves: that makes no other body.
        body.ClearField("idempotency_key")
        body.ClearField("user_id")
        digest = hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
        return Claim(request.idempotency_key, digest, int(self._clock()))

    async def _deleted_event(self, tweet_id: int, author_id: int) -> Record:
        body = event_pb2.Event(tweet_deleted=event_pb2.TweetDeleted(tweet_id=tweet_id, author_id=author_id))
        return await self._event("tweet.deleted", author_id, body)

    async def _event(self, topic: str, author_id: int, event: event_pb2.Event) -> Record:
        event.event_id = await self._ids.mint()
        event.key = author_id
        event.occurred_at.FromMilliseconds(int(self._clock() * 1000))
        event.traceparent = calls.current().traceparent
        return Record(topic, author_id, event.event_id, event.SerializeToString(), event.traceparent)


def _first_core(tweet_id: int, author_id: int, text: str) -> tweet_pb2.TweetCore:
    created_at = Timestamp()
    created_at.FromMilliseconds(timestamp_ms(tweet_id))
    tweet = tweet_pb2.Tweet(
        id=tweet_id, author_id=author_id, text=text, created_at=created_at, conversation_id=tweet_id
    )
    return tweet_pb2.TweetCore(
        head=tweet_pb2.TweetHead(id=tweet_id, author_id=author_id), core=tweet.SerializeToString()
    )
