"""Versions for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from services.platform.versions import Kind, MemoryVersions, Snapshot, Versioned, VersionPublisher, Versions


class UnknownVersions(Versions, Snapshot):
    """Knows no versions, so that nothing is cached."""

    def snapshot(self) -> Snapshot:
        return self

    async def current(self, values: Sequence[Versioned[Any] | None]) -> Sequence[bool]:
        return [False] * len(values)

    async def read(self, keys: Iterable[int]) -> None:
        pass

    def stamp(self, keys: Sequence[int]) -> Any:
        return None


def all_versions() -> tuple[MemoryVersions, VersionPublisher]:
    """Returns versions that are all known, and their publisher."""
    versions = MemoryVersions()
    return versions, versions.publisher(*Kind)
