"""Where the rows of a tweet lie in Cassandra: the steps that store, hide and drop them. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from roost.tweet.v1 import tweet_pb2

from services.platform.events.log import Record
from services.tweet.store.cassandra import schema as cql

Statement = tuple[str, tuple[Any, ...]]

# How many of the tweets above a reply are named in its row: the way up a thread takes a read for each so many.
NAMED_ABOVE = 32


class Post(NamedTuple):
    """What `create` stores: all that is needed to store the same again."""

    core: tweet_pb2.TweetCore
    conversation_id: int
    event: Record

    @property
    def id(self) -> int:
        """The tweet's id."""
        return self.core.head.id


class Stored(NamedTuple):
    """A tweet as it stands in `tweets_by_id`. `changed_us` is the write timestamp of its state; `above` the tweets that it answers,
    the nearest first, at most NAMED_ABOVE."""

    head: tweet_pb2.TweetHead
    core: bytes
    hidden: int
    version: int
    action_id: int
    hidden_at_s: int
    above: Sequence[int]
    changed_us: int


def head_of(row: Sequence[Any]) -> tweet_pb2.TweetHead:
    """The head, from a row of CORES or STORED."""
    return tweet_pb2.TweetHead(
        id=row[0],
        author_id=row[1],
        reply_to_author_id=row[2],
        reply_to_id=row[3],
        retweet_of_id=row[4],
        retweet_of_author_id=row[5],
        quote_of_id=row[6],
        quote_of_author_id=row[7],
        deleted=row[8] != cql.STANDS,
    )


def stored(row: Sequence[Any]) -> Stored:
    """A row of STORED."""
    _, version, action_id, hidden_at_s, above, changed_us = row[10:]
    return Stored(head_of(row), row[9], row[8], version, action_id or 0, hidden_at_s or 0, above or (), changed_us)


def links(head: tweet_pb2.TweetHead) -> list[tuple[int, int]]:
    """What the tweet hangs on: tweet and kind."""
    found = ((head.reply_to_id, cql.REPLY), (head.retweet_of_id, cql.RETWEET), (head.quote_of_id, cql.QUOTE))
    return [(tweet_id, kind) for tweet_id, kind in found if tweet_id]


def create(post: Post, above: Sequence[int]) -> list[Statement]:
    """The rows of a new tweet, but for those of `places`."""
    head, at_us = post.core.head, cql.created_us(post.id)
    steps: list[Statement] = [
        (
            cql.ADD,
            (
                *(head.id, head.author_id, post.conversation_id, head.reply_to_id, head.reply_to_author_id),
                *(head.retweet_of_id, head.retweet_of_author_id, head.quote_of_id, head.quote_of_author_id),
                *(list(above) or None, post.core.core, at_us),
            ),
        ),
        (
            cql.ADD_OF_AUTHOR,
            (head.author_id, cql.month_of(head.id), head.id, head.reply_to_id, head.retweet_of_id, at_us),
        ),
        (cql.ADD_TO_HOUR, (*_hour(head.id), head.id, at_us)),
    ]
    for tweet_id, kind in links(head):
        steps.append((cql.ADD_LINK, (tweet_id, kind, head.id, head.author_id, at_us)))
    if head.retweet_of_id:
        steps.append((cql.ADD_RETWEET, (head.author_id, head.retweet_of_id, head.id, at_us)))
    return steps


def places(head: tweet_pb2.TweetHead) -> list[Statement]:
    """The rows that lists find their partitions by: the same for many tweets."""
    return [
        (cql.ADD_MONTH, (head.author_id, cql.month_of(head.id))),
        (cql.ADD_HOUR, (cql.ALL_HOURS, cql.hour_of(head.id))),
    ]


def show(head: tweet_pb2.TweetHead, hidden: int, at_us: int, action_id: int, at_s: int) -> list[Statement]:
    """Makes `hidden` the tweet's state wherever it is listed."""
    steps: list[Statement] = [
        (cql.HIDE, (at_us, hidden, action_id, at_s, head.id)),
        (cql.HIDE_OF_AUTHOR, (at_us, hidden, head.author_id, cql.month_of(head.id), head.id)),
        (cql.HIDE_IN_HOUR, (at_us, hidden, *_hour(head.id), head.id)),
    ]
    for tweet_id, kind in links(head):
        steps.append((cql.HIDE_LINK, (at_us, hidden, tweet_id, kind, head.id)))
        steps.append((cql.HIDE_LINK, (at_us, hidden, tweet_id, kind + cql.UNCOUNTED, head.id)))
    if head.retweet_of_id:
        steps.append((cql.HIDE_RETWEET, (at_us, hidden, head.author_id, head.retweet_of_id, head.id)))
    return steps


def orphan(retweet_id: int, author_id: int, hidden: int, at_us: int) -> Statement:
    """Takes a retweet off its author's count where its original is `hidden`, and puts it back where that stands."""
    return cql.ORPHAN, (at_us, int(hidden != cql.STANDS), author_id, cql.month_of(retweet_id), retweet_id)


def uncount(stored: Stored, absent: bool, at_us: int) -> list[Statement]:
    """Leaves a tweet out of the counts of what it hangs on, or counts it again; `at_us` is when that was decided."""
    head, steps = stored.head, list[Statement]()
    for tweet_id, kind in links(head):
        if absent:
            key = (tweet_id, kind + cql.UNCOUNTED, head.id)
            # Its state is that of the tweet's creation, unless something hid it since, which wrote it here as well.
            steps.append((cql.HIDE_LINK, (cql.created_us(head.id), cql.STANDS, *key)))
            steps.append((cql.UNCOUNT_LINK, (at_us, head.author_id, *key)))
        else:
            steps.append((cql.COUNT_LINK_AGAIN, (at_us, tweet_id, kind + cql.UNCOUNTED, head.id)))
    return steps


def to_purge(tweet_id: int, at_s: int) -> list[Statement]:
    """The rows by which the purge finds a deleted tweet."""
    hour = at_s * 1000 // cql.HOUR_MS
    return [
        (cql.ADD_DELETION, (hour, at_s, tweet_id)),
        (cql.ADD_DELETION_HOUR, (cql.ALL_HOURS, hour)),
    ]


def drop(head: tweet_pb2.TweetHead) -> list[Statement]:
    """Takes everything that `create` stored away, for good. What hangs on the tweet stays."""
    at_us = cql.PURGED_US
    steps: list[Statement] = [
        (cql.DROP, (at_us, head.id)),
        (cql.DROP_OF_AUTHOR, (at_us, head.author_id, cql.month_of(head.id), head.id)),
        (cql.DROP_IN_HOUR, (at_us, *_hour(head.id), head.id)),
    ]
    for tweet_id, kind in links(head):
        steps.append((cql.DROP_LINK, (at_us, tweet_id, kind, head.id)))
        steps.append((cql.DROP_LINK, (at_us, tweet_id, kind + cql.UNCOUNTED, head.id)))
    if head.retweet_of_id:
        steps.append((cql.DROP_RETWEET, (at_us, head.author_id, head.retweet_of_id, head.id)))
    return steps


def _hour(tweet_id: int) -> tuple[int, int]:
    """The partition of the hour that the id lies in. Ids of one millisecond and worker lie beside each other, so shards are taken by
    the whole id."""
    return cql.hour_of(tweet_id), tweet_id % cql.HOUR_SHARDS
