"""Write-through caches of the embedded engagement store in process memory. One process owns the store, so no other
process can make the caches outdated."""

from __future__ import annotations

from array import array
from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from cachetools import LRUCache

from services.engagement.store import ReactionKind

# Number of newest tweets with counts whose counts are always cached, because most pages show new tweets. An entry takes
# about 200 bytes: 13 MB in all.
NEWEST_COUNTS = 65_536
# Number of entries evicted at once. Deleting one entry from the front of the array takes as long as deleting a
# thousand.
_SLACK = 1_024
# Maximum number of older tweets whose counts are cached; beyond it, the least recently used entry is dropped. An entry
# takes about 300 bytes: 20 MB in all.
OLDER_COUNTS = 65_536
# Maximum number of tweet ids in the cached reactions of all users; beyond it, the least recently used user is dropped.
# An id takes about 72 bytes in a set: 72 MB, or some 5,000 readers with 200 reactions each. Packed arrays would take a
# ninth of the memory, but the look-ups for a page would take thirty times as long.
MAX_CACHED_IDS = 1_000_000
# Overhead of a cached user, counted in ids: two sets, a tuple and the cache entry.
_ENTRY_WEIGHT = 10
# Maximum number of reactions of a cached user. The reactions of a user with more are read for each page, so that one
# user does not evict hundreds of users from the cache.
MAX_CACHED_PER_USER = 20_000


class CountCache:
    """Caches frames by tweet id. A frame is the counts of one tweet as a serialized BatchGetCountsResponse, empty if
    the tweet has no likes and bookmarks.

    For tweet ids from `floor` on, the cache is complete, so a tweet that is missing there has no counts and needs no
    read. Below `floor` the cache holds the counts of tweets that were read or written lately.
    """

    def __init__(self, newest: Sequence[tuple[int, bytes]], floor: int) -> None:
        """`newest` contains all tweets with counts from `floor` on, by ascending id."""
        self._newest = dict(newest)
        self._ascending = array("q", self._newest)
        self._floor = floor
        self._older: LRUCache[int, bytes] = LRUCache(OLDER_COUNTS)

    def frames(self, ids: Sequence[int]) -> list[bytes | None]:
        """Returns the cached frame of each id, in order; None for an id whose counts the caller must read from the
        database."""
        floor, older = self._floor, self._older
        found: list[bytes | None] = list(map(self._newest.get, ids))
        if None in found:
            for index, frame in enumerate(found):
                if frame is None:
                    tweet_id = ids[index]
                    found[index] = b"" if tweet_id >= floor else older.get(tweet_id)
        return found

    def put(self, tweet_id: int, frame: bytes) -> None:
        """Stores the frame of the tweet in place of an earlier frame."""
        if tweet_id < self._floor:
            self._older[tweet_id] = frame
            return
        if tweet_id not in self._newest:
            insort(self._ascending, tweet_id)
        self._newest[tweet_id] = frame
        if len(self._ascending) > NEWEST_COUNTS + _SLACK:
            for gone in self._ascending[:_SLACK]:
                del self._newest[gone]
            del self._ascending[:_SLACK]
            self._floor = self._ascending[0]


class ReactedIds(NamedTuple):
    """The tweet ids that one user likes and has bookmarked."""

    likes: set[int]
    bookmarks: set[int]


class ReactionCache:
    """An LRU cache of the reactions of users. The value None marks a user with more than MAX_CACHED_PER_USER
    reactions."""

    def __init__(self) -> None:
        self._users: LRUCache[int, ReactedIds | None] = LRUCache(MAX_CACHED_IDS, _weight)

    def __contains__(self, user_id: int) -> bool:
        return user_id in self._users

    def get(self, user_id: int) -> ReactedIds | None:
        """Returns the reactions of a cached user; None if the user has more than MAX_CACHED_PER_USER reactions. The
        caller must not change the returned sets. Raises KeyError if the user is not in the cache."""
        return self._users[user_id]

    def put(self, user_id: int, reacted: ReactedIds | None) -> None:
        """Stores `reacted`, all reactions of the user; stores None if they are more than MAX_CACHED_PER_USER."""
        if reacted is not None and len(reacted.likes) + len(reacted.bookmarks) > MAX_CACHED_PER_USER:
            reacted = None
        self._users[user_id] = reacted

    def change(self, user_id: int, kind: ReactionKind, tweet_id: int, present: bool) -> None:
        """Adds the tweet to the cached reactions of the user (`present`), or removes it from them. Call this method
        after the write of the reaction was committed. Does nothing if the user's reactions are not cached."""
        reacted = self._users.get(user_id)
        if reacted is None:
            return
        ids = reacted.likes if kind is ReactionKind.LIKE else reacted.bookmarks
        if present:
            ids.add(tweet_id)
        else:
            ids.discard(tweet_id)
        # The entry is stored again, so that the cache computes its new weight.
        self.put(user_id, reacted)


def _weight(reacted: ReactedIds | None) -> int:
    return _ENTRY_WEIGHT + (0 if reacted is None else len(reacted.likes) + len(reacted.bookmarks))
