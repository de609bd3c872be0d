"""Waiting for conditions in tests. The bounds are far above what a loaded machine needs: reaching one is a failure, not
a slow test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

WITHIN_S = 30.0
POLL_S = 0.005
# Enough for a chain of callbacks without I/O, such as a cancelled task and those that wait for it.
LOOP_ITERATIONS = 20


async def wait_until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """Waits until `condition()` is true. Raises TimeoutError after `within_s` seconds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(POLL_S)


async def wait_until_async(condition: Callable[[], Awaitable[object]], within_s: float = WITHIN_S) -> None:
    """Waits until `await condition()` is true. Raises TimeoutError after `within_s` seconds."""
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(POLL_S)


def block_until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """Blocks the thread until `condition()` is true. Raises TimeoutError after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition is false after {within_s:g} s")
        time.sleep(POLL_S)


async def run_ready_tasks() -> None:
    """Lets tasks that wait for no I/O and no timer run until they end or wait."""
    for _ in range(LOOP_ITERATIONS):
        await asyncio.sleep(0)


async def forever() -> None:
    """Waits until it is cancelled."""
    await asyncio.Event().wait()
