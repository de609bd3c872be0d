"""The call objects that stubs on the in-process channel return, and the code that runs the calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from time import monotonic
from typing import Any

import grpc
from google.protobuf.message import Message

from services.platform.ids.random_hex import random_hex
from services.platform.rpc import errors
from services.platform.rpc.by_reference import ByReference
from services.platform.rpc.context import Call, current_call
from services.platform.rpc.interceptors import InterceptedMethod
from services.platform.transport.message_guard import MutationGuard

# Seconds by which the deadline of a call is earlier than the deadline of the call that made it, so that the caller has
# time to respond.
DEADLINE_MARGIN_S = 0.001
# Maximum number of messages that a stream buffers. Beyond it the servicer waits until the reader has read one.
STREAM_AHEAD = 4

_END = object()


class _Context:
    """The servicer context of one in-process call. It stores the trailing metadata."""

    __slots__ = ("trailing",)

    def __init__(self) -> None:
        self.trailing: tuple[tuple[str, str | bytes], ...] = ()

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.trailing = tuple(trailing_metadata)


class BoundMethod:
    """A method bound to one caller: the path, the intercepted method, and the class of response that the stub expects.

    `endpoint` is None if this process does not serve the method. `caller` is the name of the calling service, "" for a
    client outside the mesh.
    """

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
        # `time()` of the event loop reads the same clock, but each look-up of the running loop costs a system call.
        now = monotonic()
        deadline = parent_call.deadline - DEADLINE_MARGIN_S
        # Comparisons, because `min` costs as much as the rest of this method.
        if deadline > (capped := now + endpoint.cap_s):
            deadline = capped
        if timeout is not None and deadline > now + timeout:
            deadline = now + timeout
        request_id = parent_call.request_id or random_hex(8)
        # Creates the Call without `Call(…)`, because the constructor of a named tuple is a function in Python.
        about = (parent_call.traceparent, deadline, parent_call.user_agent, parent_call.address)
        values = (self.path, parent_call.actor, self.caller, request_id, *about)
        return endpoint, tuple.__new__(Call, values)

    def sent(self, request: Message) -> Message:
        return request if self.checker is None else self.checker.freeze(self.path, request)

    def received(self, response: Message) -> Message:
        wanted = self.wanted
        if isinstance(response, ByReference):
            if wanted is response.wire_type:
                return response
            return (wanted or response.wire_type).FromString(response.SerializeToString())
        if self.checker is not None:
            response = self.checker.freeze(self.path, response)
            self.checker.verify()
        if wanted is None or type(response) is wanted:
            return response
        # The servicer returned a wire type: converts it to the message that the stub expects.
        return wanted.FromString(response.SerializeToString())


def rpc_error(error: errors.RoostError, trailing: Sequence[tuple[str, str | bytes]]) -> grpc.aio.AioRpcError:
    details = (*trailing, (errors.STATUS_KEY, error.status().SerializeToString()))
    return grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), grpc.aio.Metadata(*details), error.message)


class UnaryCall:
    """A unary call. Awaiting it returns the response or raises AioRpcError.

    The call starts when it is awaited and runs in the awaiting task, because a task of its own would double the cost of
    a call (measured). `trailing_metadata` and `code` run the call in a task of its own if the call has not ended. To
    run calls concurrently, pass the calls to asyncio.gather, which creates a task for each.
    """

    __slots__ = ("_above", "_context", "_error", "_request", "_response", "_target", "_task", "_timeout")

    def __init__(self, target: BoundMethod, request: Message, timeout: float | None) -> None:
        self._target = target
        self._request = request
        self._timeout = timeout
        # Stores the current call, from which actor and deadline are taken, because another task with another current
        # call may await this call later.
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

    def __await__(self) -> Generator[Any, None, Message]:
        return self._run().__await__() if self._task is None else self._task.__await__()

    async def _ended(self) -> None:
        if self._response is None and self._error is None:
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run())
            await asyncio.wait([self._task])

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Waits for the end of the call and returns its trailing metadata, also if the call failed."""
        await self._ended()
        return grpc.aio.Metadata(*self._context.trailing)

    async def code(self) -> grpc.StatusCode:
        """Waits for the end of the call and returns its status code.

        Returns CANCELLED if the call was cancelled or ended with an exception that is not an AioRpcError.
        """
        await self._ended()
        if isinstance(self._error, grpc.aio.AioRpcError):
            return self._error.code()
        return grpc.StatusCode.OK if self._error is None else grpc.StatusCode.CANCELLED

    def cancel(self) -> bool:
        """Cancels the call. Returns False if it has already ended.

        Does not stop a call that runs in the task that awaits it: cancel that task instead.
        """
        if self.done():
            return False
        if self._task is not None:
            return self._task.cancel()
        self._error = asyncio.CancelledError()
        return True

    def done(self) -> bool:
        """Returns True if the call has ended."""
        return self._response is not None or self._error is not None


class StreamCall:
    """A server stream in progress. Iterate over the StreamCall, or call `read` for one message at a time; both raise
    AioRpcError if the stream fails.

    The servicer runs in a task of its own, which starts when the StreamCall is created.
    """

    __slots__ = ("_context", "_ended", "_queue", "_target", "_task")

    def __init__(self, target: BoundMethod, request: Message, timeout: float | None) -> None:
        self._target = target
        self._context = _Context()
        self._queue: asyncio.Queue[Any] = asyncio.Queue(STREAM_AHEAD)
        self._ended = False
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
        """Returns the next message, grpc.aio.EOF after the last one. Raises AioRpcError if the stream fails.

        If the reading task is cancelled, the stream is cancelled too.
        """
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
        """Waits for the end of the stream and returns its trailing metadata, also if the stream failed."""
        await asyncio.wait([self._task])
        return grpc.aio.Metadata(*self._context.trailing)

    def cancel(self) -> bool:
        """Cancels the stream. Returns False if it has already ended."""
        return self._task.cancel()

    def done(self) -> bool:
        """Returns True if the stream has ended; messages in the buffer may still be unread."""
        return self._task.done()
