"""A cache in process memory of values that other processes change. A cached value is used while its version in Redis is
the same as when it was cached."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from services.platform.caching.cache import SingleFlight
from services.platform.caching.generational import GenerationalCache
from services.platform.redis.shared_versions import SharedVersions

V = TypeVar("V")

Load: TypeAlias = Callable[[Sequence[int]], Coroutine[Any, Any, dict[int, V]]]

# Size of each cache by user: newest tweet ids, tweet counts, retweets. Most users have few ids; a list takes at most 8
# KB.
CACHED_AUTHORS = 16_384
# Seconds for which a value is cached even if its version is current. If a process dies after a commit and before it
# changes the version, other processes use the outdated value for at most this time.
CACHE_TTL_S = 600.0


class VersionedCache(Generic[V]):
    """Caches values by id, each with the version that was read before the value, at most twice `size`. `clock` returns
    seconds since any fixed point."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._values: GenerationalCache[int, tuple[int, float, V]] = GenerationalCache(size)
        self._clock = clock
        self._flights: SingleFlight[tuple[int, int], V] = SingleFlight()

    async def get_many(self, versions: Mapping[int, int | None], load: Load[V]) -> dict[int, V]:
        """Returns values by id. `versions` has the current version of each id, None if it is unknown.

        Calls `load` for the ids that are not cached with their current version, and caches the values whose version is
        known. Concurrent calls load the same id and version once. Leaves out ids that `load` leaves out.
        """
        known = {item_id: self._get(item_id, version) for item_id, version in versions.items()}
        found = {item_id: value for item_id, value in known.items() if value is not None}
        if len(found) == len(versions):
            return found
        if unversioned := [item_id for item_id, version in versions.items() if version is None]:
            found.update(await load(unversioned))
        missing = [
            (item_id, version) for item_id, version in versions.items() if version is not None and item_id not in found
        ]
        if missing:

            async def load_versioned(wanted: Sequence[tuple[int, int]]) -> dict[tuple[int, int], V]:
                loaded = await load([item_id for item_id, _ in wanted])
                for item_id, version in wanted:
                    if item_id in loaded:
                        self._values.put(item_id, (version, self._clock() + CACHE_TTL_S, loaded[item_id]))
                return {(item_id, version): loaded[item_id] for item_id, version in wanted if item_id in loaded}

            for (item_id, _), value in (await self._flights.run_batch(missing, load_versioned)).items():
                found[item_id] = value
        return found

    def _get(self, item_id: int, version: int | None) -> V | None:
        cached = self._values.get(item_id)
        if cached is None or cached[0] != version or self._clock() > cached[1]:
            return None
        return cached[2]


async def author_versions(shared: SharedVersions, author_ids: Sequence[int]) -> dict[int, int | None]:
    """Returns the version of each author by author id. All are None while Redis is unavailable."""
    return dict(zip(author_ids, await shared.author_versions(author_ids), strict=True))
