"""Serves two timelines by calls to the search service: tweets that mention a user, and tweets with a hashtag. Search
decides their pages, order and visibility."""

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
    """Calls search on behalf of the caller. Raises AioRpcError if search or identity cannot answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        # Not the stub, so that hydrated tweets pass through as bytes.
        self._search: Any = channel.unary_unary(
            _SEARCH_TWEETS,
            request_serializer=search.SearchTweetsRequest.SerializeToString,
            response_deserializer=tweet_pb2.SerializedTweetPage.FromString,
        )

    async def mentions(self, user_id: int, cursor: str, page_size: int) -> tweet_pb2.SerializedTweetPage:
        """Returns tweets that mention the user, newest first. Raises INVALID_ARGUMENT if the cursor is not one of this
        timeline, NOT_FOUND if the user does not exist.

        Tweets of muted users are included: mutes apply to home timelines and notifications only.
        """
        refs = (await self._get_refs(user_service_pb2.BatchGetUserRefsRequest(ids=(user_id,)))).refs
        if not refs:
            raise errors.not_found("no such user")
        username = user_pb2.UserRef.FromString(refs[0].ref).username
        return await self._search_page(_latest(query=f"@{username}", cursor=cursor, page_size=page_size))

    async def tagged(self, tag: str, cursor: str, page_size: int) -> tweet_pb2.SerializedTweetPage:
        """Returns tweets with the hashtag, newest first. Raises INVALID_ARGUMENT if the cursor is not one of this
        timeline."""
        return await self._search_page(_latest(tags=(tag,), cursor=cursor, page_size=page_size))

    async def _search_page(self, request: search.SearchTweetsRequest) -> tweet_pb2.SerializedTweetPage:
        try:
            found: tweet_pb2.SerializedTweetPage = await self._search(request)
        except grpc.aio.AioRpcError as error:
            # Search validates the cursor and the tag of our caller, so its INVALID_ARGUMENT is meant for the caller.
            raise errors.from_rpc(error) if error.code() is grpc.StatusCode.INVALID_ARGUMENT else error from None
        return tweet_pb2.SerializedTweetPage(tweets=found.tweets, next_cursor=found.next_cursor)


def _latest(**asked: Any) -> search.SearchTweetsRequest:
    return search.SearchTweetsRequest(order=search.SEARCH_ORDER_LATEST, **asked)
