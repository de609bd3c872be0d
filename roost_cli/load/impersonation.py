"""How one caller acts as many users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from roost_cli.connection import Metadata
from services.platform.rpc.context import Actor, Call, current_call


class Actors(Protocol):
    """Gives calls their identity."""

    async def admit(self, user_ids: Iterable[int]) -> None:
        """Gets what is needed to act as these users; those unknown or not active are left out."""

    def __contains__(self, user_id: int) -> bool:
        """Whether a user was admitted."""

    async def act_as(self, user_id: int) -> Metadata:
        """The metadata that the task's next call is to carry, to be one of this user's."""


class LocalActors:
    """Inside the process that serves: the in-process channel takes the actor from the task's context, as between services."""

    def __init__(self) -> None:
        self._admitted: set[int] = set()

    async def admit(self, user_ids: Iterable[int]) -> None:
        self._admitted.update(user_ids)

    def __contains__(self, user_id: int) -> bool:
        return user_id in self._admitted

    async def act_as(self, user_id: int) -> Metadata:
        current_call.set(Call(actor=Actor(user_id)))
        return ()
