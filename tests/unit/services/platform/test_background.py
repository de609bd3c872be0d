from __future__ import annotations

import asyncio

import pytest

from services.platform import background
from services.platform.background import BackgroundWorker
from services.platform.rpc.context import Call, current, current_call

WAIT_S = 10.0


class Counting(BackgroundWorker):
    """Counts its runs; the first `failing` of them raise."""

    def __init__(self, failing: int = 0) -> None:
        super().__init__("counting")
        self.failing = failing
        self.runs = 0
        self.method = "?"
        self.settled = asyncio.Event()

    async def _run(self) -> None:
        self.runs += 1
        self.method = current().method
        if self.runs <= self.failing:
            raise ValueError("a defect")
        self.settled.set()
        await asyncio.Event().wait()


async def test_background_worker_runs_outside_the_call_that_starts_it() -> None:
    worker = Counting()
    current_call.set(Call(method="/roost.test/Start"))
    await worker.start()
    await asyncio.wait_for(worker.settled.wait(), WAIT_S)
    await worker.stop()
    assert worker.method == ""


async def test_background_worker_started_twice_runs_once_and_restarts_after_stop() -> None:
    worker = Counting()
    for expected in (1, 2):
        await worker.start()
        await worker.start()
        await asyncio.wait_for(worker.settled.wait(), WAIT_S)
        assert worker.runs == expected
        assert worker.is_started
        await worker.stop()
        assert not worker.is_started
        worker.settled.clear()
    await worker.stop()


async def test_background_worker_that_fails_is_logged_and_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(background, "RESTART_S", 0.001)
    worker = Counting(failing=2)
    await worker.start()
    await asyncio.wait_for(worker.settled.wait(), WAIT_S)
    await worker.stop()
    assert worker.runs == 3
    assert capsys.readouterr().out.count("[error") == 2
