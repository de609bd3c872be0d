"""Tests builds: how many run and queue, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from services.timeline.fanout_rules import PUSH, FanoutRules
from services.timeline.followees import FolloweeSet
from services.timeline.home import builder as module
from services.timeline.home.builder import HomeBuilder
from services.timeline.pull import IdBatches
from services.timeline.store.memory import EmbeddedHomeTimelines
from tests.waiting import WITHIN_S, run_ready_tasks, wait_until

ANN = 2


class Owners:
    """Every user follows ANN; her ids are returned once `answering` is set."""

    def __init__(self) -> None:
        self.answering = asyncio.Event()
        self.asking = 0
        self.most = 0

    async def fetch(self, user_id: int) -> FolloweeSet:
        return FolloweeSet([(0, ANN)])

    async def newest(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        self.asking += 1
        self.most = max(self.most, self.asking)
        await self.answering.wait()
        self.asking -= 1
        yield {ANN: [30, 20, 10]}


@pytest.fixture
def owners() -> Owners:
    return Owners()


@pytest.fixture
def store() -> EmbeddedHomeTimelines:
    return EmbeddedHomeTimelines(1_000)


@pytest.fixture
def builds(owners: Owners, store: EmbeddedHomeTimelines) -> HomeBuilder:
    fake: Any = owners
    return HomeBuilder(store, fake, fake, fake, FanoutRules(PUSH, 0), lambda: 1.5)


async def test_build_pulls_and_installs(builds: HomeBuilder, owners: Owners, store: EmbeddedHomeTimelines) -> None:
    build = builds.get_or_start(1)
    assert build is not None
    assert not await build.done(0.01)
    owners.answering.set()
    assert await build.done(WITHIN_S)
    assert build.installed
    home = await store.read(1)
    assert home is not None
    assert (list(home.ids), home.floor, home.opened_ms, home.mode) == ([10, 20, 30], 0, 1_500, PUSH)


async def test_get_or_start_returns_one_build_per_user(builds: HomeBuilder, owners: Owners) -> None:
    first = builds.get_or_start(1)
    assert builds.get_or_start(1) is first
    assert builds.get_or_start(2) is not first
    owners.answering.set()
    assert first is not None
    assert await first.done(WITHIN_S)
    assert builds.get_or_start(1) is not first
    await builds.stop()


async def test_builds_running_and_queued_are_bounded(
    builds: HomeBuilder, owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 10)
    joined = [builds.get_or_start(user_id) for user_id in range(1, module.MAX_BUILDS + 12)]
    assert joined[-1] is None
    assert None not in joined[:-1]
    await run_ready_tasks()
    assert owners.asking == module.MAX_BUILDS
    owners.answering.set()
    for build in joined[:-1]:
        assert build is not None
        assert await build.done(WITHIN_S)
    assert owners.most == module.MAX_BUILDS


async def test_build_dropped_meanwhile_returns_pulled_ids(
    builds: HomeBuilder, owners: Owners, store: EmbeddedHomeTimelines
) -> None:
    build = builds.get_or_start(1)
    assert build is not None
    await wait_until(lambda: owners.asking)
    await store.drop(1)
    owners.answering.set()
    assert await build.done(WITHIN_S)
    assert not build.installed
    assert build.home is not None
    assert list(build.home.ids) == [10, 20, 30]
    assert await store.read(1) is None


async def test_stop_cancels_builds_and_leaves_homes_cold(
    builds: HomeBuilder, owners: Owners, store: EmbeddedHomeTimelines
) -> None:
    build = builds.get_or_start(1)
    assert build is not None
    await wait_until(lambda: owners.asking)
    await builds.stop()
    assert await build.done(0)
    assert build.home is None
    assert await store.append([(40, [1])]) == [0]


async def test_build_failure_reaches_all_waiters(
    builds: HomeBuilder, owners: Owners, store: EmbeddedHomeTimelines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(user_id: int) -> FolloweeSet:
        raise ConnectionError("down")

    monkeypatch.setattr(owners, "fetch", fail)
    build = builds.get_or_start(1)
    assert build is not None
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await build.done(WITHIN_S)
    assert await store.append([(40, [1])]) == [0]
    assert builds.get_or_start(1) is not build
    await builds.stop()
