"""Stores home timelines in process memory.

No method awaits, so each is atomic on the event loop and no lock is needed.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence

from services.timeline.store import CAPACITY, TRIM_ABOVE, HomeList, HomeTimelineStore, OpenBuild


class HomeInBuild:
    """A home timeline that is being built. `pending` contains the ids appended since the build was opened."""

    __slots__ = ("max_pending", "mode", "opened_ms", "pending", "user_id")

    def __init__(self, user_id: int, opened_ms: int, mode: str, max_pending: int) -> None:
        self.user_id = user_id
        self.max_pending = max_pending
        self.opened_ms = opened_ms
        self.mode = mode
        self.pending: list[int] = []

    def insert(self, tweet_id: int) -> bool:
        """Stores the id of a tweet that was appended during the build. Returns False if more than `max_pending` ids are
        stored now; the caller must then drop this object, so that the home timeline is cold again."""
        self.pending.append(tweet_id)
        return len(self.pending) <= self.max_pending


class WarmHome:
    """A warm home timeline. Its ids are in an array, which takes 8 bytes per id; a list takes five times as much."""

    __slots__ = ("_snapshot", "floor", "ids", "keep", "mode", "opened_ms", "trim_above")

    def __init__(self, ids: Sequence[int], floor: int, build: HomeInBuild, trim_above: int) -> None:
        self.ids = array("q", ids)
        self.floor = floor
        self.keep = build.max_pending
        self.trim_above = trim_above
        self.opened_ms = build.opened_ms
        self.mode = build.mode
        self._snapshot: HomeList | None = None
        self._trim()

    def snapshot(self) -> HomeList:
        """Returns a copy of the home timeline, the same object until the next change."""
        # A copy, because later appends and trims change `ids` and `floor` while callers use the snapshot.
        if self._snapshot is None:
            self._snapshot = HomeList(self.ids[:], self.floor, self.opened_ms, self.mode)
        return self._snapshot

    def insert(self, tweet_id: int) -> bool:
        """Stores an appended id, unless it is stored already or is not above the floor. Returns True: the home timeline
        need not be dropped."""
        ids = self.ids
        if tweet_id <= self.floor:
            return True
        self._snapshot = None
        if not ids or tweet_id > ids[-1]:
            ids.append(tweet_id)
        else:
            place = bisect_left(ids, tweet_id)
            if ids[place] == tweet_id:
                return True
            ids.insert(place, tweet_id)
        if len(ids) > self.trim_above:
            self._trim()
        return True

    def _trim(self) -> None:
        surplus = len(self.ids) - self.keep
        if surplus > 0:
            self.floor = self.ids[surplus - 1]
            del self.ids[:surplus]


class EmbeddedHomeTimelines(HomeTimelineStore):
    """A HomeTimelineStore in process memory.

    `capacity` is the maximum number of home timelines; beyond it the least recently used one is evicted. A home
    timeline of more than `trim_above` ids is trimmed to the newest `keep`; only tests pass other values than the
    defaults.
    """

    def __init__(self, capacity: int, keep: int = CAPACITY, trim_above: int = TRIM_ABOVE) -> None:
        self._capacity = capacity
        self._keep = keep
        self._trim_above = trim_above
        self._homes: OrderedDict[int, HomeInBuild | WarmHome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._homes)

    async def read(self, user_id: int) -> HomeList | None:
        home = self._homes.get(user_id)
        if not isinstance(home, WarmHome):
            return None
        self._homes.move_to_end(user_id)
        return home.snapshot()

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        build = HomeInBuild(user_id, opened_ms, mode, self._keep)
        self._homes[user_id] = build
        self._homes.move_to_end(user_id)
        return build

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        if not isinstance(build, HomeInBuild) or self._homes.get(build.user_id) is not build:
            return None
        merged = sorted({*ids, *build.pending})
        home = WarmHome(merged[bisect_right(merged, floor) :], floor, build, self._trim_above)
        self._homes[build.user_id] = home
        self._homes.move_to_end(build.user_id)
        while len(self._homes) > self._capacity:
            self._homes.popitem(last=False)
        return home.snapshot()

    async def abandon_build(self, build: OpenBuild) -> None:
        if self._homes.get(build.user_id) is build:
            del self._homes[build.user_id]

    async def append(self, entries: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        homes = self._homes
        counts = []
        for tweet_id, user_ids in entries:
            accepted = 0
            for user_id in user_ids:
                home = homes.get(user_id)
                if home is not None:
                    accepted += 1
                    if not home.insert(tweet_id):
                        del homes[user_id]
            counts.append(accepted)
        return counts

    async def drop(self, user_id: int) -> None:
        self._homes.pop(user_id, None)

    async def clear(self) -> None:
        self._homes.clear()

    async def close(self) -> None:
        self._homes.clear()
