"""The storage port of home timelines: lists of tweet ids, each complete above its floor. Any of them may be lost and is
then rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Entries served to a reader; and entries stored in addition, because filters remove some and late appends take places
# above the floor.
SERVED, RESERVE = 800, 32
CAPACITY = SERVED + RESERVE
# A list is trimmed to 832 ids when it has more than this, so 64 appends share one trim.
TRIM_ABOVE = 896


@dataclass(frozen=True, slots=True)
class HomeList:
    """A snapshot of a home timeline. Its `ids` are ascending, unique and greater than `floor`.

    `opened_ms` is when the build of the list began, in Unix milliseconds. `ids` holds two kinds of tweet ids above
    `floor`: those committed before `opened_ms` by authors whom the reader followed then and whose tweets are fanned out
    on write (not celebrities), and those appended since. A `floor` of 0 means that no id was left out. `mode` is the
    timeline mode (hybrid, push or pull) that the list was built in.
    """

    ids: Sequence[int]
    floor: int
    opened_ms: int
    mode: str


class OpenBuild(Protocol):
    """A build that `open_build` returned. Callers only pass it back to the same store."""

    @property
    def user_id(self) -> int:
        """The user whose home timeline is built."""


class HomeTimelineStore(Protocol):
    """Home timelines by user id. Any of them may disappear at any moment; none is ever incomplete above its floor."""

    async def read(self, user_id: int) -> HomeList | None:
        """Returns a copy of the warm home timeline; None if it is cold, being built, or the store cannot be reached.
        For LRU eviction the home timeline counts as used."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        """Drops the stored home timeline and collects appends for the build from now on.

        Returns None if another process opened a build in the last few seconds or the store cannot be reached; then the
        caller must serve the page by pull. The caller takes `opened_ms` before this call and starts its pull after it,
        bypassing every cache.
        """

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        """Makes the home timeline warm, with the pulled ids (each > `floor`, at most CAPACITY) and those appended since
        `open_build`.

        Returns None and leaves it cold if the build was superseded (dropped, evicted, opened again, or more than
        TRIM_ABOVE appended) or the store cannot be reached.
        """

    async def abandon_build(self, build: OpenBuild) -> None:
        """Cancels the build. Does nothing if it was superseded."""

    async def append(self, entries: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        """Adds each tweet id to the home timelines of its user ids that are warm or being built.

        Idempotent, and correct in any order. Returns for each entry the number of such home timelines. Raises
        UNAVAILABLE if some home timelines may lack their entries; then the caller must repeat the whole call.
        """

    async def drop(self, user_id: int) -> None:
        """Makes one home timeline cold."""

    async def clear(self) -> None:
        """Makes all home timelines cold."""

    async def close(self) -> None:
        """Releases the adapter's resources."""
