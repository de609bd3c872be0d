"""Defines the ports of data that the processes of a mesh share through Redis, for code that must not depend on Redis.

`services.platform.redis.shared_versions.SharedVersions` implements them. A single-process mesh shares no data with
other processes; code that uses these ports gets None there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class SharedUserRef(Protocol):
    """The user reference of one user, as the identity service writes it to Redis. `data` is a serialized
    BatchGetUserRefsResponse that contains only this user."""

    @property
    def data(self) -> bytes: ...


class SharedUserRefs(Protocol):
    """The user references that all processes share. The identity service writes each changed user reference to Redis
    before it answers the writer."""

    async def users(self, ids: Sequence[int]) -> Sequence[SharedUserRef | None]:
        """Returns the user references in the order of `ids`; None for a user whose user reference is missing or cannot
        be read: then call the identity service. Raises no error."""
