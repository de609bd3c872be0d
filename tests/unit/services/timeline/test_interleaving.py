"""The protocol of home timelines in memory under random schedules.

Once all is quiet, and at reads meanwhile, every home that is warm must read exactly as the model says. Stores that break one rule each
must be found out by the same schedules.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import pytest
from roost.timeline.v1 import timeline_service_pb2 as pb

from services.timeline import pull
from services.timeline.fanout_rules import HYBRID, FanoutRules, Source
from services.timeline.followees import FolloweeSet
from services.timeline.store import HomeList, OpenBuild
from services.timeline.store.memory import EmbeddedHomeTimelines, HomeInBuild, WarmHome
from tests.conftest import LONG, SHORT
from tests.home_interleavings import KEEP, TRIM_ABOVE, Schedule

SCHEDULES = {SHORT: 1_000, LONG: 20_000}
# A faulty store must differ from the model in DETECTIONS schedules of the first SCHEDULES_FOR_FAULTS. Most are detected
# within far fewer, and no more are run then.
DETECTIONS = 3
SCHEDULES_FOR_FAULTS = 1_500


class LosesAppendsDuringBuild(EmbeddedHomeTimelines):
    """Faulty: loses what is appended during the pull."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        return HomeInBuild(user_id, opened_ms, mode, KEEP)

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, HomeInBuild)
        self._homes[build.user_id] = WarmHome(ids, floor, build, TRIM_ABOVE)
        return await self.read(build.user_id)


class ClosesAnyBuild(EmbeddedHomeTimelines):
    """Faulty: does not check that the build in progress is the one it closes."""

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, HomeInBuild)
        self._homes[build.user_id] = build
        return await super().close_build(build, ids, floor)


class _DropsOldAppends(HomeInBuild):
    __slots__ = ()

    def insert(self, tweet_id: int) -> bool:
        self.pending.append(tweet_id)
        del self.pending[:-KEEP]
        return True


class NeverAbandons(EmbeddedHomeTimelines):
    """Faulty: keeps only the newest appends of a build and installs it anyway."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        build = self._homes[user_id] = _DropsOldAppends(user_id, opened_ms, mode, KEEP)
        return build


class _TrimsByArrival(WarmHome):
    __slots__ = ("arrived",)

    def insert(self, tweet_id: int) -> bool:
        if tweet_id > self.floor and tweet_id not in self.ids:
            self.ids.append(tweet_id)
            if len(self.ids) > self.trim_above:
                kept = self.ids[-self.keep :]
                self.floor = max(self.floor, min(kept) - 1)
                self.ids = kept
        return True


class TrimsByArrival(EmbeddedHomeTimelines):
    """Faulty: removes the first arrivals whatever their ids, as a plain Redis list would."""

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        home = await super().close_build(build, ids, floor)
        warm = self._homes.get(build.user_id)
        if home is not None and isinstance(warm, WarmHome) and isinstance(build, HomeInBuild):
            self._homes[build.user_id] = _TrimsByArrival(warm.ids, warm.floor, build, TRIM_ABOVE)
        return home

    async def read(self, user_id: int) -> HomeList | None:
        home = await super().read(user_id)
        return home and HomeList(array("q", sorted(home.ids)), home.floor, home.opened_ms, home.mode)


class HasNoFloor(EmbeddedHomeTimelines):
    """Faulty: treats a full list as the whole history."""

    async def read(self, user_id: int) -> HomeList | None:
        home = await super().read(user_id)
        return home and HomeList(home.ids, 0, home.opened_ms, home.mode)


class IgnoresLateFollowees(FanoutRules):
    """Faulty: relies on push for all current followees."""

    def late(self, home: HomeList, relations: FolloweeSet) -> list[int]:
        return []


class IgnoresTierChanges(FanoutRules):
    """Faulty: pulls current celebrities only, not those demoted since the build."""

    def pulled(self, reader: int, relations: FolloweeSet, tiers: Any, home: HomeList) -> Mapping[int, Source]:
        found = super().pulled(reader, relations, tiers, home)
        return {author: why for author, why in found.items() if why != pb.ENTRY_SOURCE_PULLED_TIER_CHANGE}


def run(
    seed: int, store: type[EmbeddedHomeTimelines] = EmbeddedHomeTimelines, rules: type[FanoutRules] = FanoutRules
) -> tuple[list[str], Counter[str]]:
    schedule = Schedule(seed, store(2, KEEP, TRIM_ABOVE), rules(HYBRID, 0))
    schedule.run()
    return schedule.faults(), schedule.seen


def detected(faults: Callable[[int], list[str]]) -> bool:
    """Returns whether DETECTIONS schedules have faults; runs none after those."""
    found = (seed for seed in range(SCHEDULES_FOR_FAULTS) if faults(seed))
    return len(list(islice(found, DETECTIONS))) == DETECTIONS


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few ids per author and round, so that builds take several rounds.
    monkeypatch.setattr(pull, "MIN_BUILD_DEPTH", 2)


@pytest.mark.slow
def test_memory_store_warm_homes_match_model(length: str) -> None:
    schedules = SCHEDULES[length]
    seen: Counter[str] = Counter()
    for seed in range(schedules):
        faults, happened = run(seed)
        assert not faults, f"seed {seed}: {faults}"
        seen += happened
    # The schedules reach the cases they exist for.
    assert seen["warm"] > schedules / 3
    for what in ("installed", "overtaken", "failed", "replayed", "with a floor"):
        assert seen[what] > schedules / 5, seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "store",
    [LosesAppendsDuringBuild, ClosesAnyBuild, NeverAbandons, TrimsByArrival, HasNoFloor],
    ids=lambda s: s.__name__,
)
def test_faulty_store_is_detected(store: type[EmbeddedHomeTimelines]) -> None:
    assert detected(lambda seed: run(seed, store)[0])


@pytest.mark.slow
@pytest.mark.parametrize("rules", [IgnoresLateFollowees, IgnoresTierChanges], ids=lambda r: r.__name__)
def test_faulty_rules_are_detected(rules: type[FanoutRules]) -> None:
    assert detected(lambda seed: run(seed, rules=rules)[0])
