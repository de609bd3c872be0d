"""Provides a bounded map in process memory that evicts entries which were not used recently."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class GenerationalCache(Generic[K, V]):
    """A bounded map with two generations. When the younger generation is full, the entries of the older one are
    dropped, the younger one becomes the older one, and an empty younger one begins. An entry that is used moves to the
    younger one.

    A generation is full when it has `capacity` entries or, with `weigh`, when the sum of `weigh(value)` over its
    entries has reached `capacity`. A hit takes one or two dict look-ups, less than an LRU list. Values must not be
    None.
    """

    __slots__ = ("_capacity", "_old", "_weigh", "_weight", "_young", "turns")

    def __init__(self, capacity: int, weigh: Callable[[V], int] | None = None) -> None:
        self._capacity = capacity
        self._weigh = weigh
        self._weight = 0
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        # The number of times that the younger half of the cache became the older half.
        self.turns = 0

    def get(self, key: K) -> V | None:
        """Returns the value and marks it as used; None if the key is not cached."""
        value = self._young.get(key)
        if value is None and (value := self._old.get(key)) is not None:
            self.put(key, value)
        return value

    def get_many(self, keys: Iterable[K]) -> list[V | None]:
        """Returns the values in the order of `keys`, as `get` does. If all keys are in the younger generation, no
        Python code runs for each key."""
        wanted = list(keys)
        found = list(map(self._young.get, wanted))
        return [self.get(key) for key in wanted] if None in found else found

    def put(self, key: K, value: V) -> None:
        """Stores the value and replaces an earlier one."""
        weigh = self._weigh
        if weigh is None:
            if len(self._young) >= self._capacity:
                self._turn()
        else:
            if (before := self._young.get(key)) is not None:
                self._weight -= weigh(before)
            if self._weight >= self._capacity:
                self._turn()
            self._weight += weigh(value)
        self._young[key] = value

    def pop(self, key: K) -> None:
        """Removes the key."""
        value = self._young.pop(key, None)
        if value is not None and self._weigh is not None:
            self._weight -= self._weigh(value)
        self._old.pop(key, None)

    @property
    def generations(self) -> tuple[Mapping[K, V], Mapping[K, V]]:
        """The younger and the older generation, to look values up without marking them as used. A key may be in both;
        then the younger generation has the current value of the key."""
        return self._young, self._old

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def _turn(self) -> None:
        self._old, self._young, self._weight = self._young, {}, 0
        self.turns += 1
