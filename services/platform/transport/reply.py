"""Functions that all handlers of a gRPC server use: they read the single request of a call, and end a call with a
status."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from services.platform.ids.random_hex import random_hex
from services.platform.rpc import errors
from services.platform.rpc.interceptors import unexpected_error
from services.platform.transport.call_log import log_call
from services.platform.transport.remote import REQUEST_ID_KEY, TRACE_KEY

# Maximum length in characters of a request id or traceparent from the metadata; the rest is ignored.
MAX_ID_CHARS = 128
# Seconds within which the request message must arrive, even if the deadline is later. Streams and health checks may
# have no deadline at all.
FIRST_MESSAGE_S = 10.0


class Reply:
    """The servicer context of one call: sends its trailing metadata, which include the request id, and its status.

    A Reply also remembers the trailing metadata, because an abort replaces trailing metadata that were set before. As a
    context manager it logs the call at the end of the call if `logged` is true.
    """

    __slots__ = ("_began", "_code", "_context", "_logged", "_method", "_sent", "request_id", "traceparent", "user_id")

    def __init__(self, method: str, metadata: Mapping[str, str], context: Any, *, logged: bool) -> None:
        self._began = monotonic()
        self._code = grpc.StatusCode.OK
        self._context = context
        self._logged = logged
        self._method = method
        self.request_id = metadata.get(REQUEST_ID_KEY, "")[:MAX_ID_CHARS] or random_hex(8)
        self.traceparent = metadata.get(TRACE_KEY, "")[:MAX_ID_CHARS] or _new_trace()
        self.user_id = 0
        self.set_trailing_metadata(())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        # A servicer may forward the trailing metadata of another call, with the request id of that call: that request
        # id is dropped.
        rest = (pair for pair in trailing_metadata if pair[0] != REQUEST_ID_KEY)
        self._sent: tuple[tuple[str, str | bytes], ...] = ((REQUEST_ID_KEY, self.request_id), *rest)
        self._context.set_trailing_metadata(self._sent)

    async def refuse(self, error: errors.RoostError) -> None:
        """Ends the call with the error. Raises grpc.aio's AbortError, so it never returns."""
        self._code = error.code
        await abort(self._context, error, self._sent)

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._logged:
            return
        ended_early = kind is not None and not issubclass(kind, Exception)
        code = grpc.StatusCode.CANCELLED if ended_early else self._code
        log_call(self._method, code, self._began, self.user_id, self.request_id, self.traceparent)


def _new_trace() -> str:
    """Returns a W3C traceparent with a new trace id and the sampled flag."""
    return f"00-{random_hex(16)}-{random_hex(8)}-01"


async def read_message(context: Any, deadline: float) -> bytes:
    """Returns the serialised request of a call. `deadline` is in seconds of the event loop's clock.

    Raises DEADLINE_EXCEEDED if no request arrives by `deadline` or within FIRST_MESSAGE_S seconds, INVALID_ARGUMENT if
    the call ends without a request.
    """
    by = min(deadline, asyncio.get_running_loop().time() + FIRST_MESSAGE_S)
    try:
        async with asyncio.timeout_at(by):
            data = await context.read()
    except TimeoutError:
        raise errors.deadline_exceeded("no request message arrived in time") from None
    if data is grpc.aio.EOF:
        raise errors.invalid_argument("the call ended without a request")
    return data  # type: ignore[no-any-return]


def parse_message(cls: type[Message], data: bytes) -> Message:
    """Returns the request. Raises INVALID_ARGUMENT if `data` is not a serialised `cls`."""
    try:
        return cls.FromString(data)
    except DecodeError:
        raise errors.invalid_argument("the request is not a valid message") from None


def to_roost_error(error: Exception, method: str, request_id: str) -> errors.RoostError:
    """Returns a RoostError unchanged. Logs any other exception and returns INTERNAL with an error id instead."""
    return error if isinstance(error, errors.RoostError) else unexpected_error(error, method, request_id)


async def abort(context: Any, error: errors.RoostError, sent: tuple[tuple[str, str | bytes], ...]) -> None:
    """Ends the call with the error, its status details and the trailing metadata `sent`. Raises AbortError: it never
    returns."""
    details = [*sent, (errors.STATUS_KEY, error.status().SerializeToString())]
    if error.retry_after_s is not None:
        # The header `retry-after` is for clients that do not parse the status details, whose RetryInfo contains the
        # same delay.
        details.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    await context.abort(error.code, error.message, tuple(details))


def serialize(message: Message) -> bytes:
    return message.SerializeToString()
