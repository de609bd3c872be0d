"""Tests that the history check finds every lost write, duplicate and unexplained change."""

from __future__ import annotations

import pytest

from roost_cli.drill.history import History, Kind, Observed, ObservedTweet, Register, Violations

ANN, BEN = 1, 2
POST = Register(Kind.POST, ANN, "key:1")
FOLLOW = Register(Kind.FOLLOW, ANN, BEN)
DELETE = Register(Kind.DELETE, ANN, 100)
LIKE = Register(Kind.LIKE, BEN, 100)
RETWEET = Register(Kind.RETWEET, BEN, 100)


@pytest.fixture
def history() -> History:
    return History()


def there(*tweets: tuple[int, str], deleted: bool = False) -> Observed:
    """Returns observed data with the tweets of Ann and her tweet list."""
    found = Observed({tweet_id: ObservedTweet(ANN, "" if deleted else text, deleted, 0) for tweet_id, text in tweets})
    found.listed[ANN] = [] if deleted else [tweet_id for tweet_id, _ in tweets]
    return found


def posted(history: History) -> None:
    history.invoke(POST, True)
    history.ok(POST, 100)


def kinds(violations: Violations) -> tuple[int, int, int]:
    return len(violations.lost), len(violations.duplicated), len(violations.strange)


def test_check_acknowledged_post_must_exist_once(history: History) -> None:
    posted(history)
    assert not history.check(there((100, "key:1")))
    assert kinds(history.check(there())) == (1, 0, 0)
    assert kinds(history.check(there((100, "key:1"), (101, "key:1")))) == (0, 1, 0)


def test_check_other_tweet_with_same_text_is_a_loss(history: History) -> None:
    posted(history)
    assert kinds(history.check(there((101, "key:1")))) == (1, 0, 0)


def test_check_one_key_with_two_tweets_is_a_duplicate(history: History) -> None:
    posted(history)
    history.invoke(POST, True)
    history.ok(POST, 101)
    assert history.check(there((100, "key:1"))).duplicated


def test_check_unknown_post_may_exist_or_not(history: History) -> None:
    history.invoke(POST, True)
    history.unknown(POST, "UNAVAILABLE")
    assert history.open() == [(POST, True)]
    assert not history.check(there())
    assert not history.check(there((100, "key:1")))
    assert kinds(history.check(there((100, "key:1"), (101, "key:1")))) == (0, 1, 0)


def test_check_acknowledged_repeat_must_exist(history: History) -> None:
    history.invoke(POST, True)
    history.unknown(POST, "UNAVAILABLE")
    posted(history)
    assert history.open() == []
    assert kinds(history.check(there())) == (1, 0, 0)


def test_check_refused_post_must_not_exist(history: History) -> None:
    history.invoke(POST, True)
    history.fail(POST, "PERMISSION_DENIED")
    assert not history.check(there())
    assert kinds(history.check(there((100, "key:1")))) == (0, 0, 1)


def test_check_acknowledged_delete_must_persist(history: History) -> None:
    posted(history)
    history.invoke(DELETE, True)
    history.ok(DELETE)
    assert not history.check(there((100, "key:1"), deleted=True))
    assert history.check(there((100, "key:1"))).lost


def test_check_undeleted_tweet_must_be_live(history: History) -> None:
    posted(history)
    history.invoke(DELETE, True)
    history.fail(DELETE, "PERMISSION_DENIED")
    assert history.check(there((100, "key:1"), deleted=True)).strange


def test_check_edge_equals_last_acknowledged_write(history: History) -> None:
    history.invoke(FOLLOW, True)
    history.ok(FOLLOW)
    assert not history.check(Observed(follows={(ANN, BEN)}))
    assert kinds(history.check(Observed())) == (1, 0, 0)
    history.invoke(FOLLOW, False)
    assert not history.check(Observed())
    assert not history.check(Observed(follows={(ANN, BEN)}))
    history.ok(FOLLOW)
    assert kinds(history.check(Observed(follows={(ANN, BEN)}))) == (0, 0, 1)


def test_check_refusal_keeps_previous_value(history: History) -> None:
    history.invoke(FOLLOW, True)
    history.ok(FOLLOW)
    history.invoke(FOLLOW, False)
    history.fail(FOLLOW, "INTERNAL")
    assert history.check(Observed()).lost


def test_check_covers_likes_and_retweets_of_live_tweets(history: History) -> None:
    posted(history)
    for register in (LIKE, RETWEET):
        history.invoke(register, True)
        history.ok(register)
    found = there((100, "key:1"))
    assert kinds(history.check(found)) == (2, 0, 0)
    found.likes.add((BEN, 100))
    found.tweets[200] = ObservedTweet(BEN, "", False, 100)
    assert not history.check(found)
    found.tweets[201] = ObservedTweet(BEN, "", False, 100)
    assert kinds(history.check(found)) == (0, 1, 0)


def test_check_skips_likes_of_deleted_tweet(history: History) -> None:
    posted(history)
    history.invoke(LIKE, True)
    history.ok(LIKE)
    history.invoke(DELETE, True)
    history.ok(DELETE)
    assert not history.check(there((100, "key:1"), deleted=True))


def test_check_author_list_contains_live_tweets_once(history: History) -> None:
    posted(history)
    found = there((100, "key:1"))
    found.listed[ANN] = []
    assert kinds(history.check(found)) == (1, 0, 0)
    found.listed[ANN] = [100, 100]
    assert kinds(history.check(found)) == (0, 1, 0)
    found.listed[ANN] = [100, 7]
    assert kinds(history.check(found)) == (0, 0, 1)


def test_check_fault_contains_history(history: History) -> None:
    posted(history)
    (told,) = history.check(there()).lost
    assert told == "post of 1 on key:1 is not there; invoke True, ok True"
