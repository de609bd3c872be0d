"""Lets one program make calls as many users: by access tokens, or by the task's context within the serving process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from roost_cli.connection import Metadata
from services.platform.rpc.context import Actor, Call, current_call


class Actors(Protocol):
    """Lets a program make each call as one of many users."""

    async def admit(self, user_ids: Iterable[int]) -> None:
        """Prepares to make calls as these users. Skips users who are unknown or not active."""

    def __contains__(self, user_id: int) -> bool:
        """Returns whether the user was admitted."""

    async def act_as(self, user_id: int) -> Metadata:
        """Returns the metadata that makes the next call of the current task a call of this user."""


class LocalActors:
    """Actors for in-process channels, which take the actor from the task's context, so that no tokens are needed."""

    def __init__(self) -> None:
        self._admitted: set[int] = set()

    async def admit(self, user_ids: Iterable[int]) -> None:
        self._admitted.update(user_ids)

    def __contains__(self, user_id: int) -> bool:
        return user_id in self._admitted

    async def act_as(self, user_id: int) -> Metadata:
        current_call.set(Call(actor=Actor(user_id)))
        return ()
