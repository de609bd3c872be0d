"""What a process remembers of a store that others write to as well: by marks that are another after every change."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from services.platform.caching.cache import SingleFlight
from services.tweet.store.cache import GenerationalCache

V = TypeVar("V")

Load: TypeAlias = Callable[[Sequence[int]], Coroutine[Any, Any, dict[int, V]]]

# Marks make it right. This ends what became wrong because a process died before Redis could be told of its change.
KEPT_S = 600.0


class VersionedCache(Generic[V]):
    """A bounded map of values by id, each remembered with the mark that was taken before it was read. `clock` gives seconds."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._values: GenerationalCache[int, tuple[int, float, V]] = GenerationalCache(size)
        self._clock = clock
        self._flights: SingleFlight[tuple[int, int], V] = SingleFlight()

    async def of(self, marks: Mapping[int, int | None], load: Load[V]) -> dict[int, V]:
        """The values of these ids, by marks that were taken just now (None: there is none); what is not remembered is loaded, and
        remembered. Loads of the same id and mark at once are one: who has the mark may take all that was read after it was made.
        Ids that `load` leaves out are left out."""
        known = {of: self._get(of, mark) for of, mark in marks.items()}
        found = {of: value for of, value in known.items() if value is not None}
        if len(found) == len(marks):
            return found
        if unmarked := [of for of, mark in marks.items() if mark is None]:
            found.update(await load(unmarked))
        missing = [(of, mark) for of, mark in marks.items() if mark is not None and of not in found]
        if missing:

            async def load_marked(wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], V]:
                loaded = await load([of for of, _ in wanted])
                for of, mark in wanted:
                    if of in loaded:
                        self._values.put(of, (mark, self._clock() + KEPT_S, loaded[of]))
                return {(of, mark): loaded[of] for of, mark in wanted if of in loaded}

            for (of, _), value in (await self._flights.run_batch(missing, load_marked)).items():
                found[of] = value
        return found

    def _get(self, of: int, mark: int | None) -> V | None:
        kept = self._values.get(of)
        if kept is None or kept[0] != mark or self._clock() > kept[1]:
            return None
        return kept[2]
