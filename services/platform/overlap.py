"""Runs two coroutines at the same time if the first one waits for something."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from services.platform.rpc.deadlines import resume

T = TypeVar("T")
S = TypeVar("S")


async def overlapped(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, S]) -> tuple[T, S]:
    """Returns the results of `first` and `second`. If `first` suspends, `second` runs in a task of its own meanwhile;
    otherwise `second` runs after `first`, without a task.

    asyncio.gather would create two tasks, 30 µs, also for coroutines that are answered from memory and never suspend.
    If one raises, the other is cancelled and the error is raised.
    """
    try:
        awaitable = first.send(None)
    except StopIteration as returned:
        return returned.value, await second
    except BaseException:
        second.close()
        raise
    task = asyncio.ensure_future(second)
    try:
        return await resume(first, awaitable), await task
    finally:
        task.cancel()
