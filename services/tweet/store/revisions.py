"""Builds tweet revisions in the same way for every adapter."""

from __future__ import annotations

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2


def first_revision(core: bytes) -> tweet_service_pb2.TweetRevision:
    """Returns the only revision, number 1, of a tweet that was never edited. `core` is the tweet's serialized Tweet
    message."""
    tweet = tweet_pb2.Tweet.FromString(core)
    return tweet_service_pb2.TweetRevision(version=1, text=tweet.text, created_at=tweet.created_at)
