"""Decides which tweet a call refers to, and whether a user may see it or act on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from roost.tweet.v1 import tweet_pb2

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.shared.hydration.hydrator import Hydrator

# Returns a tweet, live or not; None if it never existed or was purged.
FindTweet = Callable[[int], Awaitable[tweet_pb2.TweetCore | None]]


def no_such_tweet() -> errors.RoostError:
    """Returns the same NOT_FOUND for a tweet that never existed, is deleted, or is hidden from the caller."""
    return errors.not_found("no such tweet")


class TweetAccess:
    """Finds tweets for calls that refer to them. A call that names a retweet refers to the original of the retweet;
    both tweets must be live, and the authors of both visible. Methods raise UNAVAILABLE if a service that they call
    cannot answer."""

    def __init__(self, find: FindTweet, hydrator: Hydrator) -> None:
        self._find = find
        self._hydrator = hydrator

    async def existing(self, tweet_id: int) -> tweet_pb2.TweetCore:
        """Returns the tweet, live or not. Raises NOT_FOUND if it never existed or was purged."""
        core = await self._find(tweet_id)
        if core is None:
            raise no_such_tweet()
        return core

    async def live(self, tweet_id: int) -> tweet_pb2.TweetCore:
        """Returns the tweet if it is live. Raises NOT_FOUND if the tweet is deleted or purged, or never existed."""
        core = await self.existing(tweet_id)
        if core.head.deleted:
            raise no_such_tweet()
        return core

    async def original_id(self, tweet_id: int) -> int:
        """Returns the id of the original if the tweet is a retweet, otherwise `tweet_id`. Returns it also for a deleted
        or hidden tweet, so that an action can still be undone. Raises NOT_FOUND if the tweet never existed or was
        purged."""
        head = (await self.existing(tweet_id)).head
        return head.retweet_of_id or head.id

    async def visible(self, reader_id: int, tweet_id: int) -> tweet_pb2.TweetCore:
        """Returns the original if the tweet is a retweet, otherwise the tweet. Raises NOT_FOUND if a tweet is missing,
        deleted or hidden from the reader (0: not signed in)."""
        core, author_ids = await self._live_original(tweet_id)
        if not await self._may_see(reader_id, author_ids):
            raise no_such_tweet()
        return core

    async def actionable(self, user_id: int, tweet_id: int) -> tweet_pb2.TweetCore:
        """Returns the tweet that the user may reply to, quote, retweet or like: the original if `tweet_id` names a
        retweet. Raises PERMISSION_DENIED (BLOCKED) if the tweet is hidden only by a block between the user and an
        author, and NOT_FOUND if the tweet is missing, deleted or hidden for another reason."""
        core, author_ids = await self._live_original(tweet_id)
        if await self._may_see(user_id, author_ids):
            return core
        if await self._may_see(0, author_ids):
            raise errors.permission_denied("you cannot do this because one of you blocks the other", Reason.BLOCKED)
        raise no_such_tweet()

    async def _may_see(self, reader_id: int, author_ids: Collection[int]) -> bool:
        return len(await self._hydrator.author_fragments(reader_id, author_ids)) == len(author_ids)

    async def _live_original(self, tweet_id: int) -> tuple[tweet_pb2.TweetCore, Collection[int]]:
        """Returns the original (or the tweet itself, if it is no retweet) and the ids of the authors who must be
        visible: the author of the returned tweet and, for a retweet, also the user who retweeted."""
        core = await self.live(tweet_id)
        author_ids = {core.head.author_id}
        if core.head.retweet_of_id:
            core = await self.live(core.head.retweet_of_id)
            author_ids.add(core.head.author_id)
        return core, author_ids
