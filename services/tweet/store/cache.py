"""What the embedded store keeps in process memory, written through. One process owns that store, so nobody else
changes it."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# A prime, as any other number of them must be: ids share their low bits, and other divisors would lump them together.
SHARDS = 1_021
# The deepest list that a home is built from, and how far a list may outgrow it before it is cut back.
KEPT_IDS = 832
_SLACK_IDS = 192


class GenerationalCache(Generic[K, V]):
    """A bounded map that forgets what was not used lately: two generations, the older one dropped when the younger
    is full.

    It holds at most twice `size` entries. Reads cost one or two dict look-ups, which is why it is not an LRU list.
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The value, which counts as a use; None if it is not there."""
        value = self._young.get(key)
        if value is None and (value := self._old.get(key)) is not None:
            self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Stores the value in place of any older one."""
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def pop(self, key: K) -> None:
        """Forgets the key."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())


class ShardedVersions:
    """Tells a reader whether what it read may be older than a write that was told meanwhile. Keys share shards:
    "changed" may be wrong, "unchanged" never is."""

    __slots__ = ("_counts", "_shards")

    def __init__(self, shards: int = SHARDS) -> None:
        self._counts = [0] * shards
        self._shards = shards

    def now(self, key: int) -> int:
        """The key's epoch: to be taken before the read begins, and compared after it."""
        return self._counts[key % self._shards]

    def advance(self, key: int) -> None:
        """Tells of a write that committed: to be called before the writer's answer."""
        self._counts[key % self._shards] += 1


class AuthorIds:
    """The newest ids of one author, complete from the least of them upwards; `complete` where there are no older
    ones."""

    __slots__ = ("complete", "ids")

    def __init__(self, ascending: array[int], complete: bool) -> None:
        self.ids = ascending
        self.complete = complete

    def newest(self, before_id: int, limit: int) -> array[int] | None:
        """The newest `limit` ids below `before_id` (0: no bound), newest first; None where older ones would be
        needed."""
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
        """Adds an id that stands now; one below the list's least is left to the store, unless the list is complete."""
        ids = self.ids
        place = bisect_left(ids, tweet_id)
        if place < len(ids) and ids[place] == tweet_id:
            return
        if place or self.complete:
            ids.insert(place, tweet_id)
        if len(ids) > KEPT_IDS + _SLACK_IDS:
            del ids[:_SLACK_IDS]
            self.complete = False

    def discard(self, tweet_id: int) -> None:
        """Takes an id out, if it is there."""
        place = bisect_left(self.ids, tweet_id)
        if place < len(self.ids) and self.ids[place] == tweet_id:
            del self.ids[place]


class OwnRetweets:
    """The retweets of one user that stand, by original; `complete` where there are no others."""

    __slots__ = ("complete", "ids")

    def __init__(self, ids: dict[int, int], complete: bool) -> None:
        self.ids = ids
        self.complete = complete
