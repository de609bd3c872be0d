"""Lets a program make calls as many users: with access tokens, or in the process that serves the calls by
`current_call`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from roost_cli.connection import Metadata
from services.platform.rpc.context import Actor, Call, current_call


class Actors(Protocol):
    """Lets a program make each call as one of many users."""

    async def admit(self, user_ids: Iterable[int]) -> None:
        """Makes `act_as` available for the users, for example by minting their access tokens. Skips users who are
        unknown, suspended or deactivated."""

    def __contains__(self, user_id: int) -> bool:
        """Returns whether `act_as` is available for the user."""

    async def act_as(self, user_id: int) -> Metadata:
        """Returns metadata for a call as this user. The current asyncio task must send the call before it calls
        `act_as` again."""


class LocalActors:
    """Actors for in-process channels, which need no tokens: they take the actor from `current_call` of the asyncio
    task."""

    def __init__(self) -> None:
        self._admitted: set[int] = set()

    async def admit(self, user_ids: Iterable[int]) -> None:
        self._admitted.update(user_ids)

    def __contains__(self, user_id: int) -> bool:
        return user_id in self._admitted

    async def act_as(self, user_id: int) -> Metadata:
        current_call.set(Call(actor=Actor(user_id)))
        return ()
