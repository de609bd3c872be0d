"""In-memory write-through caches of the embedded tweet store. One process owns that store, so no other process changes
it."""

from __future__ import annotations

from array import array
from bisect import bisect_left

# Must be prime: ids share their low bits, and other divisors would put many into one shard.
SHARDS = 1_021
# Ids cached per author: as many as a home timeline reads of one author. A list may grow by _SLACK_IDS more before it is
# trimmed.
CACHED_IDS = 832
_SLACK_IDS = 192


class ShardedVersions:
    """Versions by key, in a fixed number of counters that keys share. An unequal version may mean that another key of
    the same counter changed; an equal one always means that this key did not."""

    __slots__ = ("_counts", "_shards")

    def __init__(self, shards: int = SHARDS) -> None:
        self._counts = [0] * shards
        self._shards = shards

    def now(self, key: int) -> int:
        """Returns the key's version. Read it before the data and compare it after."""
        return self._counts[key % self._shards]

    def advance(self, key: int) -> None:
        """Makes a new version after a commit. Must be called before the writer gets its response."""
        self._counts[key % self._shards] += 1


class AuthorIds:
    """The newest ids of one author without gaps, in ascending order. `complete` means that the author has no ids older
    than these."""

    __slots__ = ("complete", "ids")

    def __init__(self, ascending: array[int], complete: bool) -> None:
        self.ids = ascending
        self.complete = complete

    def newest(self, before_id: int, limit: int) -> array[int] | None:
        """Returns the newest `limit` ids below `before_id` (0: no bound), newest first; None if that needs ids older
        than the cached ones."""
        end = bisect_left(self.ids, before_id) if before_id else len(self.ids)
        start = end - limit
        if start < 0:
            if not self.complete:
                return None
            start = 0
        found = self.ids[start:end]
        found.reverse()
        return found

    def add(self, tweet_id: int) -> None:
        """Adds a live id. An id below all cached ones is added only if the list is complete."""
        ids = self.ids
        index = bisect_left(ids, tweet_id)
        if index < len(ids) and ids[index] == tweet_id:
            return
        if index or self.complete:
            ids.insert(index, tweet_id)
        if len(ids) > CACHED_IDS + _SLACK_IDS:
            del ids[:_SLACK_IDS]
            self.complete = False

    def discard(self, tweet_id: int) -> None:
        """Removes the id if it is cached."""
        index = bisect_left(self.ids, tweet_id)
        if index < len(self.ids) and self.ids[index] == tweet_id:
            del self.ids[index]


class OwnRetweets:
    """The live retweets of one user: retweet id by original id. `complete` means that the user has no other live
    retweets."""

    __slots__ = ("complete", "ids")

    def __init__(self, ids: dict[int, int], complete: bool) -> None:
        self.ids = ids
        self.complete = complete
