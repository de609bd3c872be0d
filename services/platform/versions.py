"""Versions tell a process whether the values that it caches are still true.

A *version key* names one thing whose changes readers must see, such as a tweet or a reader's relations. The service that
owns the thing changes the version of its key before it answers the writer. A reader gets the versions before it loads a
value, caches the value with them, and compares them again before each use. So a cached value is at most as old as the
comparison, and any number of processes may cache it.

`MemoryVersions` is the adapter for services that share a process. `services.platform.redis.versions.RedisVersions` is
the adapter for services in several processes.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from typing import Any, Generic, Protocol, TypeVar

from services.platform.caching.generational import GenerationalCache

V = TypeVar("V")

KIND_BITS = 3
_KIND_MASK = (1 << KIND_BITS) - 1
# Changed keys in each of the two generations of MemoryVersions, about 100 bytes each: 26 MB. When a generation is
# dropped, all values cached before it began count as changed.
MAX_KEYS = 131_072

_NEVER = repeat(0)


class Kind(enum.IntEnum):
    """The things that have versions. The comment says what changes the version, and the service that changes it."""

    # The content, counts of replies, retweets and quotes, and state of a tweet. Tweet service.
    TWEET = 0
    # Whether a tweet is live: deletion, removal by a moderator, restoration. Tweet service.
    TWEET_STATE = 1
    # The likes and bookmarks of a tweet. Engagement service.
    REACTION_COUNTS = 2
    # The profile and state of a user. Identity service.
    USER = 3
    # The tweets of an author, retweets included. Tweet service.
    AUTHOR = 4
    # The follows, blocks and mutes of a user, and the blocks by others of that user. Graph service.
    RELATIONS = 5
    # The likes and bookmarks that a user made. Engagement service.
    REACTIONS = 6
    # The replies of a conversation. Tweet service.
    THREAD = 7


# A look-up takes 14 ns, the constructor `Kind(number)` 800 ns (measured).
_KINDS = tuple(Kind)


def key_of(kind: Kind, item_id: int) -> int:
    """Returns the version key of one thing: the id of the thing, shifted left by KIND_BITS, plus the number of its
    kind."""
    return item_id << KIND_BITS | kind


def split_key(key: int) -> tuple[Kind, int]:
    """Returns the kind and the id of a version key."""
    return _KINDS[key & _KIND_MASK], key >> KIND_BITS


class Versioned(Generic[V]):
    """A cached value, the version keys that it depends on, and the stamp of these keys from before the value was
    loaded."""

    __slots__ = ("keys", "stamp", "value")

    def __init__(self, keys: Sequence[int], stamp: Any, value: V) -> None:
        self.keys = keys
        # Of the adapter's own type; compare it with `Versions.current` only.
        self.stamp = stamp
        self.value = value


class Snapshot(Protocol):
    """The versions of some keys at one time."""

    async def read(self, keys: Iterable[int]) -> None:
        """Adds the versions of these version keys to the snapshot; does not read a key again that was read before. Call
        this method before you load the values that depend on these keys."""

    def stamp(self, keys: Sequence[int]) -> Any:
        """Returns the stamp of keys that were read, to be cached in `Versioned`. Returns None if a version is unknown:
        the value must then not be cached."""


class Versions(Protocol):
    """The versions of everything that the mesh caches."""

    def snapshot(self) -> Snapshot:
        """Returns an empty snapshot."""

    async def current(self, values: Sequence[Versioned[Any] | None]) -> Sequence[bool]:
        """Returns for each value, in order, whether none of its version keys has changed since its stamp was taken.
        Returns False for None, and if it is unknown whether a key has changed."""


class VersionPublisher(Protocol):
    """Changes the versions of the kinds that one service owns."""

    def changed(self, keys: Collection[int]) -> None:
        """Changes the versions of these version keys. Call this method after the write is visible to reads, without an
        await in between, and before the writer gets the response. Raises ValueError if a key is of a kind that this
        publisher does not own."""


class MemoryVersions(Versions):
    """Versions of the services of this process, in memory. For use by one event loop.

    A stamp is the number of changes that were published before the snapshot. The versions of kinds that no service of
    this process publishes are unknown.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        # The number of changes. A stamp is the number of changes at one time.
        self.now = 1
        # A value that was stamped before this number counts as changed, because changes since then may be evicted.
        self._begun = 0
        self._rotated = 0
        self._changes: GenerationalCache[int, int] = GenerationalCache(max_keys)
        self._published: set[int] = set()

    def publisher(self, *kinds: Kind) -> VersionPublisher:
        """Returns the publisher for the service that owns these kinds. From now on their versions are known."""
        self._published.update(kinds)
        return _MemoryPublisher(self, frozenset(kinds))

    def snapshot(self) -> Snapshot:
        return _MemorySnapshot(self.now, self._published)

    async def current(self, values: Sequence[Versioned[Any] | None]) -> Sequence[bool]:
        now = self.now
        return [value is not None and (value.stamp == now or self._confirm(value, now)) for value in values]

    def _confirm(self, value: Versioned[Any], now: int) -> bool:
        if not self.unchanged(value.keys, value.stamp):
            return False
        # All keys were compared with all changes up to now, so the next comparison begins here.
        value.stamp = now
        return True

    def unchanged(self, keys: Sequence[int], since: int) -> bool:
        """Returns True if no key has changed since `now` was `since`; False if one has or may have changed."""
        if since < self._begun:
            return False
        for generation in self._changes.generations:
            if generation and max(map(generation.get, keys, _NEVER), default=0) > since:
                return False
        return True

    def change(self, keys: Collection[int]) -> None:
        """Implements VersionPublisher."""
        if not keys:
            return
        self.now = now = self.now + 1
        changes = self._changes
        turns = changes.turns
        for key in keys:
            changes.put(key, now)
        if changes.turns != turns:
            # The evicted keys changed before the generation that is now the older one began. If this call has more keys
            # than a generation holds, keys of this call may be evicted too.
            self._begun, self._rotated = (self._rotated if changes.turns == turns + 1 else now), now


class _MemorySnapshot(Snapshot):
    __slots__ = ("_now", "_published")

    def __init__(self, now: int, published: Collection[int]) -> None:
        self._now = now
        self._published = published

    async def read(self, keys: Iterable[int]) -> None:
        """Does nothing: the number of changes is a version of every key."""

    def stamp(self, keys: Sequence[int]) -> Any:
        published = self._published
        return self._now if all(key & _KIND_MASK in published for key in keys) else None


class _MemoryPublisher(VersionPublisher):
    def __init__(self, versions: MemoryVersions, kinds: frozenset[Kind]) -> None:
        self._versions = versions
        self._kinds = kinds

    def changed(self, keys: Collection[int]) -> None:
        if not all(key & _KIND_MASK in self._kinds for key in keys):
            raise ValueError("a version key is of a kind that this publisher does not own")
        self._versions.change(keys)
