"""Tests the auditor's computation of home timelines, one API rule per test, and its comparison."""

from __future__ import annotations

from typing import Any

import pytest
from roost.tweet.v1 import tweet_pb2

from roost_cli.verify.timeline_model import DEPTH, Differences, ServiceData, compare, expected_home

READER, ANN, BEN, CARL = 1, 2, 3, 4


@pytest.fixture
def truth() -> ServiceData:
    """The reader follows Ann and Ben, not Carl."""
    found = ServiceData()
    for user_id in (READER, ANN, BEN, CARL):
        found.add_user(user_id, f"u{user_id}", active=True)
    found.add_follow(READER, ANN)
    found.add_follow(READER, BEN)
    return found


def tweet(truth: ServiceData, tweet_id: int, author: int, **head: Any) -> None:
    truth.add_tweet(tweet_pb2.TweetHead(id=tweet_id, author_id=author, **head))


def reply(truth: ServiceData, tweet_id: int, author: int, to: int) -> None:
    tweet(truth, tweet_id, author, reply_to_id=to, reply_to_author_id=truth.heads[to].author_id)


def retweet(truth: ServiceData, tweet_id: int, author: int, of: int) -> None:
    tweet(truth, tweet_id, author, retweet_of_id=of, retweet_of_author_id=truth.heads[of].author_id)


def test_expected_home_has_own_and_followees_tweets_newest_first(truth: ServiceData) -> None:
    for tweet_id, author in ((10, ANN), (12, READER), (11, BEN), (13, CARL)):
        tweet(truth, tweet_id, author)
    assert expected_home(truth, READER) == [12, 11, 10]


def test_expected_home_is_limited_to_newest_800(truth: ServiceData) -> None:
    for tweet_id in range(1, DEPTH + 11):
        tweet(truth, tweet_id, ANN)
    home = expected_home(truth, READER)
    assert len(home) == DEPTH
    assert (home[0], home[-1]) == (DEPTH + 10, 11)


def test_expected_home_deleted_tweets_make_room_for_older(truth: ServiceData) -> None:
    for tweet_id in range(1, DEPTH + 2):
        tweet(truth, tweet_id, ANN, deleted=tweet_id == DEPTH)
    home = expected_home(truth, READER)
    assert DEPTH not in home
    assert home[-1] == 1


def test_expected_home_reply_needs_replied_author_followed_or_reader(truth: ServiceData) -> None:
    for tweet_id, author in ((10, READER), (11, BEN), (12, CARL)):
        tweet(truth, tweet_id, author)
    reply(truth, 20, ANN, 10)
    reply(truth, 21, ANN, 11)
    reply(truth, 22, ANN, 12)
    assert expected_home(truth, READER) == [21, 20, 11, 10]


def test_expected_home_own_replies_always_appear(truth: ServiceData) -> None:
    tweet(truth, 12, CARL)
    reply(truth, 20, READER, 12)
    assert expected_home(truth, READER) == [20]


@pytest.mark.parametrize("gone", ["deleted", "purged", "suspended"])
def test_expected_home_reply_disappears_with_parent(truth: ServiceData, gone: str) -> None:
    tweet(truth, 11, BEN, deleted=gone == "deleted")
    reply(truth, 21, ANN, 11)
    if gone == "purged":
        del truth.heads[11]
        truth.by_author[BEN].remove(11)
    if gone == "suspended":
        truth.active.discard(BEN)
    assert expected_home(truth, READER) == []


def test_expected_home_retweet_is_separate_entry(truth: ServiceData) -> None:
    tweet(truth, 10, CARL)
    tweet(truth, 11, BEN)
    retweet(truth, 20, ANN, 10)
    retweet(truth, 21, ANN, 11)
    assert expected_home(truth, READER) == [21, 20, 11]


@pytest.mark.parametrize("retweeter", [ANN, READER])
@pytest.mark.parametrize("why", ["deleted", "muted", "blocked", "blocks", "suspended"])
def test_expected_home_retweet_of_invisible_tweet_is_hidden(truth: ServiceData, retweeter: int, why: str) -> None:
    tweet(truth, 10, CARL, deleted=why == "deleted")
    retweet(truth, 20, retweeter, 10)
    if why == "muted":
        truth.add_mute(READER, CARL)
    elif why == "blocked":
        truth.add_block(READER, CARL)
    elif why == "blocks":
        truth.add_block(CARL, READER)
    elif why == "suspended":
        truth.active.discard(CARL)
    assert expected_home(truth, READER) == []


@pytest.mark.parametrize("why", ["muted", "blocked", "blocks", "suspended"])
def test_expected_home_hidden_followee_disappears(truth: ServiceData, why: str) -> None:
    tweet(truth, 10, ANN)
    tweet(truth, 11, BEN)
    if why == "muted":
        truth.add_mute(READER, ANN)
    elif why == "blocked":
        truth.add_block(READER, ANN)
    elif why == "blocks":
        truth.add_block(ANN, READER)
    elif why == "suspended":
        truth.active.discard(ANN)
    assert expected_home(truth, READER) == [11]


def test_expected_home_being_muted_hides_nothing(truth: ServiceData) -> None:
    tweet(truth, 10, ANN)
    truth.add_mute(ANN, READER)
    assert expected_home(truth, READER) == [10]


def test_expected_home_quote_survives_deleted_original(truth: ServiceData) -> None:
    tweet(truth, 10, CARL, deleted=True)
    tweet(truth, 20, ANN, quote_of_id=10, quote_of_author_id=CARL)
    assert expected_home(truth, READER) == [20]


def test_compare_exact_home_has_no_fault() -> None:
    assert compare([5, 4, 3], [5, 4, 3]).exact
    assert compare([], []).exact


@pytest.mark.parametrize(
    ("actual", "findings"),
    [
        ([9, 8, 6, 5], Differences(missing=(7,))),
        ([9, 8, 7, 6, 5, 4], Differences(extra=(4,))),
        ([9, 8, 8, 7, 6, 5], Differences(repeated=(8,))),
        ([9, 7, 8, 6, 5], Differences(misordered=(8,))),
        ([5, 9, 8, 7, 6], Differences(misordered=(9, 8, 7, 6))),
        ([], Differences(missing=(9, 8, 7, 6, 5))),
    ],
)
def test_compare_single_fault_is_one_finding(actual: list[int], findings: Differences) -> None:
    assert compare([9, 8, 7, 6, 5], actual) == findings


def test_compare_duplicate_page_repeats_each_entry() -> None:
    found = compare([4, 3, 2, 1], [4, 3, 4, 3, 2, 1])
    assert found == Differences(repeated=(4, 3))


def test_compare_newer_tweets_displace_oldest() -> None:
    expected = list(range(DEPTH, 0, -1))
    actual = [2_001, 2_000, *expected[:-2]]
    assert compare(expected, actual, newer=[2_000, 2_001]).exact
    assert compare(expected, actual, newer=[2_000]).extra == (2_001,)
