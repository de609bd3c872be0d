"""Versions of the cluster backend: the values of keys in Redis, which all processes share.

Most versions are numbers that `SharedVersions` replaces after each change. The version of a user is the whole entry that
identity shares through Redis, which contains a number that only grows: an equal entry is an unchanged one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from services.platform.redis.shared_versions import SharedVersions
from services.platform.versions import Snapshot, Versioned, Versions

# Seconds after which a cached value is loaded again although its versions are unchanged. So a cached value is outdated
# for at most this time if a process died after a change and before it published the new version.
MAX_AGE_S = 600.0


class RedisVersions(Versions):
    """Reads the versions of all keys of a call in one round trip to each Redis node. `monotonic` returns seconds. If
    Redis does not answer, the versions are unknown, so no cached value counts as current."""

    def __init__(self, shared: SharedVersions, monotonic: Callable[[], float]) -> None:
        self._shared = shared
        self._monotonic = monotonic

    def snapshot(self) -> Snapshot:
        return _RedisSnapshot(self)

    async def current(self, values: Sequence[Versioned[Any] | None]) -> Sequence[bool]:
        known = [value for value in values if value is not None]
        if not known:
            return [False] * len(values)
        found = await self.read(chain.from_iterable(value.keys for value in known))
        now = self._monotonic()

        def is_current(value: Versioned[Any] | None) -> bool:
            if value is None:
                return False
            expires, versions = value.stamp
            return bool(now < expires and tuple(map(found.get, value.keys)) == versions)

        return list(map(is_current, values))

    async def read(self, keys: Iterable[int]) -> Mapping[int, bytes]:
        """Returns the versions by version key. Leaves out keys whose version is VOLATILE or unknown, for example
        because Redis does not answer."""
        return await self._shared.read_known(dict.fromkeys(keys))

    def expiry(self) -> float:
        """Returns the time, in monotonic seconds, after which a value that is loaded now must be loaded again."""
        return self._monotonic() + MAX_AGE_S


class _RedisSnapshot(Snapshot):
    def __init__(self, versions: RedisVersions) -> None:
        self._versions = versions
        self._expires = versions.expiry()
        self._found: dict[int, bytes] = {}
        self._read: set[int] = set()

    async def read(self, keys: Iterable[int]) -> None:
        missing = [key for key in keys if key not in self._read]
        if missing:
            self._read.update(missing)
            self._found |= await self._versions.read(missing)

    def stamp(self, keys: Sequence[int]) -> Any:
        versions = tuple(map(self._found.get, keys))
        return None if None in versions else (self._expires, versions)
