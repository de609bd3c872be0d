"""Whether anything that an answer was made of has changed since: what lets the gateway give an answer again without asking anybody.

Every owner whose truth lives in this process has a `ChangeTracker`. It says there what it reads, before it looks, and
what it changed, before
the writer gets an answer. Whoever opens a `Reading` and makes a call learns what that call read, and may keep the answer as long as none
of it was changed.

It holds within a process only. What cannot be followed, another process or an owner that says nothing, spoils the reading: then nothing
is kept. `inprocess_calls` sees to it that every call says at least one thing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import repeat

# Changed keys remembered in each of two halves, at about 100 bytes: 26 MB at most for an owner. What was kept before the older half
# began counts as changed.
MAX_KEYS = 131_072
# A page names some 25 tweets, as many people and a few lists; checking 1,000 keys takes as long as asking their owners.
MAX_READ_KEYS = 1_000

_NEVER = repeat(0)


class ChangeTracker:
    """What one owner has changed lately, by key: its own ids of whatever it keeps."""

    __slots__ = ("_begun", "_most", "_old", "_turned", "_young", "now")

    def __init__(self, most: int = MAX_KEYS) -> None:
        self._most = most
        # The present moment: it moves with every change.
        self.now = 1
        # Changes up to here are forgotten, but that there were some.
        self._begun = 0
        self._turned = 0
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def read(self, keys: Sequence[int]) -> None:
        """Tells the reading under way, if there is one: called before the look that the answer is made from. `keys` stay as they are."""
        reading = _under_way.get()
        if reading is not None:
            reading.note(self, keys, self.now)

    def changed(self, keys: Iterable[int]) -> None:
        """Tells of a change, in the same step of the loop in which it becomes visible, before the writer's answer."""
        self.now = now = self.now + 1
        young = self._young
        for key in keys:
            young[key] = now
        if len(young) >= self._most:
            # All that the older half held changed before the younger was begun.
            self._begun, self._turned = self._turned, now
            self._old, self._young = young, {}

    def unchanged(self, keys: Sequence[int], since: int) -> bool:
        """Whether none of the keys has changed since the moment that `read` noted; False also where that is no longer known."""
        if since == self.now:
            return True
        if since < self._begun:
            return False
        return all(max(map(half.get, keys, _NEVER), default=0) <= since for half in (self._young, self._old) if half)


class Reading:
    """What one call read. `mark_uncacheable` it where that cannot be said."""

    __slots__ = ("_left", "_notes", "_spoilt")

    def __init__(self) -> None:
        self._notes: list[tuple[ChangeTracker, Sequence[int], int]] = []
        self._left = MAX_READ_KEYS
        self._spoilt = False

    @property
    def notes(self) -> int:
        """How many times something was said."""
        return len(self._notes)

    def note(self, revisions: ChangeTracker, keys: Sequence[int], now: int) -> None:
        """Keys of an owner, as they stand at its moment `now`."""
        self._left -= len(keys)
        if self._left < 0:
            self.mark_uncacheable()
        if not self._spoilt:
            self._notes.append((revisions, keys, now))

    def mark_uncacheable(self) -> None:
        """Nothing that is made of it may be kept."""
        self._spoilt = True
        self._notes.clear()

    def holds(self) -> bool:
        """Whether all that was read is known, and stands."""
        # Spelt out: `all` over a generator takes as long as the comparisons.
        for revisions, keys, since in self._notes:
            if since != revisions.now and not revisions.unchanged(keys, since):
                return False
        return bool(self._notes)


_under_way: ContextVar[Reading | None] = ContextVar("roost_reading", default=None)


def current_read_set() -> Reading | None:
    """The reading that the present call belongs to."""
    return _under_way.get()


def mark_uncacheable() -> None:
    """Spoils the reading under way, if there is one."""
    reading = _under_way.get()
    if reading is not None:
        reading.mark_uncacheable()


@contextmanager
def reading() -> Generator[Reading, None, None]:
    """Gathers what the calls made within it read."""
    opened = Reading()
    token = _under_way.set(opened)
    try:
        yield opened
    finally:
        _under_way.reset(token)
