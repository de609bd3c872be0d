from __future__ import annotations

import asyncio

import pytest

from services.platform.detached import DetachedWork, run_to_completion
from services.platform.rpc import errors
from services.platform.rpc.context import Call, current, current_call

WAIT_S = 10.0


class Write:
    """A write that waits for `release`, and records the method of the call in whose context it ends."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.method = "?"

    async def run(self) -> str:
        self.began.set()
        await self.release.wait()
        self.method = current().method
        return "written"


async def test_run_to_completion_returns_result_and_raises_error() -> None:
    async def fail() -> None:
        raise errors.not_found("no such row")

    write = Write()
    write.release.set()
    assert await run_to_completion(write.run()) == "written"
    with pytest.raises(errors.RoostError, match="no such row"):
        await run_to_completion(fail())


@pytest.mark.parametrize(("keep_context", "method"), [(False, ""), (True, "/roost.test/Write")])
async def test_detached_work_outlives_its_caller(keep_context: bool, method: str) -> None:
    owner, write = DetachedWork(keep_context=keep_context), Write()
    current_call.set(Call(method="/roost.test/Write"))
    caller = asyncio.create_task(owner.run(write.run()))
    await asyncio.wait_for(write.began.wait(), WAIT_S)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    waiting = asyncio.create_task(owner.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    write.release.set()
    await asyncio.wait_for(waiting, WAIT_S)
    assert write.method == method


async def test_detached_work_over_its_limit_is_refused() -> None:
    owner, first, second = DetachedWork(limit=1), Write(), Write()
    running = asyncio.create_task(owner.run(first.run()))
    await asyncio.wait_for(first.began.wait(), WAIT_S)
    with pytest.raises(errors.RoostError, match="too many writes") as refused:
        await owner.run(second.run())
    assert refused.value.code.name == "RESOURCE_EXHAUSTED"
    assert not second.began.is_set()
    first.release.set()
    await running
    second.release.set()
    assert await owner.run(second.run()) == "written"
