"""Executes a compare-and-set (LWT) and determines its outcome even if the response is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from services.platform.cassandra.keyspace import Keyspace
from services.platform.rpc import errors

# Maximum number of attempts of one write; after that it fails with UNAVAILABLE. An attempt fails only if another
# process writes the same row first; the writers of one process queue per row.
MAX_ROUNDS = 12
# Bounds in seconds of the random delay before the next attempt: at most BACK_OFF_S after the first failed attempt,
# twice as long after each further one, and never longer than MAX_BACK_OFF_S. An LWT takes some milliseconds.
BACK_OFF_S = 0.005
MAX_BACK_OFF_S = 0.2


async def compare_and_set(
    keyspace: Keyspace, statement: str, values: tuple[Any, ...], is_applied: Callable[[], Awaitable[bool]]
) -> bool:
    """Runs the LWT and returns whether it was applied.

    If the reply is lost, calls `is_applied` once, which must read serially and return whether the row has the new
    value. If the row does not have the new value, raises the original error (UNAVAILABLE or DEADLINE_EXCEEDED), because
    the outcome is still unknown: perhaps the LWT did not run, perhaps another writer has overwritten its value.
    """
    try:
        return (await keyspace.execute_lwt(statement, *values))[0]
    except errors.RoostError as error:
        if not await is_applied():
            raise error from None
        return True


async def back_off(attempt: int) -> None:
    """Sleeps a random time before attempt `attempt` + 1; the bound doubles with each attempt, up to MAX_BACK_OFF_S."""
    # The delay only spreads writers; it needs no secure randomness.
    await asyncio.sleep(random.random() * min(BACK_OFF_S * 2**attempt, MAX_BACK_OFF_S))  # noqa: S311
