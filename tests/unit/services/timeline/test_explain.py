"""Tests explanations: each source of an entry, and each rule that hides a tweet."""

from __future__ import annotations

import pytest
from roost.graph.v1 import graph_service_pb2 as graph
from roost.timeline.v1 import timeline_service_pb2 as pb

from tests.unit.services.timeline.conftest import READER, Timeline, World
from tests.unit.services.timeline.test_service import ANN, BOB, CAT, past_the_margin, tiers_received


async def test_explain_names_source_of_shown_entries(timeline: Timeline, world: World) -> None:
    world.classify(BOB, graph.TIER_CELEBRITY)
    world.classify(6, graph.TIER_CELEBRITY)
    await tiers_received(timeline)
    for author in (ANN, BOB, 6):
        world.follow(author)
        world.post(author, author * 10)
    world.post(READER, 10)
    world.post(CAT, 40)
    await past_the_margin(timeline)
    world.follow(CAT)
    world.classify(6, graph.TIER_NORMAL)
    await tiers_received(timeline)
    expected = {
        10: pb.ENTRY_SOURCE_PULLED_SELF,
        20: pb.ENTRY_SOURCE_PUSHED,
        30: pb.ENTRY_SOURCE_PULLED_CELEBRITY,
        40: pb.ENTRY_SOURCE_PULLED_RECENT_FOLLOWEE,
        60: pb.ENTRY_SOURCE_PULLED_TIER_CHANGE,
    }
    for tweet_id, source in expected.items():
        answer = await timeline.explain(tweet_id)
        assert (answer.tweet_id, answer.shown, answer.source, answer.filter) == (tweet_id, True, source, 0)
        assert answer.reason


@pytest.mark.parametrize("mode", ["pull"])
async def test_explain_mode_pull_is_pulled_cold(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 20)
    assert (await timeline.explain(20)).source == pb.ENTRY_SOURCE_PULLED_COLD


async def test_explain_names_rule_that_hides_tweet(timeline: Timeline, world: World) -> None:
    for author in (ANN, BOB, CAT, 5, 6, 7, 8):
        world.follow(author)
        world.post(author, author * 10)
    world.delete(20)
    world.mutes.add((READER, BOB))
    world.blocks |= {(READER, CAT), (5, READER)}
    world.relations_changed()
    world.suspended.add(6)
    world.post(99, 990)
    world.post(7, 71, reply_to_id=990, reply_to_author_id=99)
    world.post(7, 72, reply_to_id=20, reply_to_author_id=ANN)
    world.post(8, 81, retweet_of_id=20, retweet_of_author_id=ANN)
    world.post(8, 82, retweet_of_id=30, retweet_of_author_id=BOB)
    world.post(8, 83, retweet_of_id=50, retweet_of_author_id=5)
    expected = {
        12345: pb.ENTRY_FILTER_NOT_FOUND,
        20: pb.ENTRY_FILTER_DELETED,
        30: pb.ENTRY_FILTER_MUTED,
        40: pb.ENTRY_FILTER_BLOCKED,
        # Same answer as for a tweet that never existed.
        50: pb.ENTRY_FILTER_NOT_FOUND,
        60: pb.ENTRY_FILTER_AUTHOR_HIDDEN,
        990: pb.ENTRY_FILTER_NOT_FOLLOWED,
        71: pb.ENTRY_FILTER_REPLY_NOT_FOLLOWED,
        72: pb.ENTRY_FILTER_PARENT_GONE,
        81: pb.ENTRY_FILTER_ORIGINAL_GONE,
        82: pb.ENTRY_FILTER_MUTED,
        83: pb.ENTRY_FILTER_ORIGINAL_GONE,
    }
    shown = await timeline.whole()
    assert shown == [80, 70]
    for tweet_id, filter_ in expected.items():
        answer = await timeline.explain(tweet_id)
        assert (answer.shown, answer.source, answer.filter) == (False, 0, filter_), tweet_id
        assert answer.reason


async def test_explain_below_depth(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, *range(1, 1001))
    assert (await timeline.explain(201)).shown
    answer = await timeline.explain(200)
    assert (answer.shown, answer.filter) == (False, pb.ENTRY_FILTER_BELOW_DEPTH)


async def test_explain_not_delivered_yet(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    await past_the_margin(timeline)
    world.post(ANN, 20)
    answer = await timeline.explain(20)
    assert (answer.shown, answer.filter) == (False, pb.ENTRY_FILTER_UNSPECIFIED)
    assert "not delivered" in answer.reason
    await timeline.append(20)
    assert (await timeline.explain(20)).source == pb.ENTRY_SOURCE_PUSHED
