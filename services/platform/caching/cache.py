"""Provides a bounded cache in process memory with single-flight loads, a time to live, and stale-while-revalidate.

Use it only for values that may be outdated by the time to live. A value that must be current at the next read needs a
version, which the reader compares before it uses a cached value.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import structlog
from cachetools import LRUCache

from services.platform.log_events import LogEvent

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

LoadMany = Callable[[Sequence[K]], Coroutine[Any, Any, Mapping[K, V]]]

_log = structlog.get_logger(__name__)


class SingleFlight(Generic[K, V]):
    """Lets concurrent loads of one key share one task. It holds one entry for each key that is being loaded.

    Cancelling a waiter ends only its wait, not the load. The load runs in an empty context, so that the deadline and
    the identity of the first caller do not affect the others.
    """

    def __init__(self) -> None:
        self._flights: dict[K, asyncio.Task[Mapping[K, V]]] = {}

    async def run(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Returns the value of the key: from a load already in progress, otherwise from `load()`.

        Raises the load's error.
        """

        async def load_one(_: Sequence[K]) -> Mapping[K, V]:
            return {key: await load()}

        # The key is absent if this call waited for a load of many keys, and that load did not find the key. The load
        # has ended, so the next iteration starts a new one.
        while key not in (found := await self.run_batch((key,), load_one)):
            pass
        return found[key]

    async def run_batch(self, keys: Iterable[K], load: LoadMany[K, V]) -> dict[K, V]:
        """Returns the values by key. Calls `load` once, with all keys that no task is loading yet.

        Keys that no load found are absent. Raises the error of a load that fails.
        """
        wanted = tuple(keys)
        tasks = self.start(wanted, load)
        # asyncio.shield is needed because gather would cancel the shared tasks if one waiter is cancelled.
        answers = await asyncio.gather(*(asyncio.shield(task) for task in tasks))
        return {key: answer[key] for answer in answers for key in wanted if key in answer}

    def start(self, keys: Sequence[K], load: LoadMany[K, V]) -> list[asyncio.Task[Mapping[K, V]]]:
        """Starts one task that loads the keys which no task is loading yet. Returns all tasks, each once, that load one
        or more of the keys."""
        tasks = {id(task): task for key in keys if (task := self._flights.get(key)) is not None}
        missing = tuple(dict.fromkeys(key for key in keys if key not in self._flights))
        if missing:
            task = asyncio.get_running_loop().create_task(load(missing), context=contextvars.Context())
            self._flights.update(dict.fromkeys(missing, task))
            task.add_done_callback(lambda done: self._land(missing, done))
            tasks[id(task)] = task
        return list(tasks.values())

    def in_flight(self, key: K) -> asyncio.Task[Mapping[K, V]] | None:
        """Returns the task that is loading the key, None if there is none."""
        return self._flights.get(key)

    def forget(self, key: K) -> None:
        """Makes later callers start a new load of the key, because the load in progress may have read an old value."""
        self._flights.pop(key, None)

    def _land(self, keys: Sequence[K], task: asyncio.Task[Mapping[K, V]]) -> None:
        for key in keys:
            if self._flights.get(key) is task:
                del self._flights[key]
        # Reads the exception: if all waiters were cancelled, asyncio would otherwise log that it was never retrieved.
        if not task.cancelled() and task.exception() is not None:
            _log.debug(LogEvent.SHARED_LOAD_FAILED, keys=len(keys), error=repr(task.exception()))


class Cache(Generic[K, V]):
    """Caches up to `max_entries` values; evicts the least recently used.

    A value is fresh for `ttl_s` seconds. For `stale_s` more seconds the old value is still returned while one
    background load replaces it. The error of a load is raised to its waiters and not cached. Loaders run in an empty
    context and must not depend on the caller's identity.
    """

    def __init__(
        self, max_entries: int, ttl_s: float, stale_s: float = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._entries: LRUCache[K, tuple[V, float]] = LRUCache(max_entries)
        self._ttl_s = ttl_s
        self._stale_s = stale_s
        self._clock = clock
        self._flight: SingleFlight[K, V] = SingleFlight()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Returns the value if it is cached and fresh, else None. Loads nothing."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and self._clock() < entry[1] else None

    async def get_or_load(self, key: K, loader: Callable[[K], Awaitable[V]]) -> V:
        """Returns the cached value. If there is none, calls `loader`, caches its result and returns it; raises the
        error of `loader`."""

        async def load_one(_: Sequence[K]) -> Mapping[K, V]:
            return {key: await loader(key)}

        while key not in (found := await self.batch_get_or_load((key,), load_one)):
            pass  # Repeated for the reason given in SingleFlight.run.
        return found[key]

    async def batch_get_or_load(self, keys: Sequence[K], loader_of_missing: LoadMany[K, V]) -> dict[K, V]:
        """Returns the cached values by key, and loads all missing ones with one call of `loader_of_missing`.

        Keys that the loader does not find are absent and not cached. Raises the loader's error.
        """
        found: dict[K, V] = {}
        missing: list[K] = []
        stale: list[K] = []
        now = self._clock()
        for key in keys:
            entry = self._entries.get(key)
            if entry is None or now >= entry[1] + self._stale_s:
                missing.append(key)
                continue
            found[key] = entry[0]
            if now >= entry[1]:
                stale.append(key)

        async def load(wanted: Sequence[K]) -> Mapping[K, V]:
            return self._store(wanted, await loader_of_missing(wanted))

        if stale:
            self._flight.start(stale, load)
        if missing:
            found |= await self._flight.run_batch(missing, load)
        return found

    def put(self, key: K, value: V) -> None:
        """Caches a value for the key. A load of the key that is in progress still returns the loaded value to its
        waiters, but does not cache the loaded value."""
        self._flight.forget(key)
        self._entries[key] = (value, self._clock() + self._ttl_s)

    def invalidate(self, key: K) -> None:
        """Removes the cached value of the key. A load of the key that is in progress still returns the loaded value to
        its waiters, but does not cache the value."""
        self._flight.forget(key)
        self._entries.pop(key, None)

    def _store(self, wanted: Sequence[K], loaded: Mapping[K, V]) -> Mapping[K, V]:
        fresh_until = self._clock() + self._ttl_s
        for key in wanted:
            if self._flight.in_flight(key) is not asyncio.current_task():
                continue
            if key in loaded:
                self._entries[key] = (loaded[key], fresh_until)
            else:
                self._entries.pop(key, None)
        return loaded
