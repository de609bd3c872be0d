"""Lists of tweets and of people around a tweet: what the store has, as pages of what the caller may see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from roost.tweet.v1 import tweet_pb2

from services.platform.pagination.cursors import Cursors
from services.platform.rpc import context as calls
from services.shared.hydration.hydrator import HydratedTweet, Hydrator
from services.shared.hydration.user_pages import Entry, Page, VisibleUserPages
from services.tweet.store import TweetStore
from services.tweet.writer import no_such_tweet

DEFAULT_PAGE_SIZE = 20
# A page looks at some 1,200 ids at most before it answers short: many hidden tweets in a row must not hold up a call.
MAX_ROUNDS = 5
ROUND_IDS = 300


class TweetPages:
    """Pages for the caller. Their cursors are good for their list, whoever brings them."""

    def __init__(self, store: TweetStore, hydrator: Hydrator, people: VisibleUserPages, cursors: Cursors) -> None:
        self._store = store
        self._hydrator = hydrator
        self._people = people
        self._cursors = cursors

    async def original(self, tweet_id: int) -> tweet_pb2.TweetCore:
        """The tweet, or what it retweets; NOT_FOUND unless the caller may see both."""
        author_ids: set[int] = set()
        core = await self._standing(tweet_id, author_ids)
        if core.head.retweet_of_id:
            core = await self._standing(core.head.retweet_of_id, author_ids)
        if len(await self._hydrator.author_fragments(calls.reader_id(), author_ids)) < len(author_ids):
            raise no_such_tweet()
        return core

    async def replies(self, request: Any) -> tweet_pb2.JoinedTweetPage:
        """The direct replies to `request.tweet_id`, newest first. NOT_FOUND as `original`."""
        tweet_id = (await self.original(request.tweet_id)).head.id
        return await self.page(request, f"replies/{tweet_id}", partial(self._store.list_replies, tweet_id))

    async def quotes(self, request: Any) -> tweet_pb2.JoinedTweetPage:
        """The quotes of `request.tweet_id`, newest first. NOT_FOUND as `original`."""
        tweet_id = (await self.original(request.tweet_id)).head.id
        return await self.page(request, f"quotes/{tweet_id}", partial(self._store.list_quotes, tweet_id))

    async def retweeters(self, request: Any) -> Page:
        """Who retweeted `request.tweet_id`, newest first, and the cursor. NOT_FOUND as `original`."""
        tweet_id = (await self.original(request.tweet_id)).head.id

        async def fetch(below: Entry | None, limit: int) -> Sequence[Entry]:
            return await self._store.list_retweeters(tweet_id, below[0] if below else 0, limit)

        return await self._people.page(
            f"retweeters/{tweet_id}", fetch, request.cursor, page_size_of(request), reader_id=calls.reader_id()
        )

    async def page(
        self, request: Any, list_name: str, fetch: Callable[[int, int], Awaitable[Sequence[int]]]
    ) -> tweet_pb2.JoinedTweetPage:
        """A page of visible tweets; one more than the page holds is looked for, so that the last page says that it
        is the last. `fetch` gives up to so many ids below a bound (0: none), newest first."""
        page_size = page_size_of(request)
        before_id = int(self._cursors.open(request.cursor, list_name, 0)[0]) if request.cursor else 0
        found: list[HydratedTweet] = []
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

    async def _standing(self, tweet_id: int, author_ids: set[int]) -> tweet_pb2.TweetCore:
        cores = (await self._store.batch_get((tweet_id,))).cores
        if not cores or cores[0].head.deleted:
            raise no_such_tweet()
        author_ids.add(cores[0].head.author_id)
        return cores[0]


def page_size_of(request: Any) -> int:
    """How many the caller wants on a page of any list here."""
    return int(request.page_size) if request.HasField("page_size") else DEFAULT_PAGE_SIZE
