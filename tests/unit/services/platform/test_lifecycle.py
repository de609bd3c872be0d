"""Stopping workers and stores: one that fails or hangs does not keep the others open."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from services.platform import lifecycle
from services.platform.lifecycle import Lifecycle


class Part:
    """A worker and store that records its stop, or raises `error`, or never returns if `hangs`."""

    def __init__(self, stopped: list[str], name: str, *, error: Exception | None = None, hangs: bool = False) -> None:
        self._stopped = stopped
        self._name = name
        self._error = error
        self._hangs = hangs

    async def start(self) -> None:
        if self._name == "broken":
            raise OSError("no port")

    async def stop(self) -> None:
        if self._error is not None:
            raise self._error
        if self._hangs:
            await asyncio.Event().wait()
        self._stopped.append(self._name)

    async def close(self) -> None:
        await self.stop()


async def test_stop_workers_failing_and_hanging_worker_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "STOP_WITHIN_S", 0.05)
    stopped: list[str] = []
    parts = Lifecycle()
    for worker in (
        Part(stopped, "a"),
        Part(stopped, "b", error=OSError("disk")),
        Part(stopped, "c", hangs=True),
        Part(stopped, "d"),
    ):
        await parts.start(worker)
    with capture_logs() as logs:
        await parts.stop_workers()
    assert sorted(stopped) == ["a", "d"]
    assert [(line["event"], line["failure"]) for line in logs] == [
        ("process.stop_failed", "Part did not stop"),
        ("process.stop_failed", "Part did not stop"),
    ]


async def test_stop_workers_twice_stops_each_once() -> None:
    stopped: list[str] = []
    parts = Lifecycle()
    await parts.start(Part(stopped, "a"))
    await parts.stop_workers()
    await parts.stop_workers()
    assert stopped == ["a"]


async def test_start_failing_worker_is_not_stopped() -> None:
    stopped: list[str] = []
    parts = Lifecycle()
    with pytest.raises(OSError, match="no port"):
        await parts.start(Part(stopped, "broken"))
    await parts.stop_workers()
    assert stopped == []


async def test_close_stores_closes_last_added_first_and_passes_over_failing_store() -> None:
    stopped: list[str] = []
    parts = Lifecycle()
    parts.add_stores([Part(stopped, "a"), Part(stopped, "b", error=OSError("disk")), Part(stopped, "c")])
    with capture_logs() as logs:
        await parts.close_stores()
    assert stopped == ["c", "a"]
    assert [line["failure"] for line in logs] == ["Part did not close"]
