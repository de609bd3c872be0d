"""Tests the rules between push and pull: which authors a read pulls, and when a home timeline must be rebuilt."""

from __future__ import annotations

from typing import Any

import pytest
from roost.timeline.v1 import timeline_service_pb2 as pb

from services.timeline.fanout_rules import HYBRID, MAX_AGE_MS, MAX_LATE_FOLLOWEES, PULL, PUSH, FanoutRules
from services.timeline.followees import FolloweeSet
from services.timeline.store import HomeList

READER = 9
MARGIN_MS = 5_000
OPENED_MS = 1_000_000
NOW_MS = OPENED_MS + 10 * MARGIN_MS


class CelebritySubscriber:
    """Tiers of four authors: 1 is a celebrity; 2 was demoted long before the build, 3 within the margin of it, 4 after
    it."""

    version = 0
    celebrities = (1, 77)

    def is_celebrity(self, user_id: int) -> bool:
        return user_id in self.celebrities

    def demoted_since(self, ms: int) -> list[int]:
        ceased = {2: OPENED_MS - 2 * MARGIN_MS, 3: OPENED_MS - MARGIN_MS + 1, 4: OPENED_MS + 1, 78: OPENED_MS + 1}
        return [user_id for user_id, at in ceased.items() if at > ms]


def rules(mode: str = HYBRID) -> FanoutRules:
    return FanoutRules(mode, MARGIN_MS)


def home(mode: str = HYBRID, opened_ms: int = OPENED_MS) -> HomeList:
    return HomeList([], 0, opened_ms, mode)


def following(*since: tuple[int, int]) -> FolloweeSet:
    old = [(OPENED_MS - 10 * MARGIN_MS, author) for author in (1, 2, 3, 4, 5)]
    return FolloweeSet([*old, *since])


def pulled(mode: str, relations: FolloweeSet) -> dict[int, int]:
    tiers: Any = CelebritySubscriber()
    return dict(rules(mode).pulled(READER, relations, tiers, home(mode)))


def test_pulled_hybrid_returns_reader_celebrities_and_demoted() -> None:
    assert pulled(HYBRID, following()) == {
        READER: pb.ENTRY_SOURCE_PULLED_SELF,
        1: pb.ENTRY_SOURCE_PULLED_CELEBRITY,
        3: pb.ENTRY_SOURCE_PULLED_TIER_CHANGE,
        4: pb.ENTRY_SOURCE_PULLED_TIER_CHANGE,
    }


def test_pulled_mode_push_returns_reader_only() -> None:
    assert pulled(PUSH, following()) == {READER: pb.ENTRY_SOURCE_PULLED_SELF}


@pytest.mark.parametrize("mode", [HYBRID, PUSH])
def test_pulled_includes_late_followees(mode: str) -> None:
    relations = following((OPENED_MS - MARGIN_MS, 6), (OPENED_MS - MARGIN_MS + 1, 7), (NOW_MS, 8))
    found = pulled(mode, relations)
    assert {author for author, why in found.items() if why == pb.ENTRY_SOURCE_PULLED_RECENT_FOLLOWEE} == {7, 8}


def test_pushes_celebrities_in_mode_push_only() -> None:
    tiers: Any = CelebritySubscriber()
    assert rules(PUSH).pushes(tiers, 1)
    assert not rules(HYBRID).pushes(tiers, 1)
    assert rules(HYBRID).pushes(tiers, 2)


def test_usable_other_mode_or_too_old_is_false() -> None:
    assert rules().usable(home(), following(), NOW_MS)
    assert not rules().usable(home(PUSH), following(), NOW_MS)
    assert not rules(PULL).usable(home(HYBRID), following(), NOW_MS)
    assert rules().usable(home(), following(), OPENED_MS + MAX_AGE_MS)
    assert not rules().usable(home(), following(), OPENED_MS + MAX_AGE_MS + 1)


def test_usable_many_late_followees_is_false_unless_young() -> None:
    most = [(OPENED_MS + 1, 100 + n) for n in range(MAX_LATE_FOLLOWEES)]
    assert rules().usable(home(), following(*most), NOW_MS)
    beyond = following(*most, (OPENED_MS + 1, 99))
    assert not rules().usable(home(), beyond, OPENED_MS + MARGIN_MS + 1)
    assert rules().usable(home(), beyond, OPENED_MS + MARGIN_MS)
    assert len(pulled(HYBRID, beyond)) == MAX_LATE_FOLLOWEES + 1 + 4
