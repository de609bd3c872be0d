"""A bounded cache in process memory: single-flight loads, a time to live, old values served while new ones are fetched.

For what may be a little old: what must act on the very next read does not belong here unchecked.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import structlog
from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

LoadMany = Callable[[Sequence[K]], Coroutine[Any, Any, Mapping[K, V]]]

_log = structlog.get_logger(__name__)


class SingleFlight(Generic[K, V]):
    """Concurrent loads of one key share one task. Bounded by the calls in flight.

    The task belongs to nobody: cancelling a waiter ends only its wait, and the load runs in an empty context, so that
    neither the deadline nor the identity of whoever came first decides what the others get.
    """

    def __init__(self) -> None:
        self._flights: dict[K, asyncio.Task[Mapping[K, V]]] = {}

    async def run(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """What `load` returns or raises, or what the load of this key that is under way already does."""

        async def load_one(_: Sequence[K]) -> Mapping[K, V]:
            return {key: await load()}

        # Absent only if it joined a batch that did not find it, which is over now.
        while key not in (found := await self.run_batch((key,), load_one)):
            pass
        return found[key]

    async def run_batch(self, keys: Iterable[K], load: LoadMany[K, V]) -> dict[K, V]:
        """One `load` of the keys that nobody is loading, joined with the loads under way. What none found is absent."""
        wanted = tuple(keys)
        tasks = self.start(wanted, load)
        # Shielded: gather would else hand one waiter's cancellation on to the tasks.
        answers = await asyncio.gather(*(asyncio.shield(task) for task in tasks))
        return {key: answer[key] for answer in answers for key in wanted if key in answer}

    def start(self, keys: Sequence[K], load: LoadMany[K, V]) -> list[asyncio.Task[Mapping[K, V]]]:
        """Starts a load of the keys that nobody is loading; returns the distinct tasks that answer for all of them."""
        tasks = {id(task): task for key in keys if (task := self._flights.get(key)) is not None}
        missing = tuple(dict.fromkeys(key for key in keys if key not in self._flights))
        if missing:
            task = asyncio.get_running_loop().create_task(load(missing), context=contextvars.Context())
            self._flights.update(dict.fromkeys(missing, task))
            task.add_done_callback(lambda done: self._land(missing, done))
            tasks[id(task)] = task
        return list(tasks.values())

    def in_flight(self, key: K) -> asyncio.Task[Mapping[K, V]] | None:
        """The load of the key that later callers would join."""
        return self._flights.get(key)

    def forget(self, key: K) -> None:
        """Lets later callers start a load of their own: the one under way may have read too early."""
        self._flights.pop(key, None)

    def _land(self, keys: Sequence[K], task: asyncio.Task[Mapping[K, V]]) -> None:
        for key in keys:
            if self._flights.get(key) is task:
                del self._flights[key]
        # Looked at here, since all who waited may have gone.
        if not task.cancelled() and task.exception() is not None:
            _log.debug("shared load failed", keys=len(keys), error=repr(task.exception()))


class Cache(Generic[K, V]):
    """Up to `max_entries` values, least recently used out first.

    A value is served for `ttl_s` seconds; for `stale_s` more it is still served, while one load in the background
    replaces it. A load that fails is raised to those who wait for it and stored nowhere. Loaders run in an empty
    context (see SingleFlight): they must not need the caller's identity, for all get what they return.
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
        """The value if it is within its time to live; loads nothing."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and self._clock() < entry[1] else None

    async def get_or_load(self, key: K, loader: Callable[[K], Awaitable[V]]) -> V:
        """The value, loaded if need be. Raises what `loader` raises."""

        async def load_one(_: Sequence[K]) -> Mapping[K, V]:
            return {key: await loader(key)}

        while key not in (found := await self.batch_get_or_load((key,), load_one)):
            pass  # As in SingleFlight.run.
        return found[key]

    async def batch_get_or_load(self, keys: Sequence[K], loader_of_missing: LoadMany[K, V]) -> dict[K, V]:
        """The values by key, the missing ones loaded in one call; what that does not find is absent, not remembered."""
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
        """Stores a value newer than any load under way."""
        self._flight.forget(key)
        self._entries[key] = (value, self._clock() + self._ttl_s)

    def invalidate(self, key: K) -> None:
        """Drops the value; a load under way will answer those who wait for it, but not be stored."""
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
