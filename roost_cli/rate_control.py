"""Sends many calls with bounded concurrency, and retries them while the mesh is unavailable or overloaded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import grpc

from roost_cli.exit_codes import CommandError
from services.platform.rpc import contract, errors

T = TypeVar("T")

# Status codes after which a call is retried. The callers of this module send only calls that can be repeated safely:
# idempotent writes such as follows, tweets with idempotency keys, and reads.
_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # Servers that shut down cancel calls that they have not started.
    grpc.StatusCode.CANCELLED,
)
# Seconds between two retries. The time doubles with each retry, from the first to the last value. A random part of it
# spreads the retries of calls that failed at the same time.
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 5.0
# Seconds for which a call is retried. A restart of a service takes seconds. A longer failure has another cause, such as
# a fault or a rate limit.
RETRY_FOR_S = 60.0


async def with_retries(call: Callable[[], Awaitable[T]], *, retry_for_s: float = RETRY_FOR_S) -> T:
    """Returns the result of `call`. Retries it with exponential backoff on UNAVAILABLE, RESOURCE_EXHAUSTED,
    DEADLINE_EXCEEDED and CANCELLED.

    Raises AioRpcError at once for any other status, and CommandError if the call still fails after `retry_for_s`
    seconds.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + retry_for_s
    pause = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _TRANSIENT:
                raise
            refusal = errors.from_rpc(error)
            wait = max(pause * random.uniform(0.5, 1.0), refusal.retry_after_s or 0.0)  # noqa: S311 (jitter)
            if loop.time() + wait > until:
                limited = refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                hint = "; ROOST_RATE_LIMITS=off disables the rate limits of a mesh" if limited else ""
                raise CommandError(
                    f"retried for {retry_for_s:g} s, still {refusal.code.name}: {refusal.message}{hint}"
                ) from error
            await asyncio.sleep(wait)
            pause = min(pause * 2, LAST_PAUSE_S)


async def for_each(
    items: Iterable[T],
    work: Callable[[T], Awaitable[object]],
    *,
    concurrency: int,
    done: Callable[[], object] | None = None,
) -> None:
    """Awaits `work` for every item, for at most `concurrency` items at a time, and calls `done` after each item.

    At the first error, cancels the calls in progress and raises the error.
    """
    source = iter(items)

    async def worker() -> None:
        for item in source:
            await work(item)
            if done is not None:
                done()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors_found:
        raise errors_found.exceptions[0] from None


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields the items in lists of `size`; the last list may be shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def deadline_s(path: str) -> float:
    """Returns the deadline of a method in seconds, from its proto. `path` is `/package.Service/Method`."""
    return contract.methods()[path].policy.deadline_ms / 1000
