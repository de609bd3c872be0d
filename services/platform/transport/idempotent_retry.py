"""A write under an idempotency key, sent again where its answer was lost: a second one with the same key finds the first.

gRPC retries by the method alone, and a post without a key must never be sent twice; so these retries are ours. They are few, and end with
the call's deadline.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Generator
from typing import Any

import grpc

from services.platform.rpc.contract import Method

# Attempts of one call, the first included, as of methods that are safe to retry.
ATTEMPTS = 3
# A drain answers CANCELLED to calls that it has not accepted.
CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# Rests grow threefold from the first; another instance takes the next attempt at once.
FIRST_REST_S, LONGEST_REST_S, GROWTH = 0.02, 0.5, 3

KEY_FIELD = "idempotency_key"


def takes_key(method: Method | None) -> bool:
    """Whether calls of a method may carry a key, and are not retried without one."""
    return method is not None and not method.policy.retry_safe and KEY_FIELD in method.request.DESCRIPTOR.fields_by_name


class RetryingCall:
    """One unary call; awaiting it gives the response or raises the AioRpcError of the last attempt."""

    __slots__ = ("_start", "_task", "_trailing")

    def __init__(self, start: Callable[[float | None], Any], timeout: float | None) -> None:
        """`start` makes one attempt that may take so many seconds (None: any time); all of them share `timeout`."""
        self._start = start
        self._trailing: Any = grpc.aio.Metadata()
        # A task: a call begins when it is made, whenever it is awaited.
        self._task = asyncio.get_running_loop().create_task(self._run(timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    async def trailing_metadata(self) -> Any:
        """What the servicer sent behind its answer."""
        await self._task
        return self._trailing

    def cancel(self) -> bool:
        """Ends the attempt under way, and makes no other."""
        return self._task.cancel()

    async def _run(self, timeout: float | None) -> Any:
        loop = asyncio.get_running_loop()
        with_deadline = None if timeout is None else loop.time() + timeout
        rest_s, left_s = FIRST_REST_S, timeout
        for attempt in range(1, ATTEMPTS + 1):
            call = self._start(left_s)
            try:
                response = await call
                self._trailing = await call.trailing_metadata()
                return response
            except grpc.aio.AioRpcError as error:
                wait_s = rest_s * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load)
                left_s = None if with_deadline is None else with_deadline - loop.time() - wait_s
                if attempt == ATTEMPTS or error.code() not in CODES or (left_s is not None and left_s <= 0):
                    raise
            await asyncio.sleep(wait_s)
            rest_s = min(rest_s * GROWTH, LONGEST_REST_S)
        raise AssertionError("the last attempt answers or raises")
