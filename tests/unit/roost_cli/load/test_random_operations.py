"""Tests that the plan of random operations is reproducible and possible."""

from __future__ import annotations

from collections import Counter

import pytest
from roost.tweet.v1 import tweet_pb2

from roost_cli.load.mutate import METHODS, plan
from roost_cli.load.random_operations import Kind, Operation
from roost_cli.verify.timeline_model import ServiceData
from services.platform.rpc import contract

PEOPLE = range(1, 21)
HIDDEN = 99


@pytest.fixture
def truth() -> ServiceData:
    found = ServiceData()
    for user_id in PEOPLE:
        found.add_user(user_id, f"u{user_id}", active=True)
        found.add_follow(user_id, user_id % len(PEOPLE) + 1)
        found.add_tweet(tweet_pb2.TweetHead(id=1_000 + user_id, author_id=user_id))
    found.add_user(HIDDEN, "hidden", active=False)
    found.add_follow(1, HIDDEN)
    found.add_block(3, 4)
    found.add_mute(5, 6)
    found.add_tweet(tweet_pb2.TweetHead(id=2_000, author_id=7, retweet_of_id=1_008, retweet_of_author_id=8))
    found.add_tweet(tweet_pb2.TweetHead(id=2_001, author_id=7, deleted=True))
    return found


def test_plan_same_seed_gives_same_operations(truth: ServiceData) -> None:
    assert plan(truth, 500, seed=1) == plan(truth, 500, seed=1)
    assert plan(truth, 500, seed=1)[:100] == plan(truth, 100, seed=1)
    assert plan(truth, 500, seed=1) != plan(truth, 500, seed=2)


def test_plan_contains_every_kind_with_a_method(truth: ServiceData) -> None:
    kinds = Counter(operation.kind for operation in plan(truth, 2_000, seed=1))
    assert set(kinds) == set(Kind) == set(METHODS)
    assert all(kinds[kind] >= 10 for kind in Kind)
    for path, named in METHODS.values():
        assert not named or named in contract.methods()[path].request.DESCRIPTOR.fields_by_name


def test_plan_actors_are_active_and_never_their_own_target(truth: ServiceData) -> None:
    for operation in plan(truth, 2_000, seed=3):
        assert operation.actor_id in PEOPLE
        if METHODS[operation.kind][1] == "user_id":
            assert operation.about in PEOPLE
            assert operation.about != operation.actor_id


def test_plan_targets_exist_or_are_created_earlier(truth: ServiceData) -> None:
    made: dict[int, Operation] = {}
    for operation in plan(truth, 2_000, seed=4):
        if operation.made_by is not None:
            assert operation.made_by in made
        elif METHODS[operation.kind][1] != "user_id" and operation.kind is not Kind.POST:
            assert operation.about in truth.heads
            assert not truth.heads[operation.about].deleted
        if operation.kind in Kind.making():
            made[operation.number] = operation


def test_plan_edits_and_deletes_are_by_the_author(truth: ServiceData) -> None:
    operations = plan(truth, 2_000, seed=5)
    for operation in operations:
        if operation.kind in (Kind.EDIT, Kind.DELETE):
            if operation.made_by is not None:
                assert operations[operation.made_by].actor_id == operation.actor_id
            else:
                assert truth.heads[operation.about].author_id == operation.actor_id


def test_plan_undo_mostly_follows_do(truth: ServiceData) -> None:
    operations = plan(truth, 2_000, seed=6)
    done = {(o.actor_id, o.about, o.made_by) for o in operations if o.kind is Kind.LIKE}
    undone = [(o.actor_id, o.about, o.made_by) for o in operations if o.kind is Kind.UNLIKE]
    assert sum(like in done for like in undone) > 0.9 * len(undone)


def test_plan_without_tweets_begins_with_posts() -> None:
    truth = ServiceData()
    for user_id in PEOPLE:
        truth.add_user(user_id, f"u{user_id}", active=True)
    first = next(o for o in plan(truth, 50, seed=1) if METHODS[o.kind][1] != "user_id")
    assert first.kind is Kind.POST
