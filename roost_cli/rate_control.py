"""Many calls at a bounded pace, each with patience for a mesh that is busy."""

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

# Everything sent this way may be repeated: follows are idempotent, tweets carry keys, the rest are reads.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # What a server that stops says of calls it has not begun.
    grpc.StatusCode.CANCELLED,
)
# Pauses double from the first to the last; with jitter, so that callers refused together do not come back together.
FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 5.0
# A restart takes seconds. What lasts longer than this is a fault, or a limit that will not pass soon.
PATIENCE_S = 60.0


async def patiently(call: Callable[[], Awaitable[T]], *, patience_s: float = PATIENCE_S) -> T:
    """The call's answer, repeated with growing pauses while the mesh is unavailable or exhausted.

    Raises the AioRpcError of any other code at once, and CommandError when `patience_s` are over.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    pause = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                raise
            refusal = errors.from_rpc(error)
            wait = max(pause * random.uniform(0.5, 1.0), refusal.retry_after_s or 0.0)  # noqa: S311 (jitter)
            if loop.time() + wait > until:
                limited = refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                hint = " (rate limits? ROOST_RATE_LIMITS=off)" if limited else ""
                raise CommandError(
                    f"gave up after {patience_s:g} s of {refusal.code.name}: {refusal.message}{hint}"
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
    """Does `work` for every item in order, `concurrency` at a time; the first error ends it all and is raised."""
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
    """The items in lists of `size`; the last may be shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def deadline_s(path: str) -> float:
    """The deadline that the contract gives a method, in seconds; `path` is gRPC's name of it."""
    return contract.methods()[path].policy.deadline_ms / 1000
