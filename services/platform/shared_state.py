"""Ports of what the processes of a cluster share, for code that must not depend on Redis.

`services.platform.redis.shared_versions.SharedVersions` implements them. In a single-process mesh there is nothing to
share, and their users get None instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class SharedUserRef(Protocol):
    """A user's state and ref as identity publishes it to all processes. `data` is a serialized BatchGetUserRefsResponse
    with that one entry."""

    @property
    def data(self) -> bytes: ...


class SharedUserRefs(Protocol):
    """User refs that all processes share. Identity publishes each change here before it answers the writer."""

    async def users(self, ids: Sequence[int]) -> Sequence[SharedUserRef | None]:
        """Returns the refs in the order of `ids`; None if identity must be asked. Raises nothing."""


class AuthorVersions(Protocol):
    """Gives one version for each author, which changes whenever the author's tweets change. The tweet service publishes
    the new version before it answers the write."""

    async def author_versions(self, user_ids: Sequence[int]) -> Sequence[int | None]:
        """Returns the version of each author's tweets; None if it is unknown. A version changes with every change.
        Raises nothing."""
