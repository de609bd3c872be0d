"""Tracks the keys that a response depends on, so that the gateway can cache it until one of them changes.

Each store whose data is in this process has a `ChangeTracker`. The store records keys before it reads them, and records
changed keys before the writer gets its response. A caller wraps its calls in `track_reads()` to collect
the keys that they read in a `ReadSet`.

Tracking works within one process. A call to another process makes the read set uncacheable. So does a call that records
no key, which `transport/inprocess_calls.py` detects.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import repeat

from services.platform.caching.generational import GenerationalCache

# Maximum number of changed keys in each of the two generations of a tracker's GenerationalCache. A key takes about 100
# bytes, so a store takes up to 26 MB. Beyond it the oldest changes are dropped: for a read set that is older than the
# older generation, every key then counts as changed.
MAX_KEYS = 131_072
# Maximum number of keys in one read set. Beyond it the read set is uncacheable, because checking 1,000 keys takes as
# long as computing the response again. A page depends on about 25 tweets, 25 users and a few lists.
MAX_READ_KEYS = 1_000

_NEVER = repeat(0)


class ChangeTracker:
    """Records the recent changes of one store by key. A key is a 64-bit id whose meaning the store defines."""

    __slots__ = ("_begun", "_changes", "_rotated", "now")

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        # A counter that grows with every change.
        self.now = 1
        # `_begun`: changes with a counter up to this one may have been evicted. `_rotated`: the counter when the
        # younger generation last became the older one.
        self._begun = 0
        self._rotated = 0
        # The counter of the latest change, by key.
        self._changes: GenerationalCache[int, int] = GenerationalCache(max_keys)

    def read(self, keys: Sequence[int]) -> None:
        """Records the keys in the current read set, if there is one.

        Call it before the read; do not change `keys` later.
        """
        read_set = _current.get()
        if read_set is not None:
            read_set.record(self, keys, self.now)

    def changed(self, keys: Iterable[int]) -> None:
        """Records a change of the keys.

        Call this method when readers can read the change, with no await in between, and before the writer returns.
        """
        self.now = now = self.now + 1
        changes = self._changes
        turns = changes.turns
        for key in keys:
            changes.put(key, now)
        if changes.turns != turns:
            # Evicted keys changed before the generation that is now the older one began. If one call has more keys than
            # a generation holds, evicted keys may have changed in this call.
            self._begun, self._rotated = (self._rotated if changes.turns == turns + 1 else now), now

    def unchanged(self, keys: Sequence[int], since: int) -> bool:
        """Returns True if no key has changed since the counter was `since`; False if a key has changed or may have
        changed."""
        if since == self.now:
            return True
        if since < self._begun:
            return False
        return all(max(map(half.get, keys, _NEVER), default=0) <= since for half in self._changes.generations if half)


class ReadSet:
    """Collects the keys that the calls for one response read, with the change counters of their stores at that time."""

    __slots__ = ("_left", "_records", "_uncacheable")

    def __init__(self) -> None:
        self._records: list[tuple[ChangeTracker, Sequence[int], int]] = []
        self._left = MAX_READ_KEYS
        self._uncacheable = False

    @property
    def record_count(self) -> int:
        """The number of calls of `record`; 0 if the read set is uncacheable."""
        return len(self._records)

    def record(self, tracker: ChangeTracker, keys: Sequence[int], now: int) -> None:
        """Records keys of a store whose change counter is `now`.

        More than MAX_READ_KEYS keys make the read set uncacheable.
        """
        self._left -= len(keys)
        if self._left < 0:
            self.mark_uncacheable()
        if not self._uncacheable:
            self._records.append((tracker, keys, now))

    def mark_uncacheable(self) -> None:
        """Makes the read set uncacheable: `is_current` returns False from now on."""
        self._uncacheable = True
        self._records.clear()

    def is_current(self) -> bool:
        """Returns True if the read set is cacheable, has at least one key, and none of its keys has changed."""
        # A loop, because `all` over a generator takes twice as long.
        for tracker, keys, since in self._records:
            if since != tracker.now and not tracker.unchanged(keys, since):
                return False
        return bool(self._records)


_current: ContextVar[ReadSet | None] = ContextVar("roost_read_set", default=None)


def current_read_set() -> ReadSet | None:
    """Returns the read set of the current context, None if there is none."""
    return _current.get()


def mark_uncacheable() -> None:
    """Makes the current read set uncacheable, if there is one."""
    read_set = _current.get()
    if read_set is not None:
        read_set.mark_uncacheable()


@contextmanager
def track_reads() -> Generator[ReadSet, None, None]:
    """Opens a read set for the `with` block. The read set collects the keys that calls in the block read."""
    opened = ReadSet()
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)
