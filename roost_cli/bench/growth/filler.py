"""Fills the embedded stores of a mesh that does not run: users, follows and tweets, without the API and without events.

Through the API a million users or tweets would take an hour. The search index and the counts of likes do not learn of
what is filled in.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_pb2

from roost_cli.bench.tweet_texts import TweetTexts
from services.graph.store.sqlite import schema as graph
from services.platform.ids.snowflake import EPOCH_MS, SEQUENCE_BITS, WORKER_BITS
from services.tweet.store.sqlite import schema as tweets

# Milliseconds before now at which the first user, and the first tweet, were created. The difference between the ids of
# two successive ones is 2^12, as if processes with successive worker ids had created them: so a million takes a second.
USERS_AGE_MS, TWEETS_AGE_MS = 2 * 86_400_000, 86_400_000
# Milliseconds before now at which all follows were made. It is far above the clock margin.
FOLLOWS_AGE_MS = 3_600_000
# Number of different texts of the tweets. Making a text costs more than storing a tweet.
TEXTS = 1_000
_ACCOUNT = """
INSERT INTO account (id, username_key, email_key, email, core, state, version, roles, scheme, password_hash)
VALUES (?, ?, ?, ?, ?, 1, 1, '', 0, x'')
"""


class Filler:
    """Writes to the databases in `folder`, the data directory of a mesh that was started once and has stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now_ms = time.time_ns() // 1_000_000
        texts = TweetTexts(seed=3)
        self._texts = [texts.next() for _ in range(TEXTS)]

    def user_id(self, number: int) -> int:
        """Returns the id of the user with this number, which counts from 0."""
        return _snowflake(self._now_ms - USERS_AGE_MS, number)

    def tweet_id(self, number: int) -> int:
        """Returns the id of the tweet with this number, which counts from 0."""
        return _snowflake(self._now_ms - TWEETS_AGE_MS, number)

    def username(self, number: int) -> str:
        """Returns the username of the user with this number."""
        return f"u{number:08d}"

    def add_users(self, numbers: Iterable[int]) -> None:
        """Adds the users with these numbers."""
        with self._opened("identity.db") as connection:
            connection.executemany(_ACCOUNT, map(self._account, numbers))

    def add_follows(self, follows: Iterable[tuple[int, int]]) -> None:
        """Adds follows; each is the number of the follower and that of the followee. No follow may exist already."""
        at_ms = self._now_ms - FOLLOWS_AGE_MS
        # Version of the relations of all users. A later change has a greater one.
        version = at_ms * 1_000
        ids = ((self.user_id(follower), self.user_id(followee)) for follower, followee in follows)
        with self._opened("graph.db") as connection:
            for follower, followee in ids:
                connection.execute(graph.ADD_FOLLOWING, (follower, followee, at_ms))
                connection.execute(graph.ADD_FOLLOWER, (followee, at_ms, follower))
                connection.execute(graph.COUNT_UP, (follower, 0, 1, version)).fetchall()
                connection.execute(graph.COUNT_UP, (followee, 1, 0, version)).fetchall()

    def add_tweets(self, authors: Iterable[tuple[int, int]]) -> None:
        """Adds plain tweets; each is the number of the tweet and that of the author."""
        counts: dict[int, int] = {}

        def rows() -> Iterator[tuple[object, ...]]:
            for number, author in authors:
                tweet_id, author_id = self.tweet_id(number), self.user_id(author)
                counts[author_id] = counts.get(author_id, 0) + 1
                yield tweet_id, author_id, self._core(number, tweet_id, author_id), tweet_id, 0, 0, 0, 0, 0, 0

        with self._opened("tweet.db") as connection:
            connection.executemany(tweets.INSERT, rows())
            connection.executemany(tweets.COUNT_OF_AUTHOR, counts.items())

    def _account(self, number: int) -> tuple[object, ...]:
        user_id, name = self.user_id(number), self.username(number)
        core = user_pb2.User(id=user_id, username=name, display_name=f"User {number}")
        core.created_at.FromMilliseconds(self._now_ms - USERS_AGE_MS)
        email = f"{name}@people.invalid"
        return user_id, name, email, email, core.SerializeToString()

    def _core(self, number: int, tweet_id: int, author_id: int) -> bytes:
        created_at = Timestamp()
        created_at.FromMilliseconds(self._now_ms - TWEETS_AGE_MS + number)
        tweet = tweet_pb2.Tweet(
            id=tweet_id,
            author_id=author_id,
            text=self._texts[number % TEXTS],
            created_at=created_at,
            conversation_id=tweet_id,
            entities=tweet_pb2.Entities(),
        )
        return tweet.SerializeToString()

    @contextmanager
    def _opened(self, name: str) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._folder / name)) as connection:
            # Not durable while it is filled: after a crash the measurement starts again.
            connection.execute("PRAGMA synchronous = OFF")
            with connection:
                yield connection
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _snowflake(at_ms: int, number: int) -> int:
    return ((at_ms - EPOCH_MS) << (WORKER_BITS + SEQUENCE_BITS)) + (number << SEQUENCE_BITS)
