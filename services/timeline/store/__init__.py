"""Where home timelines are kept, a port: lists of tweet ids, each complete above its floor, all of it disposable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# What a reader is served at most, and what filters and late arrivals may use up before the floor is reached.
SERVED, RESERVE = 800, 32
CAPACITY = SERVED + RESERVE
# A list is trimmed only this far above its capacity: one cut in 64 appends instead of one in each.
TRIM_ABOVE = 896


@dataclass(frozen=True, slots=True)
class HomeList:
    """A home as it was at one moment: `ids` ascending, each once, none ≤ `floor`.

    Every id > `floor` that was committed before `opened_ms` (Unix milliseconds) by an author who was followed and pushed then, and
    every one appended since, is in `ids`. A `floor` of 0 means that nothing was ever left out. `mode` is the setting it was built by.
    """

    ids: Sequence[int]
    floor: int
    opened_ms: int
    mode: str


class OpenBuild(Protocol):
    """A build that was opened: the adapter's own token, of no meaning to others."""

    @property
    def user_id(self) -> int:
        """Whose home it is."""


class HomeTimelineStore(Protocol):
    """Homes by user id. Any of them may be gone at any moment; none may be there and incomplete above its floor."""

    async def read(self, user_id: int) -> HomeList | None:
        """The warm home, the reader's own snapshot; None where it is cold, being built, or out of reach. Counts as a use of it."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        """From now on appends to this user are kept for the build; what was there before is gone.

        None where another process began a build a moment ago, or the store cannot be reached: serve by pull. The pull begins after
        this returned and bypasses every cache; `opened_ms` was taken before the call.
        """

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        """Makes the home warm with the pulled ids (each > `floor`, at most CAPACITY) and what was appended since `open_build`.

        None where the build was overtaken (dropped, evicted, opened anew, or more than TRIM_ABOVE appended), or the store cannot be
        reached: then the home is cold.
        """

    async def abandon_build(self, build: OpenBuild) -> None:
        """Gives the build up; does nothing where it is no longer the one under way."""

    async def append(self, entries: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        """Puts each tweet id into the homes of its user ids, where they are warm or being built.

        Idempotent and order-tolerant. Returns for each entry how many homes that were. UNAVAILABLE where it is not sure that all of
        them took theirs: then all of it is to come again.
        """

    async def drop(self, user_id: int) -> None:
        """Makes one home cold."""

    async def clear(self) -> None:
        """Makes every home cold."""

    async def close(self) -> None:
        """Releases what the adapter holds."""
