"""Parses the responses of the services that own tweets and users."""

from __future__ import annotations

from typing import NamedTuple

from roost.identity.v1 import user_pb2, user_service_pb2
from roost.tweet.v1 import tweet_pb2

from services.shared.hydration.fragments import author_fragment

_ACTIVE = user_pb2.USER_STATE_ACTIVE


class TweetRecord(NamedTuple):
    """A live tweet as the tweet service returns it; an id of 0 means none. `data` is the core fragment. `retweeted`
    means that the viewer of the request retweeted the tweet."""

    id: int
    author_id: int
    original_id: int
    original_author_id: int
    quoted_id: int
    quoted_author_id: int
    parent_id: int
    parent_author_id: int
    data: bytes
    retweets: int
    replies: int
    quotes: int
    retweeted: bool


def parse_live_core(data: bytes) -> TweetRecord | None:
    """Parses a serialized TweetCore; returns None if the tweet is not live."""
    message = tweet_pb2.TweetCore.FromString(data)
    head = message.head
    if head.deleted:
        return None
    return TweetRecord(
        head.id,
        head.author_id,
        head.retweet_of_id,
        head.retweet_of_author_id,
        head.quote_of_id,
        head.quote_of_author_id,
        head.reply_to_id,
        head.reply_to_author_id,
        message.core,
        message.retweets,
        message.replies,
        message.quotes,
        message.retweeted,
    )


def parse_active_user(data: bytes) -> tuple[int, bytes]:
    """Parses a serialized UserRefEntry. Returns the user's id, and the field `author` of a tweet: empty if the user is
    suspended or deactivated."""
    entry = user_service_pb2.UserRefEntry.FromString(data)
    return entry.user_id, author_fragment(entry.ref) if entry.state == _ACTIVE else b""
