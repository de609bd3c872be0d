"""What the caches of both adapters hold: the newest ids of authors, the retweets of users, and versions."""

from __future__ import annotations

from array import array
from bisect import bisect_left

# Number of counters of ShardedVersions. It must be prime: the low bits of many ids are equal, so with another divisor
# most ids would share few counters.
SHARDS = 1_021
# Number of ids kept per author: as many as a home timeline stores. A list is trimmed when it is _SLACK_IDS longer, so
# that most new tweets need no trim.
CACHED_IDS = 832
_SLACK_IDS = 192


class ShardedVersions:
    """Versions by key in a fixed number of counters, which keys share. If a key's version is the same as before, the
    key did not change. If the version differs, the key or another key with the same counter changed."""

    __slots__ = ("_counts", "_shards")

    def __init__(self, shards: int = SHARDS) -> None:
        self._counts = [0] * shards
        self._shards = shards

    def now(self, key: int) -> int:
        """Returns the version of the key. Callers read the version before they read the data, and cache the data only
        if the version is the same afterwards."""
        return self._counts[key % self._shards]

    def advance(self, key: int) -> None:
        """Changes the version of the key. Must be called after the commit of a write and before its response."""
        self._counts[key % self._shards] += 1


class AuthorIds:
    """The newest ids of one author's live tweets without gaps, in ascending order. `complete` is true if the author has
    no older ids."""

    __slots__ = ("complete", "ids")

    def __init__(self, ascending: array[int], complete: bool) -> None:
        self.ids = ascending
        self.complete = complete

    def newest(self, before_id: int, limit: int) -> array[int] | None:
        """Returns the newest `limit` ids below `before_id` (0: no bound), newest first. Returns None if ids are needed
        that are older than the cached ones."""
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
        """Adds the id of a live tweet. An id below all cached ids is added only if `complete` is true, because ids
        between it and the cached ones may be missing otherwise."""
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
    """The live retweets of one user: retweet ids by original id. `complete` is true if the user has no others."""

    __slots__ = ("complete", "ids")

    def __init__(self, ids: dict[int, int], complete: bool) -> None:
        self.ids = ids
        self.complete = complete
