"""Decides whether a home timeline shows a tweet, by the tweet's author and, for a reply, by its parent. Does no I/O."""

from __future__ import annotations

from collections.abc import Container, Sequence

from services.shared.hydration.cache import CachedTweet
from services.shared.hydration.hydrator import ListRules


class HomeRules(ListRules):
    """Admits the tweets of the reader and of the reader's followees. Another user's reply is shown only if its parent
    is live and visible, and the parent's author is the reader or a followee."""

    __slots__ = ("_followees", "_reader_id")

    def __init__(self, reader_id: int, followees: Container[int]) -> None:
        self._reader_id = reader_id
        self._followees = followees

    def admitted(self, tweets: Sequence[CachedTweet]) -> list[CachedTweet]:
        # Written inline: a function call per tweet would take a tenth of the time in which a page is filtered.
        reader_id, followees = self._reader_id, self._followees
        return [
            tweet
            for tweet in tweets
            if tweet.author_id == reader_id
            or (
                tweet.author_id in followees
                and (not tweet.parent_id or tweet.parent_author_id == reader_id or tweet.parent_author_id in followees)
            )
        ]

    def requires_parent(self, reply: CachedTweet) -> bool:
        return reply.author_id != self._reader_id
