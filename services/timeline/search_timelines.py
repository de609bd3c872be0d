"""Lists that search answers: tweets that mention somebody, tweets with a tag. Pages, order and what is hidden are search's own."""

from __future__ import annotations

from typing import Any

import grpc
from roost.identity.v1 import user_pb2, user_service_pb2
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.search.v1 import search_service_pb2 as search
from roost.tweet.v1 import tweet_pb2

from services.platform.rpc import errors

_SEARCH_TWEETS = "/roost.search.v1.SearchService/SearchTweets"


class SearchTimelines:
    """Asks search in the caller's name. Raises AioRpcError where search or identity cannot answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        # Not the stub: joined tweets pass through as bytes.
        self._search: Any = channel.unary_unary(
            _SEARCH_TWEETS,
            request_serializer=search.SearchTweetsRequest.SerializeToString,
            response_deserializer=tweet_pb2.JoinedTweetPage.FromString,
        )

    async def mentions(self, user_id: int, cursor: str, page_size: int) -> tweet_pb2.JoinedTweetPage:
        """Tweets that mention the user, newest first. INVALID_ARGUMENT where the cursor is of another list.

        A mute hides none of them: it is for homes and notifications.
        """
        refs = (await self._get_refs(user_service_pb2.BatchGetUserRefsRequest(ids=(user_id,)))).refs
        if not refs:
            raise errors.not_found("no such user")
        username = user_pb2.UserRef.FromString(refs[0].ref).username
        return await self._found(_latest(query=f"@{username}", cursor=cursor, page_size=page_size))

    async def tagged(self, tag: str, cursor: str, page_size: int) -> tweet_pb2.JoinedTweetPage:
        """Tweets with the hashtag, newest first. INVALID_ARGUMENT where the cursor is of another list."""
        return await self._found(_latest(tags=(tag,), cursor=cursor, page_size=page_size))

    async def _found(self, request: search.SearchTweetsRequest) -> tweet_pb2.JoinedTweetPage:
        try:
            found: tweet_pb2.JoinedTweetPage = await self._search(request)
        except grpc.aio.AioRpcError as error:
            # Cursors and names come from our caller and are judged by search: the refusal is the caller's.
            raise errors.from_rpc(error) if error.code() is grpc.StatusCode.INVALID_ARGUMENT else error from None
        return tweet_pb2.JoinedTweetPage(tweets=found.tweets, next_cursor=found.next_cursor)


def _latest(**asked: Any) -> search.SearchTweetsRequest:
    return search.SearchTweetsRequest(order=search.SEARCH_ORDER_LATEST, **asked)
