"""Compare-and-set, to the point where its outcome is known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from services.platform.cassandra.keyspace import Keyspace
from services.platform.rpc import errors

# Rounds of one write against others who change the same row. Writes of one process queue for a row, so it takes as many processes to
# use them up.
MAX_ROUNDS = 12
# A round of compare-and-set takes some milliseconds: those who met wait up to this much, doubled each time, and meet no more.
BACK_OFF_S = 0.005
MAX_BACK_OFF_S = 0.2


async def compare_and_set(
    keyspace: Keyspace, statement: str, values: tuple[Any, ...], stands: Callable[[], Awaitable[bool]]
) -> bool:
    """Whether it was applied. Where that is unknown `stands` is asked once, which looks, serially, if the row is as it was to become.

    UNAVAILABLE or DEADLINE_EXCEEDED where it stays unknown.
    """
    try:
        return (await keyspace.execute_lwt(statement, *values))[0]
    except errors.RoostError as error:
        if not await stands():
            # Overtaken by another, or never applied: not told apart.
            raise error from None
        return True


async def back_off(attempt: int) -> None:
    """Waits before the next round, longer each time and at random."""
    # Only to keep writers apart: no secret.
    await asyncio.sleep(random.random() * min(BACK_OFF_S * 2**attempt, MAX_BACK_OFF_S))  # noqa: S311
