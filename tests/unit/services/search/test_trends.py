"""Trends: current users compared with the baseline, in bounded memory, on a fake clock."""

from __future__ import annotations

import random

import pytest

from services.search.trends import MAX_KEYS_PER_ACT, MAX_RANKED, MAX_STALE_HEAP_ENTRIES, STEP_S, WINDOW_S, Trends

START_S = 2_000_000_000.0


class Clock:
    now_s = START_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trends(clock: Clock) -> Trends[str]:
    return Trends(clock, 3)


class Acts:
    """Adds actions with unique names."""

    def __init__(self, trends: Trends[str], clock: Clock) -> None:
        self.trends, self.clock, self.count = trends, clock, 0

    def do(self, actors: range | list[int], *keys: str) -> None:
        for actor in actors:
            self.count += 1
            self.trends.add(self.count, actor, dict.fromkeys(keys, ""), self.clock.now_s)

    def keys(self) -> list[object]:
        return [trend.key for trend in self.trends.ranking()]


@pytest.fixture
def acts(trends: Trends[str], clock: Clock) -> Acts:
    return Acts(trends, clock)


def test_ranking_needs_minimum_of_users(acts: Acts) -> None:
    acts.do([1, 2], "tag")
    assert acts.keys() == []
    acts.do([3], "tag")
    assert acts.keys() == ["tag"]


def test_ranking_repeated_actions_of_one_user_count_once(acts: Acts) -> None:
    acts.do([1] * 1_000, "spam")
    acts.do([2], "spam")
    acts.do([1, 2, 3], "real")
    assert acts.keys() == ["real"]
    acts.do([3], "spam")
    spam = next(trend for trend in acts.trends.ranking() if trend.key == "spam")
    assert (spam.actors, spam.acts) == (3, 1_002)


def test_ranking_more_users_rank_higher(acts: Acts) -> None:
    acts.do(range(5), "five")
    acts.do(range(9), "nine")
    acts.do(range(7), "seven")
    assert acts.keys() == ["nine", "seven", "five"]


def test_ranking_new_key_beats_usual_key(acts: Acts, clock: Clock) -> None:
    """100 users use one tag all day, 20 users use a new tag now: the new tag ranks first."""
    for _ in range(int(12 * 3_600 / STEP_S)):
        acts.do(range(100), "morning")
        clock.now_s += STEP_S
    acts.do(range(20), "earthquake")
    assert acts.keys()[0] == "earthquake"
    strengths = {trend.key: trend.strength for trend in acts.trends.ranking()}
    assert strengths["morning"] < 1 < strengths["earthquake"]


def test_ranking_trend_without_new_actions_ends(acts: Acts, clock: Clock) -> None:
    acts.do(range(10), "tag")
    clock.now_s += WINDOW_S - STEP_S
    assert acts.keys() == ["tag"]
    clock.now_s += 2 * STEP_S
    assert acts.keys() == []
    clock.now_s += 7 * 24 * 3_600
    acts.do([1], "other")
    assert len(acts.trends) == 1, "what nobody spoke of for a week is forgotten"


def test_add_same_action_counts_once(trends: Trends[str]) -> None:
    for _ in range(3):
        for actor in (1, 2, 3):
            trends.add(("act", actor), actor, {"tag": ""}, START_S)
    (trend,) = trends.ranking()
    assert (trend.actors, trend.acts) == (3, 3)


def test_remove_undone_actions_and_hidden_users_lower_counts(trends: Trends[str]) -> None:
    for actor in (1, 2, 3, 4):
        trends.add(actor, actor, {"tag": ""}, START_S)
        trends.add(-actor, actor, {"tag": ""}, START_S)
    trends.remove(1)
    assert trends.ranking()[0].actors == 4, "another act of the same person stands"
    trends.remove(-1)
    trends.remove(-1)
    trends.remove("never was")
    assert trends.ranking()[0].actors == 3
    trends.remove_actor(2)
    assert trends.ranking() == []
    trends.remove_actor(3)
    trends.remove_actor(4)
    assert len(trends) == 0


def test_add_action_before_window_changes_nothing(trends: Trends[str], clock: Clock) -> None:
    trends.add("new", 9, {"other": ""}, START_S)
    for actor in range(5):
        trends.add(actor, actor, {"tag": ""}, START_S - 2 * WINDOW_S)
    assert trends.ranking() == []


def test_add_replay_of_hours_restores_baselines(clock: Clock) -> None:
    done = []
    rng = random.Random(1)
    live, replayed = Trends[str](clock, 3), Trends[str](clock, 3)
    for name in range(2_000):
        clock.now_s += rng.uniform(0, 20)
        act = (name, rng.randrange(30), {f"tag{rng.randrange(8)}": ""}, clock.now_s)
        live.add(*act)
        done.append(act)
    for act in done:
        replayed.add(*act)
        replayed.add(*act)
    assert replayed.ranking() == live.ranking() != []


def test_add_time_ahead_of_clock_keeps_counts(acts: Acts, trends: Trends[str]) -> None:
    acts.do([1, 2, 3], "tag")
    trends.add("ahead", 4, {"tag": ""}, START_S + 10 * WINDOW_S)
    assert acts.keys() == ["tag"]


def test_eviction_flood_of_single_user_tags_keeps_shared_tags(clock: Clock) -> None:
    trends = Trends[str](clock, 3, max_acts=1_000, max_keys=100)
    acts = Acts(trends, clock)
    acts.do([1, 2, 3], "real")
    for number in range(900):
        acts.do([666], f"flood{number}")
        assert len(trends) <= 100
    assert acts.keys() == ["real"]


def test_eviction_too_many_actions_removes_oldest(clock: Clock) -> None:
    trends = Trends[str](clock, 3, max_acts=10)
    acts = Acts(trends, clock)
    acts.do(range(10), "old")
    acts.do(range(6), "new")
    assert [(trend.key, trend.acts) for trend in trends.ranking()] == [("new", 6), ("old", 4)]


def test_add_many_keys_and_ranking_are_bounded(acts: Acts) -> None:
    for start in range(0, 200, 20):
        acts.do([1, 2, 3], *(f"t{number:03}" for number in range(start, start + 20)))
    assert len(acts.trends) == 10 * MAX_KEYS_PER_ACT
    assert len(acts.keys()) == MAX_RANKED


def test_add_late_action_expires_with_its_own_window(trends: Trends[str], clock: Clock) -> None:
    for actor in range(5):
        trends.add(("new", actor), actor, {"new": ""}, START_S)
    for actor in range(4):
        trends.add(("old", actor), actor, {"old": ""}, START_S - WINDOW_S / 2)
    assert {trend.key for trend in trends.ranking()} == {"new", "old"}
    clock.now_s += WINDOW_S / 2 + 2 * STEP_S
    assert {trend.key for trend in trends.ranking()} == {"new"}


def test_remove_and_add_repeated_keeps_heap_bounded(trends: Trends[str]) -> None:
    for number in range(3 * MAX_STALE_HEAP_ENTRIES):
        trends.add("act", 1, {f"tag{number % 5}": ""}, START_S)
        trends.remove("act")
    assert len(trends._by_time) <= MAX_STALE_HEAP_ENTRIES + 2
    assert len(trends) == 0
