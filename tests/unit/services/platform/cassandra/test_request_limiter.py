"""The request limiter: bounds requests, queues in order, and releases slots exactly once, when results arrive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from services.platform.cassandra.request_limiter import RequestLimiter
from services.platform.rpc import errors


class Request:
    """Stands for the driver's ResponseFuture; the test completes it from another thread, as the driver does."""

    def __init__(self) -> None:
        self._callbacks: tuple[Callable[[Any], None], Callable[[Any], None]] | None = None

    def add_callbacks(self, succeed: Callable[[Any], None], fail: Callable[[Any], None]) -> None:
        self._callbacks = succeed, fail

    def answer(self, rows: Any = None, error: Exception | None = None) -> None:
        assert self._callbacks is not None
        succeed, fail = self._callbacks
        call, value = (succeed, rows) if error is None else (fail, error)
        thread = threading.Thread(target=call, args=(value,))
        thread.start()
        thread.join()


class Rig:
    def __init__(self, max_in_flight: int = 4, max_queued: int = 3) -> None:
        self.in_flight = RequestLimiter(max_in_flight, max_queued)
        self.sent: list[Request] = []

    def ask(self, count: int = 1, within_s: float = 30.0) -> asyncio.Task[Any]:
        deadline = asyncio.get_running_loop().time() + within_s
        return asyncio.create_task(self.in_flight.run([self._send] * count, deadline))

    def _send(self) -> Request:
        self.sent.append(Request())
        return self.sent[-1]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_run_returns_results_in_request_order_with_errors() -> None:
    rig = Rig()
    task = rig.ask(3)
    await settle()
    failure = ValueError("no")
    rig.sent[2].answer([(2,)])
    rig.sent[0].answer(error=failure)
    await settle()
    assert not task.done()
    rig.sent[1].answer(None)
    answers = await task
    assert [(answer.rows, answer.error) for answer in answers] == [(None, failure), (None, None), ([(2,)], None)]
    assert [answer.future for answer in answers] == rig.sent


async def test_run_send_failure_is_result() -> None:
    rig = Rig()

    def fail() -> Any:
        raise RuntimeError("shut down")

    (answer,) = await rig.in_flight.run([fail], asyncio.get_running_loop().time() + 1)
    assert isinstance(answer.error, RuntimeError)
    assert rig.in_flight._free == 4


async def test_run_beyond_limit_queues_in_order() -> None:
    rig = Rig()
    first, large, small = rig.ask(3), rig.ask(4), rig.ask(1)
    await settle()
    # There is a slot for the small request, but it does not overtake the large one.
    assert len(rig.sent) == 3
    for request in rig.sent[:3]:
        request.answer()
    await first
    await settle()
    assert len(rig.sent) == 7
    for request in rig.sent[3:]:
        request.answer()
    await large
    await settle()
    rig.sent[7].answer()
    await small
    assert rig.in_flight._free == 4


async def test_run_full_queue_is_rejected() -> None:
    rig = Rig()
    first = rig.ask(4)
    await settle()
    waiting = [rig.ask(1) for _ in range(3)]
    await settle()
    with pytest.raises(errors.RoostError) as caught:
        await rig.ask(1)
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    for task in (first, *waiting):
        task.cancel()
    await asyncio.wait((first, *waiting))


async def test_run_deadline_or_cancellation_ends_wait() -> None:
    rig = Rig()
    first = rig.ask(4)
    await settle()
    waiting = [rig.ask(1, within_s=0.05), rig.ask(1), rig.ask(1)]
    await settle()
    with pytest.raises(errors.RoostError) as caught:
        await waiting[0]
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    waiting[1].cancel()
    for request in rig.sent[:4]:
        request.answer()
    await first
    await settle()
    assert len(rig.sent) == 5
    rig.sent[4].answer()
    await waiting[2]
    assert rig.in_flight._free == 4


async def test_run_cancelled_caller_slot_is_released_by_result() -> None:
    rig = Rig()
    task = rig.ask(4)
    await settle()
    task.cancel()
    await asyncio.wait((task,))
    other = rig.ask(1)
    await settle()
    assert len(rig.sent) == 4
    for request in rig.sent[:4]:
        request.answer()
    await settle()
    rig.sent[4].answer()
    await other
    assert rig.in_flight._free == 4


async def test_second_result_is_ignored() -> None:
    rig = Rig()
    task = rig.ask(2)
    await settle()
    rig.sent[0].answer([(1,)])
    rig.sent[0].answer(error=ValueError("late"))
    await settle()
    assert not task.done()
    rig.sent[1].answer([(2,)])
    assert [answer.rows for answer in await task] == [[(1,)], [(2,)]]
    rig.sent[1].answer([(3,)])
    await settle()
    assert rig.in_flight._free == 4


async def test_close_fails_pending_queued_and_later_requests() -> None:
    rig = Rig()
    tasks = [rig.ask(4), rig.ask(1)]
    await settle()
    rig.in_flight.close()
    tasks.append(rig.ask(1))
    for task in tasks:
        with pytest.raises(errors.RoostError) as caught:
            await task
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    # Late results are ignored.
    for request in rig.sent:
        request.answer()
    await settle()
