"""The storage port of home timelines: tweet ids, complete above the floor of the home timeline. A store may lose a home
timeline at any time; the next read then builds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# Maximum number of entries that a home timeline shows, and number of ids stored in addition, because filters remove
# some, and because an id appended late may be older than ids that were stored before.
SERVED, RESERVE = 800, 32
CAPACITY = SERVED + RESERVE
# Maximum number of stored ids per home timeline. Beyond it, the home timeline is trimmed to CAPACITY ids, so that a
# trim is needed once in 64 appends.
TRIM_ABOVE = 896


@dataclass(frozen=True, slots=True)
class HomeList:
    """A snapshot of a home timeline. Its `ids` are ascending, unique and greater than `floor`.

    `opened_ms` is the start of the build in Unix milliseconds. `ids` contains the ids above `floor` of two kinds of
    tweets: tweets that the build found, by authors whom the reader followed at the start of the build and whose tweets
    are fanned out on write; and tweets that were appended after the start of the build. If `floor` is 0, no older id
    was left out. `mode` is the timeline mode in which the home timeline was built.
    """

    ids: Sequence[int]
    floor: int
    opened_ms: int
    mode: str


class OpenBuild(Protocol):
    """An open build, returned by `open_build`. Callers only pass it to `close_build` or `abandon_build` of the same
    store."""

    @property
    def user_id(self) -> int:
        """The user whose home timeline is built."""


class HomeTimelineStore(Protocol):
    """Stores home timelines by user id. A stored home timeline may be lost at any moment, but `read` never returns a
    home timeline that lacks ids above its floor."""

    async def read(self, user_id: int) -> HomeList | None:
        """Returns a copy of the home timeline if it is warm. Returns None if it is cold or being built, or if the store
        cannot be reached. If the store evicts the least recently used home timelines, this read counts as a use."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        """Opens a build: drops the stored home timeline, and from now on stores ids that are appended for this user.

        Supersedes an open build of this process. Returns None if another process opened a build in the last few
        seconds, or if the store cannot be reached; then the caller must pull all authors.

        The caller takes the time `opened_ms` before this call, and pulls the ids after it and without a cache: then
        each tweet is either among the pulled ids or appended.
        """

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        """Stores the pulled `ids` (each above `floor`, at most CAPACITY) and the ids appended since `open_build`.
        Returns the home timeline, which is now warm.

        Returns None, and the home timeline stays cold, if the store cannot be reached or the build is no longer open:
        it was superseded, dropped or evicted, or too many ids were appended to it.
        """

    async def abandon_build(self, build: OpenBuild) -> None:
        """Ends the build without a result; the home timeline is cold. Does nothing if the build is no longer open."""

    async def append(self, entries: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        """Appends tweet ids. Each entry is a tweet id and the users whose home timelines get it; cold home timelines do
        not change.

        Returns for each entry the number of its home timelines that are warm or being built. Idempotent, and ids may be
        appended in any order. Raises UNAVAILABLE if an id may be missing from a home timeline; then the caller must
        repeat the whole call.
        """

    async def drop(self, user_id: int) -> None:
        """Makes the user's home timeline cold. An open build of it can no longer be closed."""

    async def clear(self) -> None:
        """Makes all home timelines cold. Open builds can no longer be closed."""

    async def close(self) -> None:
        """Releases the resources of the adapter. No other method may be called afterwards."""
