"""Locks by key, and work that outlives its caller."""

from __future__ import annotations

import asyncio

import pytest

from services.platform.cassandra import keyed_lock
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.rpc import errors
from tests.waiting import forever, run_ready_tasks


async def test_hold_serializes_per_key_and_frees_locks() -> None:
    order = KeyedLocks()
    running: dict[int, int] = {1: 0, 2: 0}
    most: dict[int, int] = {1: 0, 2: 0}
    together = 0

    async def work(key: int) -> None:
        nonlocal together
        async with order.hold(key):
            running[key] += 1
            most[key] = max(most[key], running[key])
            together = max(together, sum(running.values()))
            await asyncio.sleep(0)
            running[key] -= 1

    await asyncio.gather(*(work(n % 2 + 1) for n in range(20)))
    assert most == {1: 1, 2: 1}
    assert together == 2
    assert not order._locks


async def test_hold_cancelled_or_failed_holder_releases_lock() -> None:
    order = KeyedLocks()
    entered = asyncio.Event()

    async def hold() -> None:
        async with order.hold("key"):
            entered.set()
            await forever()

    holder, waiter = asyncio.create_task(hold()), asyncio.create_task(hold())
    await entered.wait()
    waiter.cancel()
    holder.cancel()
    await asyncio.gather(holder, waiter, return_exceptions=True)
    with pytest.raises(ValueError, match="mine"):
        async with order.hold("key"):
            raise ValueError("mine")
    assert not order._locks


async def test_hold_too_many_waiters_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed_lock, "MAX_WAITERS_PER_KEY", 2)
    order, release = KeyedLocks(), asyncio.Event()

    async def wait() -> None:
        async with order.hold("key"):
            await release.wait()

    waiting = asyncio.gather(*(wait() for _ in range(5)), return_exceptions=True)
    await run_ready_tasks()
    release.set()
    outcomes = await waiting
    refused = [outcome for outcome in outcomes if outcome is not None]
    assert len(refused) == 2
    assert all(isinstance(one, errors.RoostError) and one.code.name == "RESOURCE_EXHAUSTED" for one in refused)
