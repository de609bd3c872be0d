"""Builds pages of the replies, quotes and retweeters of a tweet. A page has only the tweets and users that the actor
may see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from roost.tweet.v1 import tweet_pb2

from services.platform.pagination.cursors import Cursors
from services.platform.pagination.page_size import page_size_of
from services.platform.rpc import context as calls
from services.shared.hydration.fill_page import StoredList, fill_page
from services.shared.hydration.hydrator import Hydrator
from services.shared.hydration.user_pages import ListEntry, UserPage, VisibleUserPages
from services.tweet.access import access_to
from services.tweet.store import TweetStores


class TweetPages:
    """Builds pages for the call's actor. A cursor is valid for one list only, but for every actor."""

    def __init__(self, stores: TweetStores, hydrator: Hydrator, user_pages: VisibleUserPages, cursors: Cursors) -> None:
        self._links = stores.links
        self._access = access_to(stores.tweets, hydrator)
        self._hydrator = hydrator
        self._user_pages = user_pages
        self._cursors = cursors

    async def original(self, tweet_id: int) -> tweet_pb2.TweetCore:
        """Returns the tweet, or its original if it is a retweet. Raises NOT_FOUND if the actor may not see the tweet or
        the original."""
        return await self._access.visible(calls.reader_id(), tweet_id)

    async def replies(self, request: Any) -> tweet_pb2.SerializedTweetPage:
        """Returns a page of the direct replies to `request.tweet_id`, newest first. Raises NOT_FOUND if the actor may
        not see this tweet."""
        tweet_id = (await self.original(request.tweet_id)).head.id
        return await self.page(request, f"replies/{tweet_id}", partial(self._links.list_replies, tweet_id))

    async def quotes(self, request: Any) -> tweet_pb2.SerializedTweetPage:
        """Returns a page of the quotes of `request.tweet_id`, newest first. Raises NOT_FOUND if the actor may not see
        this tweet."""
        tweet_id = (await self.original(request.tweet_id)).head.id
        return await self.page(request, f"quotes/{tweet_id}", partial(self._links.list_quotes, tweet_id))

    async def retweeters(self, request: Any) -> UserPage:
        """Returns a page of the users who retweeted `request.tweet_id`, newest retweet first, and the next cursor.
        Raises NOT_FOUND if the actor may not see this tweet."""
        tweet_id = (await self.original(request.tweet_id)).head.id

        async def fetch(below: ListEntry | None, limit: int) -> Sequence[ListEntry]:
            return await self._links.list_retweeters(tweet_id, below[0] if below else 0, limit)

        return await self._user_pages.page(
            f"retweeters/{tweet_id}", fetch, request.cursor, page_size_of(request), reader_id=calls.reader_id()
        )

    async def page(
        self, request: Any, list_name: str, fetch: Callable[[int, int], Awaitable[Sequence[int]]]
    ) -> tweet_pb2.SerializedTweetPage:
        """Returns a page of the tweets of a list that the actor may see. `request` has `cursor` and `page_size`;
        `list_name` is part of the cursor. `fetch(before_id, limit)` returns up to `limit` ids of the list below
        `before_id` (0: no bound), newest first. Raises INVALID_ARGUMENT if the cursor belongs to another list."""
        size = page_size_of(request)
        before_id = int(self._cursors.open(request.cursor, list_name, 0)[0]) if request.cursor else 0
        page = await fill_page(
            StoredList(fetch, before_id, size + 1), partial(self._hydrator.visible, calls.reader_id()), size
        )
        next_cursor = self._cursors.seal(list_name, 0, page.next_position) if page.next_position else ""
        return tweet_pb2.SerializedTweetPage(tweets=[tweet.data for tweet in page.tweets], next_cursor=next_cursor)
