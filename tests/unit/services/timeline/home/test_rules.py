"""Which authors' tweets a home timeline shows."""

from __future__ import annotations

from services.shared.hydration.cache import CachedTweet
from services.shared.hydration.parsed import TweetRecord
from services.timeline.home.rules import HomeRules

READER, FOLLOWEE, STRANGER = 1, 2, 3


def head(tweet_id: int, author_id: int, parent_author_id: int = 0) -> CachedTweet:
    parent_id = 1 if parent_author_id else 0
    return CachedTweet(TweetRecord(tweet_id, author_id, 0, 0, 0, 0, parent_id, parent_author_id, b"", 0, 0, 0, False))


def admitted(*tweets: CachedTweet, followees: frozenset[int] = frozenset({FOLLOWEE})) -> list[int]:
    return [tweet.id for tweet in HomeRules(READER, followees).admitted(tweets)]


def test_home_admits_tweets_of_reader_and_followees() -> None:
    tweets = head(10, FOLLOWEE), head(11, STRANGER), head(12, READER)
    assert admitted(*tweets) == [10, 12]
    assert admitted(*tweets, followees=frozenset()) == [12]


def test_home_admits_followees_reply_to_reader_and_followees_only() -> None:
    replies = head(10, FOLLOWEE, STRANGER), head(11, FOLLOWEE, READER), head(12, FOLLOWEE, FOLLOWEE)
    assert admitted(*replies) == [11, 12]


def test_home_admits_every_reply_of_the_reader() -> None:
    assert admitted(head(10, READER, STRANGER)) == [10]


def test_home_requires_parent_of_all_replies_but_the_readers() -> None:
    rules = HomeRules(READER, {FOLLOWEE})
    assert rules.requires_parent(head(10, FOLLOWEE, READER))
    assert not rules.requires_parent(head(11, READER, STRANGER))
