"""Calls of the in-process channel: what a stub returns, and what runs behind it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Generator, Sequence
from time import monotonic
from typing import Any

import grpc
from google.protobuf.message import Message

from services.platform.caching import read_tracking
from services.platform.rpc import errors
from services.platform.rpc.context import Call, current_call
from services.platform.rpc.interceptors import InterceptedMethod
from services.platform.transport.message_guard import MutationGuard

# A callee gets this much less time than its caller, so that the caller can still answer.
DEADLINE_MARGIN_S = 0.001
# Messages a stream may be ahead of its reader.
STREAM_AHEAD = 4

_END = object()


class _Context:
    """The servicer's context of one in-process call."""

    __slots__ = ("trailing",)

    def __init__(self) -> None:
        self.trailing: tuple[tuple[str, str | bytes], ...] = ()

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.trailing = tuple(trailing_metadata)


class BoundMethod:
    """A method as one caller sees it: where it is served and which class the caller wants back."""

    __slots__ = ("caller", "checker", "endpoint", "path", "wanted")

    def __init__(
        self,
        path: str,
        endpoint: InterceptedMethod | None,
        caller: str,
        checker: MutationGuard | None,
        deserializer: Any,
    ) -> None:
        self.path = path
        self.endpoint = endpoint
        self.caller = caller
        self.checker = checker
        # Generated stubs pass `Message.FromString`, a bound class method.
        self.wanted: type[Message] | None = getattr(deserializer, "__self__", None)

    def begin(self, parent_call: Call, timeout: float | None) -> tuple[InterceptedMethod, Call]:
        endpoint = self.endpoint
        if endpoint is None:
            raise errors.unimplemented(f"{self.path} is not served here")
        # The loops' own clock; asking the running loop for it costs a system call each time.
        now = monotonic()
        deadline = parent_call.deadline - DEADLINE_MARGIN_S
        # Spelt out: `min` costs as much as the rest of this method.
        if deadline > (capped := now + endpoint.cap_s):
            deadline = capped
        if timeout is not None and deadline > now + timeout:
            deadline = now + timeout
        request_id = parent_call.request_id or secrets.token_hex(8)
        # The tuple that Call(…) makes, without the function in Python that a named tuple puts before it.
        about = (parent_call.traceparent, deadline, parent_call.user_agent, parent_call.address)
        values = (self.path, parent_call.actor, self.caller, request_id, *about)
        return endpoint, tuple.__new__(Call, values)

    def sent(self, request: Message) -> Message:
        return request if self.checker is None else self.checker.freeze(self.path, request)

    def received(self, response: Message) -> Message:
        if self.checker is not None:
            response = self.checker.freeze(self.path, response)
            self.checker.verify()
        if self.wanted is None or type(response) is self.wanted:
            return response
        # A twin, wanted as the message it stands for.
        return self.wanted.FromString(response.SerializeToString())


def rpc_error(error: errors.RoostError, trailing: Sequence[tuple[str, str | bytes]]) -> grpc.aio.AioRpcError:
    details = (*trailing, (errors.STATUS_KEY, error.status().SerializeToString()))
    return grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), grpc.aio.Metadata(*details), error.message)


class UnaryCall:
    """One unary call; awaiting it gives the response or raises AioRpcError.

    It runs in the task that awaits it, and begins then: a task of its own would double the cost of a call
    (measured). Calls that are to run side by side go through asyncio.gather, which gives each a task.
    """

    __slots__ = ("_above", "_context", "_error", "_request", "_response", "_target", "_task", "_timeout")

    def __init__(self, target: BoundMethod, request: Message, timeout: float | None) -> None:
        self._target = target
        self._request = request
        self._timeout = timeout
        # In whose name it is made is settled now, whoever awaits it later.
        self._above = current_call.get()
        self._context = _Context()
        self._task: asyncio.Task[Message] | None = None
        self._response: Message | None = None
        self._error: BaseException | None = None

    async def _run(self) -> Message:
        if self._error is not None:
            raise self._error
        if self._response is not None:
            return self._response
        before = current_call.get()
        reading = read_tracking.current_read_set()
        notes = 0 if reading is None else reading.notes
        target = self._target
        try:
            endpoint, call = target.begin(self._above, self._timeout)
            trusted = target.checker is None and bool(target.caller)
            answer = await endpoint.unary(target.sent(self._request), call, self._context, trusted_local=trusted)
            self._response = target.received(answer)
            return self._response
        except errors.RoostError as error:
            self._error = rpc_error(error, self._context.trailing)
            raise self._error from None
        except BaseException as error:
            self._error = error
            raise
        finally:
            current_call.set(before)
            if reading is not None and (self._response is None or reading.notes == notes):
                # It failed, and its caller may make do without; or whoever served it does not say what it read.
                reading.mark_uncacheable()

    def __await__(self) -> Generator[Any, None, Message]:
        return self._run().__await__() if self._task is None else self._task.__await__()

    async def _ended(self) -> None:
        if self._response is None and self._error is None:
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run())
            await asyncio.wait([self._task])

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What the servicer sent behind its answer; waits for the end of the call."""
        await self._ended()
        return grpc.aio.Metadata(*self._context.trailing)

    async def code(self) -> grpc.StatusCode:
        """The call's status; waits for its end."""
        await self._ended()
        if isinstance(self._error, grpc.aio.AioRpcError):
            return self._error.code()
        return grpc.StatusCode.OK if self._error is None else grpc.StatusCode.CANCELLED

    def cancel(self) -> bool:
        """Cancels the call, unless it has begun in a task that awaits it: cancel that one."""
        if self.done():
            return False
        if self._task is not None:
            return self._task.cancel()
        self._error = asyncio.CancelledError()
        return True

    def done(self) -> bool:
        """Whether it ended."""
        return self._response is not None or self._error is not None


class StreamCall:
    """One server stream under way: iterate it, or `read()` message by message."""

    __slots__ = ("_context", "_ended", "_queue", "_target", "_task")

    def __init__(self, target: BoundMethod, request: Message, timeout: float | None) -> None:
        self._target = target
        self._context = _Context()
        self._queue: asyncio.Queue[Any] = asyncio.Queue(STREAM_AHEAD)
        self._ended = False
        read_tracking.mark_uncacheable()
        self._task = asyncio.get_running_loop().create_task(self._run(request, timeout))

    async def _run(self, request: Message, timeout: float | None) -> None:
        end: Any = _END
        try:
            endpoint, call = self._target.begin(current_call.get(), timeout)
            async for message in endpoint.stream(self._target.sent(request), call, self._context):
                await self._queue.put(self._target.received(message))
        except errors.RoostError as error:
            end = rpc_error(error, self._context.trailing)
        await self._queue.put(end)

    async def read(self) -> Any:
        """The next message; grpc.aio.EOF at the end."""
        if self._ended:
            return grpc.aio.EOF
        try:
            item = await self._queue.get()
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if isinstance(item, grpc.aio.AioRpcError):
            self._ended = True
            raise item
        self._ended = item is _END
        return grpc.aio.EOF if self._ended else item

    async def __aiter__(self) -> AsyncIterator[Message]:
        try:
            while (message := await self.read()) is not grpc.aio.EOF:
                yield message
        finally:
            self._task.cancel()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What the servicer sent behind its last message."""
        await asyncio.wait([self._task])
        return grpc.aio.Metadata(*self._context.trailing)

    def cancel(self) -> bool:
        """Cancels the stream."""
        return self._task.cancel()

    def done(self) -> bool:
        """Whether it ended."""
        return self._task.done()
