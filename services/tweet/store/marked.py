"""What a process remembers of a store that others write to as well: by marks that are another after every change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from services.tweet.store.memory import Recent

V = TypeVar("V")

# Marks make it right. This ends what became wrong because Redis could not be told of a change.
KEPT_S = 30.0


class Marked(Generic[V]):
    """A bounded map of values by id, each remembered with the mark that was taken before it was read. `clock` gives seconds."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._values: Recent[int, tuple[int, float, V]] = Recent(size)
        self._clock = clock

    def get(self, of: int, mark: int | None) -> V | None:
        """The value, if it was read under this mark, lately; None else, and where there is no mark."""
        kept = self._values.get(of)
        if kept is None or kept[0] != mark or self._clock() > kept[1]:
            return None
        return kept[2]

    def put(self, of: int, mark: int | None, value: V) -> None:
        """Remembers what was read after the mark was taken; nothing without a mark."""
        if mark is not None:
            self._values.put(of, (mark, self._clock() + KEPT_S, value))
