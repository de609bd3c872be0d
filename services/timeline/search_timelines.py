"""Reads two timelines from the search service: the tweets that mention a user, and the tweets with a hashtag or
cashtag. The search service decides order, visibility and cursors."""

from __future__ import annotations

from typing import Any

import grpc
from roost.identity.v1 import user_pb2, user_service_pb2
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.search.v1 import search_service_pb2 as search
from roost.tweet.v1 import tweet_pb2

from services.platform.rpc import errors
from services.shared.users import no_such_user

_SEARCH_TWEETS = "/roost.search.v1.SearchService/SearchTweets"


class SearchTimelines:
    """Calls the search service on behalf of the call's actor. Methods raise AioRpcError if search or identity does not
    answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._get_refs: Any = UserServiceStub(channel).BatchGetUserRefs
        # The stub would parse the tweets. The wire type SerializedTweetPage leaves them serialized.
        self._search: Any = channel.unary_unary(
            _SEARCH_TWEETS,
            request_serializer=search.SearchTweetsRequest.SerializeToString,
            response_deserializer=tweet_pb2.SerializedTweetPage.FromString,
        )

    async def mentions(self, user_id: int, cursor: str, page_size: int) -> tweet_pb2.SerializedTweetPage:
        """Returns a page of the tweets that mention the user, newest first. Raises INVALID_ARGUMENT if the cursor
        belongs to another list, NOT_FOUND if the user does not exist.

        Tweets of muted users are included: mutes apply to home timelines and notifications only.
        """
        refs = (await self._get_refs(user_service_pb2.BatchGetUserRefsRequest(ids=(user_id,)))).refs
        if not refs:
            raise no_such_user()
        username = user_pb2.UserRef.FromString(refs[0].ref).username
        return await self._search_page(_latest(query=f"@{username}", cursor=cursor, page_size=page_size))

    async def tagged(self, tag: str, cursor: str, page_size: int) -> tweet_pb2.SerializedTweetPage:
        """Returns a page of the tweets with the hashtag or cashtag, newest first. Raises INVALID_ARGUMENT if the tag is
        not valid or the cursor belongs to another list."""
        return await self._search_page(_latest(tags=(tag,), cursor=cursor, page_size=page_size))

    async def _search_page(self, request: search.SearchTweetsRequest) -> tweet_pb2.SerializedTweetPage:
        try:
            found: tweet_pb2.SerializedTweetPage = await self._search(request)
        except grpc.aio.AioRpcError as error:
            # The cursor and the tag come from our caller and search validates them, so INVALID_ARGUMENT is passed on.
            # All other errors are failures of the mesh.
            raise errors.from_rpc(error) if error.code() is grpc.StatusCode.INVALID_ARGUMENT else error from None
        return tweet_pb2.SerializedTweetPage(tweets=found.tweets, next_cursor=found.next_cursor)


def _latest(**asked: Any) -> search.SearchTweetsRequest:
    return search.SearchTweetsRequest(order=search.SEARCH_ORDER_LATEST, **asked)
