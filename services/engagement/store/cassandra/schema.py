"""Tables and statements of the engagement store in Cassandra. A row of `marks` is a reaction; its column `place` is the
reaction id.

A user's partition of `marks` is the source of truth. It is written by lightweight transactions only, so exactly one of
several concurrent changes is applied. The transaction also stores a note there: a row that proves that the event of the
change was committed. The other tables are copies with one row per reaction, inserted once and
deleted once with fixed write timestamps, so copies may be written in any order and any number of times.
"""

from __future__ import annotations

from services.engagement.store import ReactionKind
from services.platform.cassandra.outbox import OUTBOX_MIGRATION

# Write timestamps of a copy: the deletion wins over the insertion, even if the insertion arrives later.
ADDED, REMOVED = 1, 2
# Write timestamp with which an unlike deletes the UNCOUNTED row of its like. It is later than every clock, so that a
# later suspension of the user cannot insert the row again.
FOREVER_US = 1 << 62
# Stored kinds of rows in `marks`: append, never renumber. The `item` of a note is the id of its event.
NUMBERS = {ReactionKind.LIKE: 0, ReactionKind.BOOKMARK: 1}
NOTE = 2
# Only in `marks_by_tweet`, all in the first bucket: likes that are not counted because their user is suspended or
# deactivated. The write timestamp is the time of the suspension or deactivation.
UNCOUNTED = 3
# The first SHARD_FROM reactions of a kind to a tweet are in one bucket (FIRST_BUCKET). Later reactions of the kind are
# in one of BUCKETS more buckets, chosen by user.
SHARD_FROM = 1_000
BUCKETS = 64
FIRST_BUCKET = 0

SCHEMA = """
CREATE TABLE IF NOT EXISTS marks (
    user_id bigint, kind int, item bigint, place bigint, gone bigint, bucket int, tweet_id bigint,
    PRIMARY KEY (user_id, kind, item)
);
CREATE TABLE IF NOT EXISTS marks_by_user (
    user_id bigint, kind int, place bigint, tweet_id bigint, PRIMARY KEY ((user_id, kind), place)
) WITH CLUSTERING ORDER BY (place DESC);
CREATE TABLE IF NOT EXISTS marks_by_tweet (
    tweet_id bigint, bucket int, kind int, place bigint, user_id bigint, PRIMARY KEY ((tweet_id, bucket), kind, place)
) WITH CLUSTERING ORDER BY (kind ASC, place DESC);
CREATE TABLE IF NOT EXISTS totals (
    tweet_id bigint, kind int, bucket int, marks bigint, PRIMARY KEY (tweet_id, kind, bucket)
)
"""
KEYSPACE = "engagement"
# The keyspaces of the service by name, each with its migrations in order.
KEYSPACES = {KEYSPACE: (SCHEMA, OUTBOX_MIGRATION)}

REACTION = "SELECT place, gone, bucket FROM marks WHERE user_id = ? AND kind = ? AND item = ?"
REACTIONS = "SELECT kind, item, place FROM marks WHERE user_id = ? AND kind IN ? AND item IN ?"
NOTED = "SELECT place, gone, bucket, tweet_id FROM marks WHERE user_id = ? AND kind = ? AND item = ?"
# SET and UNSET also write the note of the event. The note expires together with the outbox row of the event.
SET = """
BEGIN BATCH
UPDATE marks SET place = ?, bucket = ? WHERE user_id = ? AND kind = ? AND item = ? IF place = null;
UPDATE marks USING TTL ? SET place = ?, bucket = ?, tweet_id = ? WHERE user_id = ? AND kind = ? AND item = ?;
APPLY BATCH
"""
UNSET = """
BEGIN BATCH
UPDATE marks SET place = null, gone = ? WHERE user_id = ? AND kind = ? AND item = ? IF place = ?;
UPDATE marks USING TTL ? SET gone = ?, bucket = ?, tweet_id = ? WHERE user_id = ? AND kind = ? AND item = ?;
APPLY BATCH
"""
SET_WITHOUT_EVENT = """
UPDATE marks SET place = ?, bucket = ? WHERE user_id = ? AND kind = ? AND item = ? IF place = null
"""
UNSET_WITHOUT_EVENT = """
UPDATE marks SET place = null, gone = ? WHERE user_id = ? AND kind = ? AND item = ? IF place = ?
"""

COPY_BY_USER = "INSERT INTO marks_by_user (user_id, kind, place, tweet_id) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
COPY_BY_TWEET = """
INSERT INTO marks_by_tweet (tweet_id, bucket, kind, place, user_id) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?
"""
DROP_BY_USER = "DELETE FROM marks_by_user USING TIMESTAMP ? WHERE user_id = ? AND kind = ? AND place = ?"
DROP_BY_TWEET = """
DELETE FROM marks_by_tweet USING TIMESTAMP ? WHERE tweet_id = ? AND bucket = ? AND kind = ? AND place = ?
"""

BY_USER = "SELECT place, tweet_id FROM marks_by_user WHERE user_id = ? AND kind = ? AND place < ? LIMIT ?"
BY_TWEET = """
SELECT place, user_id FROM marks_by_tweet WHERE tweet_id = ? AND bucket = ? AND kind = ? AND place < ? LIMIT ?
"""
COUNTED = "SELECT COUNT(*) FROM marks_by_tweet WHERE tweet_id = ? AND bucket = ? AND kind = ?"
# Finds the tweets that have reactions, because most tweets have none. Only these tweets are counted, with one statement
# per partition, because Cassandra warns about aggregates over several partitions.
ANY_REACTIONS = "SELECT DISTINCT tweet_id, bucket FROM marks_by_tweet WHERE tweet_id IN ? AND bucket = ?"
FIRST_COUNTED = """
SELECT tweet_id, kind, COUNT(*) FROM marks_by_tweet WHERE tweet_id = ? AND bucket = ? GROUP BY kind
"""
TOTALS = "SELECT tweet_id, kind, marks FROM totals WHERE tweet_id IN ?"
SHARDED = "SELECT bucket FROM totals WHERE tweet_id = ? AND kind = ? LIMIT 1"
# The write timestamp is the time of the count: the later of two counts wins.
PUT_TOTAL = "INSERT INTO totals (tweet_id, kind, bucket, marks) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"


def bucket_of(user_id: int) -> int:
    """Returns the bucket (1 to BUCKETS) of a user's reactions to sharded tweets. Hashes the whole id, because the low
    bits of a Snowflake are a sequence number and mostly 0."""
    return 1 + ((user_id * 0x9E3779B97F4A7C15) >> 40) % BUCKETS
