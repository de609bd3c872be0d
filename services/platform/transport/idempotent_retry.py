"""Retries writes that carry an idempotency key: a repeat with the same key returns the result of the first attempt.

gRPC's own retries are configured by method, but a write without a key must never be sent twice. So this module decides
for each call. It makes up to ATTEMPTS attempts, all within the deadline of the call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Generator
from typing import Any

import grpc

from services.platform.rpc.contract import Method

# Maximum number of attempts per call, including the first. `remote` uses the same values for the methods that gRPC
# retries.
ATTEMPTS = 3
# Status codes that are retried. A draining server answers CANCELLED to calls that it has not accepted.
RETRIED_CODES = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# Backoff between two attempts, in seconds: FIRST_BACKOFF_S, then BACKOFF_MULTIPLIER times the previous one, up to
# MAX_BACKOFF_S. The first is short, because the next attempt usually goes to another instance.
FIRST_BACKOFF_S, MAX_BACKOFF_S, BACKOFF_MULTIPLIER = 0.02, 0.5, 3

KEY_FIELD = "idempotency_key"


def takes_key(method: Method | None) -> bool:
    """Returns True if the method is not retry-safe and its request has a field for an idempotency key.

    gRPC does not retry such a method; its calls are retried here if they carry a key. `method` is None for a method
    outside the contract; then returns False.
    """
    return method is not None and not method.policy.retry_safe and KEY_FIELD in method.request.DESCRIPTOR.fields_by_name


class RetryingCall:
    """A unary call with retries. Awaiting it returns the response or raises the AioRpcError of the last attempt.

    Retries UNAVAILABLE and CANCELLED, up to ATTEMPTS attempts.
    """

    __slots__ = ("_start", "_task", "_trailing")

    def __init__(self, start: Callable[[float | None], Any], timeout: float | None) -> None:
        """Starts the call. Must run in an event loop.

        `start` starts one attempt with the given timeout in seconds (None: unlimited). `timeout` limits all attempts
        and the backoff together.
        """
        self._start = start
        self._trailing: Any = grpc.aio.Metadata()
        # A task, because a call of grpc.aio starts when it is made, not when it is awaited.
        self._task = asyncio.get_running_loop().create_task(self._run(timeout))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    async def trailing_metadata(self) -> Any:
        """Waits for the response and returns its trailing metadata. Raises AioRpcError if the call fails."""
        await self._task
        return self._trailing

    def cancel(self) -> bool:
        """Cancels the attempt in progress and all further ones. Returns False if the call has already ended."""
        return self._task.cancel()

    async def _run(self, timeout: float | None) -> Any:
        loop = asyncio.get_running_loop()
        with_deadline = None if timeout is None else loop.time() + timeout
        backoff_s, left_s = FIRST_BACKOFF_S, timeout
        for attempt in range(1, ATTEMPTS + 1):
            call = self._start(left_s)
            try:
                response = await call
                self._trailing = await call.trailing_metadata()
                return response
            except grpc.aio.AioRpcError as error:
                wait_s = backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load)
                left_s = None if with_deadline is None else with_deadline - loop.time() - wait_s
                if attempt == ATTEMPTS or error.code() not in RETRIED_CODES or (left_s is not None and left_s <= 0):
                    raise
            await asyncio.sleep(wait_s)
            backoff_s = min(backoff_s * BACKOFF_MULTIPLIER, MAX_BACKOFF_S)
        raise AssertionError("the last attempt returns or raises")
