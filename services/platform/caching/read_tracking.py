"""Tracks the keys that a response depends on, so that the gateway can reuse a cached response until one of them changes.

Each store whose data is in this process has a `ChangeTracker`. The store records the keys that it reads before it reads them, and the
keys that it changed before the writer gets its response. A caller opens a `Reading` around its calls to collect the keys that they read.

It works within one process. A call to another process, or to a store that records nothing, makes the reading uncacheable.
`inprocess_calls` marks a reading uncacheable if a call recorded nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import repeat

# Changed keys in each of two generations, about 100 bytes each: 26 MB at most for a store. Every key counts as changed for a reading
# that began before the older generation.
MAX_KEYS = 131_072
# A page depends on some 25 tweets, 25 users and a few lists. Checking 1,000 keys takes as long as computing the response again.
MAX_READ_KEYS = 1_000

_NEVER = repeat(0)


class ChangeTracker:
    """The recent changes of one store, by key: 64-bit ids whose meaning only the store knows."""

    __slots__ = ("_begun", "_most", "_old", "_turned", "_young", "now")

    def __init__(self, most: int = MAX_KEYS) -> None:
        self._most = most
        # A counter that grows with every change.
        self.now = 1
        # Changes up to this counter are evicted.
        self._begun = 0
        self._turned = 0
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def read(self, keys: Sequence[int]) -> None:
        """Records the keys in the current reading, if there is one. Must be called before the read; `keys` must not be changed later."""
        reading = _under_way.get()
        if reading is not None:
            reading.note(self, keys, self.now)

    def changed(self, keys: Iterable[int]) -> None:
        """Records a change. Must be called in the step of the event loop in which the change becomes visible, before the writer returns."""
        self.now = now = self.now + 1
        young = self._young
        for key in keys:
            young[key] = now
        if len(young) >= self._most:
            # The older generation holds only changes from before the younger one began.
            self._begun, self._turned = self._turned, now
            self._old, self._young = young, {}

    def unchanged(self, keys: Sequence[int], since: int) -> bool:
        """Returns True if none of the keys has changed since the counter was `since`, False if one has or if that is no longer known."""
        if since == self.now:
            return True
        if since < self._begun:
            return False
        return all(max(map(half.get, keys, _NEVER), default=0) <= since for half in (self._young, self._old) if half)


class Reading:
    """The keys that the calls of one response read, with the change counters of their stores."""

    __slots__ = ("_left", "_notes", "_spoilt")

    def __init__(self) -> None:
        self._notes: list[tuple[ChangeTracker, Sequence[int], int]] = []
        self._left = MAX_READ_KEYS
        self._spoilt = False

    @property
    def notes(self) -> int:
        """The number of `note` calls that were recorded."""
        return len(self._notes)

    def note(self, revisions: ChangeTracker, keys: Sequence[int], now: int) -> None:
        """Records keys of a store whose change counter is `now`. More than MAX_READ_KEYS keys make the reading uncacheable."""
        self._left -= len(keys)
        if self._left < 0:
            self.mark_uncacheable()
        if not self._spoilt:
            self._notes.append((revisions, keys, now))

    def mark_uncacheable(self) -> None:
        """Forbids to cache any response that is made from this reading."""
        self._spoilt = True
        self._notes.clear()

    def holds(self) -> bool:
        """Returns True if the reading is cacheable and none of its keys has changed."""
        # A loop, because `all` over a generator takes twice as long.
        for revisions, keys, since in self._notes:
            if since != revisions.now and not revisions.unchanged(keys, since):
                return False
        return bool(self._notes)


_under_way: ContextVar[Reading | None] = ContextVar("roost_reading", default=None)


def current_read_set() -> Reading | None:
    """Returns the reading of the current context, None if there is none."""
    return _under_way.get()


def mark_uncacheable() -> None:
    """Makes the current reading uncacheable, if there is one."""
    reading = _under_way.get()
    if reading is not None:
        reading.mark_uncacheable()


@contextmanager
def reading() -> Generator[Reading, None, None]:
    """Collects the keys that the calls within the context read."""
    opened = Reading()
    token = _under_way.set(opened)
    try:
        yield opened
    finally:
        _under_way.reset(token)
