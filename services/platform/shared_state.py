"""Defines ports of data that the processes of a cluster share, for code that must not depend on Redis.

`services.platform.redis.shared_versions.SharedVersions` implements them. A single-process mesh shares no data with
other processes; code that uses these ports gets None there.
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
        """Returns the refs in the order of `ids`; None for a user whose ref is not shared: then call identity. Raises
        no error."""


class AuthorVersions(Protocol):
    """Versions of authors. The version of an author changes whenever the author's tweets change. The tweet service
    publishes the new version before it answers the write."""

    async def author_versions(self, user_ids: Sequence[int]) -> Sequence[int | None]:
        """Returns the version of each author's tweets, in the order of `user_ids`; None if it is unknown. Raises no
        error."""
