"""Sends concurrent unary calls to one target as one batch: a batch of forty calls takes about as much CPU as a single
call.

No timer delays calls to collect them. While MAX_BATCHES batches are in progress, calls are queued; when one ends, the
queued calls are sent together, up to MAX_ITEMS or MAX_BYTES. A single queued call is sent as an ordinary RPC.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import grpc
from prometheus_client import Histogram
from roost.batch.v1 import batch_service_pb2 as pb
from roost.batch.v1 import batch_service_pb2_grpc as pb_grpc

from services.platform.ids.random_hex import random_hex
from services.platform.rpc import errors
from services.platform.rpc.context import Call, current_call
from services.platform.rpc.contract import Method, methods
from services.platform.transport.base import AbstractChannel
from services.platform.transport.inprocess_calls import rpc_error
from services.platform.transport.remote import time_left

# Maximum number of batches in progress to one target; beyond it calls are queued. The second batch keeps the connection
# busy while the target serves the first.
MAX_BATCHES = 2
# Seconds after which a batch in progress no longer counts, so a slow call in it does not delay the next batches.
SLOW_S = 0.005
# Maximum number of calls, and of bytes of payloads and tokens, in one batch; further calls go into the next batch. One
# event loop serves 200 calls in some 50 ms; 512 KiB are half of the largest message that a server accepts. A single
# larger call is sent alone.
MAX_ITEMS = 200
MAX_BYTES = 512 * 1024
# Maximum number of queued calls to one target. Beyond it calls fail with UNAVAILABLE: the target is too slow, and they
# would exceed their deadlines.
MAX_QUEUED = 2_000
# Longest deadline in seconds of a method whose calls are batched. Methods with a longer deadline are called rarely, and
# would delay the responses of their batch.
LONGEST_METHOD_S = 5.0

_sizes = Histogram(
    "roost_batch_calls",
    "Calls in one batch, sent from one process to another.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)


class _QueuedCall(NamedTuple):
    """A queued call.

    `alone` starts it as an ordinary RPC; `item` is the same call as a part of a batch. `future` gets the response and
    its trailing metadata, or an AioRpcError. `parse` decodes the response. `deadline` is in seconds of the event
    loop's clock.
    """

    alone: Callable[[], Any]
    item: pb.CallItem
    future: asyncio.Future[Any]
    parse: Callable[[bytes], Any]
    deadline: float


class BatchedCall:
    """A unary call that may be sent in a batch. Awaiting it returns the response or raises AioRpcError."""

    __slots__ = ("_future", "_trailing")

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        self._trailing: grpc.aio.Metadata = grpc.aio.Metadata()

    def __await__(self) -> Generator[Any, None, Any]:
        response, self._trailing = yield from self._future
        return response

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """Waits for the response and returns its trailing metadata. Raises AioRpcError if the call fails."""
        await self
        return self._trailing

    def cancel(self) -> bool:
        """Cancels the call and returns True; returns False if it has ended.

        A queued call is not sent. A call that was sent is still served, and its response is dropped.
        """
        return self._future.cancel()


class BatchingChannel(AbstractChannel):
    """Batches unary calls of retry-safe methods with a deadline of up to LONGEST_METHOD_S over `channel`.

    Passes all other calls on unchanged, also those with metadata. A call fails with UNAVAILABLE if MAX_QUEUED calls
    are queued.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._call_batch: Any = pb_grpc.BatchServiceStub(channel).Call
        self._queue: deque[_QueuedCall] = deque()
        self._in_progress = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_scheduled = False

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        start = getattr(self._channel, kind)(method, *args, **kwargs)
        contract = methods().get(method)
        if kind != "unary_unary" or contract is None or not _fits(contract):
            return start
        parse = kwargs.get("response_deserializer", args[1] if len(args) > 1 else None)

        def begin(request: Any, *, timeout: float | None = None, metadata: Any = (), **_: Any) -> Any:
            if metadata:
                return start(request, timeout=timeout, metadata=metadata)
            return self._enqueue(contract, start, parse, request, timeout)

        return begin

    def _enqueue(self, method: Method, start: Any, parse: Any, request: Any, timeout: float | None) -> BatchedCall:
        if len(self._queue) >= MAX_QUEUED:
            raise rpc_error(
                errors.unavailable(f"{method.service_name} is overloaded: retry later", retry_after_s=1), ()
            )
        call = current_call.get()
        left = time_left(method, timeout)
        left_s = method.policy.deadline_ms / 1000 if left is None else left
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        item = pb.CallItem(
            method=method.path,
            authorization=f"Bearer {call.actor.token}" if call.actor.token else "",
            deadline_ms=max(int(left_s * 1000), 1),
            traceparent=call.traceparent,
            request_id=call.request_id or random_hex(8),
            payload=request.SerializeToString(),
            client_address=call.address,
        )

        def alone() -> Any:
            # Sets the current call of the task that made this call: the channel takes token, trace and address from it.
            before = current_call.set(call)
            try:
                return start(request, timeout=left_s)
            finally:
                current_call.reset(before)

        self._queue.append(_QueuedCall(alone, item, future, parse, loop.time() + left_s))
        if not self._flush_scheduled:
            # Sends at the next iteration of the event loop, so calls that are made in the same iteration share a batch.
            self._flush_scheduled = True
            loop.call_soon(self._flush)
        return BatchedCall(future)

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self._queue and self._in_progress < MAX_BATCHES:
            group = self._next_batch()
            self._in_progress += 1
            task = asyncio.get_running_loop().create_task(self._send(group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[_QueuedCall]:
        group: list[_QueuedCall] = []
        size = 0
        while self._queue and len(group) < MAX_ITEMS:
            queued = self._queue[0]
            size += len(queued.item.payload) + len(queued.item.authorization)
            if group and size > MAX_BYTES:
                break
            self._queue.popleft()
            if not queued.future.done():
                group.append(queued)
        return group

    async def _send(self, group: list[_QueuedCall]) -> None:
        # A batch has no actor. Without this line, the task would inherit the current call of the task that created it.
        current_call.set(Call())
        counted = True

        def uncount() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._in_progress -= 1
                self._flush()

        slow = asyncio.get_running_loop().call_later(SLOW_S, uncount)
        _sizes.observe(len(group))
        try:
            if len(group) == 1:
                await _send_single(group[0])
            elif group:
                await self._send_batch(group)
        finally:
            slow.cancel()
            uncount()

    async def _send_batch(self, group: list[_QueuedCall]) -> None:
        now = asyncio.get_running_loop().time()
        for queued in group:
            queued.item.deadline_ms = max(int((queued.deadline - now) * 1000), 1)
        longest_s = max(queued.deadline for queued in group) - now
        request = pb.CallRequest(items=[queued.item for queued in group])
        timers = [asyncio.get_running_loop().call_at(queued.deadline, _time_out, queued.future) for queued in group]
        try:
            answer = await self._call_batch(request, timeout=max(longest_s, 0.001))
            for queued, result in zip(group, answer.results, strict=True):
                _settle(queued, result)
        except grpc.aio.AioRpcError:
            # The batch as a whole failed. Its calls are retry-safe, so each is sent as an ordinary RPC, which gRPC
            # retries within the channel's retry budget.
            await asyncio.gather(*(_send_single(queued) for queued in group if not queued.future.done()))
        except Exception as error:
            _fail(group, error)
        finally:
            for timer in timers:
                timer.cancel()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Returns the state of the wrapped channel."""
        return self._channel.get_state(try_to_connect)

    async def close(self, grace: float | None = None) -> None:
        """Fails all queued calls with UNAVAILABLE and closes the wrapped channel."""
        refusal = rpc_error(errors.unavailable("the channel is closed: the process is stopping"), ())
        _fail(self._queue, refusal)
        self._queue.clear()
        await self._channel.close(grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _fits(method: Method) -> bool:
    deadline_ms = method.policy.deadline_ms
    return method.policy.retry_safe and 0 < deadline_ms <= LONGEST_METHOD_S * 1000


async def _send_single(queued: _QueuedCall) -> None:
    try:
        call = queued.alone()
        response = await call
        trailing = await call.trailing_metadata()
    except BaseException as error:
        _fail([queued], error)
        if not isinstance(error, Exception):
            raise
        return
    if not queued.future.done():
        queued.future.set_result((response, trailing))


def _settle(queued: _QueuedCall, result: pb.CallResult) -> None:
    if queued.future.done():
        return
    trailing = grpc.aio.Metadata(*result.trailing_metadata.items())
    if result.code == 0:
        queued.future.set_result((queued.parse(result.payload), trailing))
        return
    details = ((errors.STATUS_KEY, result.details),) if result.details else ()
    code = errors.code_of(result.code)
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing, *details), result.message)
    queued.future.set_exception(error)


def _time_out(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(rpc_error(errors.deadline_exceeded(), ()))


def _fail(group: Iterable[_QueuedCall], error: BaseException) -> None:
    for queued in group:
        if not queued.future.done():
            cancelled = isinstance(error, asyncio.CancelledError)
            queued.future.set_exception(
                rpc_error(errors.unavailable("the call was cut off: the process is stopping"), ())
                if cancelled
                else error
            )
