"""Builds the statements that store, hide and purge the rows of a tweet in Cassandra. Does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from roost.tweet.v1 import tweet_pb2

from services.platform.events.log import Record
from services.tweet.store.cassandra import schema as cql

Statement = tuple[str, tuple[Any, ...]]

# Maximum number of ancestors stored in the row of a reply, the nearest ones. A thread reads further ancestors from the
# row of the last stored ancestor.
ANCESTORS_PER_ROW = 32


class NewTweet(NamedTuple):
    """A new tweet and its event. A NewTweet contains all that is needed to store the tweet, so any process can store
    the tweet, or store it again."""

    core: tweet_pb2.TweetCore
    conversation_id: int
    event: Record

    @property
    def id(self) -> int:
        """The tweet's id."""
        return self.core.head.id


class Stored(NamedTuple):
    """A row of `tweets_by_id`. `hidden` is its state (LIVE, REMOVED or DELETED), and `changed_us` the write timestamp
    of the state. `ancestors` are the ids of its nearest ancestors, nearest first, at most ANCESTORS_PER_ROW."""

    head: tweet_pb2.TweetHead
    core: bytes
    hidden: int
    version: int
    action_id: int
    hidden_at_s: int
    ancestors: Sequence[int]
    changed_us: int


def head_of(row: Sequence[Any]) -> tweet_pb2.TweetHead:
    """Returns the TweetHead of a row of the statement CORES or STORED."""
    return tweet_pb2.TweetHead(
        id=row[0],
        author_id=row[1],
        reply_to_author_id=row[2],
        reply_to_id=row[3],
        retweet_of_id=row[4],
        retweet_of_author_id=row[5],
        quote_of_id=row[6],
        quote_of_author_id=row[7],
        deleted=row[8] != cql.LIVE,
    )


def parse_stored(row: Sequence[Any]) -> Stored:
    """Parses a row of the statement STORED."""
    _, version, action_id, hidden_at_s, ancestors, changed_us = row[10:]
    return Stored(head_of(row), row[9], row[8], version, action_id or 0, hidden_at_s or 0, ancestors or (), changed_us)


def links(head: tweet_pb2.TweetHead) -> list[tuple[int, int]]:
    """Returns the id of each tweet to which this one refers, with the kind of the link (REPLY, RETWEET, QUOTE)."""
    found = ((head.reply_to_id, cql.REPLY), (head.retweet_of_id, cql.RETWEET), (head.quote_of_id, cql.QUOTE))
    return [(tweet_id, kind) for tweet_id, kind in found if tweet_id]


def create(post: NewTweet, ancestors: Sequence[int]) -> list[Statement]:
    """Returns the statements that store a new tweet, except the statements of `bucket_rows`. `ancestors` are the ids of
    the tweet's nearest ancestors, nearest first, at most ANCESTORS_PER_ROW."""
    head, at_us = post.core.head, cql.created_us(post.id)
    steps: list[Statement] = [
        (
            cql.ADD,
            (
                *(head.id, head.author_id, post.conversation_id, head.reply_to_id, head.reply_to_author_id),
                *(head.retweet_of_id, head.retweet_of_author_id, head.quote_of_id, head.quote_of_author_id),
                *(list(ancestors) or None, post.core.core, at_us),
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


def bucket_rows(head: tweet_pb2.TweetHead) -> list[Statement]:
    """Returns the statements that add the tweet's month and hour to the lists of buckets with tweets. The statements
    are the same for all tweets of a bucket, so a process can skip a statement that it has executed before."""
    return [
        (cql.ADD_MONTH, (head.author_id, cql.month_of(head.id))),
        (cql.ADD_HOUR, (cql.ALL_HOURS, cql.hour_of(head.id))),
    ]


def set_state(head: tweet_pb2.TweetHead, hidden: int, at_us: int, action_id: int, at_s: int) -> list[Statement]:
    """Returns the statements that set the state of a tweet to `hidden` (LIVE, REMOVED or DELETED) in all tables that
    list it. `at_us` is their write timestamp, `at_s` the time of the change in Unix seconds (0 for LIVE), `action_id`
    the moderation action (0 if there is none)."""
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


def set_orphaned(retweet_id: int, author_id: int, hidden: int, at_us: int) -> Statement:
    """Returns the statement that excludes a retweet from its author's tweet count if its original is hidden, otherwise
    includes the retweet again. `hidden` is the state of the original, `at_us` the write timestamp."""
    return cql.ORPHAN, (at_us, int(hidden != cql.LIVE), author_id, cql.month_of(retweet_id), retweet_id)


def uncount(parse_stored: Stored, absent: bool, at_us: int) -> list[Statement]:
    """If `absent`, returns the statements that exclude a tweet from the counts of the tweets to which it refers,
    otherwise the statements that include this tweet in these counts again. `at_us` is the time in Unix microseconds at
    which the author became absent or active."""
    head, steps = parse_stored.head, list[Statement]()
    for tweet_id, kind in links(head):
        if absent:
            key = (tweet_id, kind + cql.UNCOUNTED, head.id)
            # The second row of the link gets the state LIVE with the timestamp of the creation. Changes of the state
            # are written to both rows, with later timestamps, so they win.
            steps.append((cql.HIDE_LINK, (cql.created_us(head.id), cql.LIVE, *key)))
            steps.append((cql.UNCOUNT_LINK, (at_us, head.author_id, *key)))
        else:
            steps.append((cql.COUNT_LINK_AGAIN, (at_us, tweet_id, kind + cql.UNCOUNTED, head.id)))
    return steps


def list_for_purge(tweet_id: int, at_s: int) -> list[Statement]:
    """Returns the statements that list a tweet deleted at `at_s` (Unix seconds) for the purge."""
    hour = at_s * 1000 // cql.HOUR_MS
    return [
        (cql.ADD_DELETION, (hour, at_s, tweet_id)),
        (cql.ADD_DELETION_HOUR, (cql.ALL_HOURS, hour)),
    ]


def delete_rows(head: tweet_pb2.TweetHead) -> list[Statement]:
    """Returns the statements that delete all rows that `create` stored. The replies to the tweet, its retweets and its
    quotes stay."""
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
    """Returns the partition of the tweet in `tweets_by_hour`: hour and shard."""
    return cql.hour_of(tweet_id), tweet_id % cql.HOUR_SHARDS
