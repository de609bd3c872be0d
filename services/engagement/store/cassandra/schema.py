"""Engagement's tables in Cassandra, and every statement on them.

A user's partition of `marks` is the truth: conditional writes only, so each change has one winner, who notes its event there. The other
tables are copies, one row for each time that somebody liked or kept a tweet: a row is written once and taken out once, with fixed
timestamps, so copies may be written in any order and any number of times.
"""

from __future__ import annotations

from services.engagement.store import Kind
from services.platform.cassandra.outbox import OUTBOX_MIGRATION

# Of a copy: whoever takes it out wins over whoever writes it, however late that comes.
MADE, TAKEN_OUT = 1, 2
# Microseconds that no clock reaches: of a like that was taken back nothing is left to leave out.
FOREVER_US = 1 << 62
# Kinds of rows in `marks`, stored: append, never renumber. A note's item is the id of its event.
NUMBERS = {Kind.LIKE: 0, Kind.BOOKMARK: 1}
NOTE = 2
# In `marks_by_tweet` alone, all in the first bucket: likes that are not counted, for who gave them does not take part. Written with the
# time of that decision.
UNCOUNTED = 3
# The first marks of a tweet share a partition. Whoever comes after SPREAD_FROM of a kind goes to one of BUCKETS more, by user.
SPREAD_FROM = 1_000
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

MARK = "SELECT place, gone, bucket FROM marks WHERE user_id = ? AND kind = ? AND item = ?"
MARKED = "SELECT kind, item, place FROM marks WHERE user_id = ? AND kind IN ? AND item IN ?"
NOTED = "SELECT place, gone, bucket, tweet_id FROM marks WHERE user_id = ? AND kind = ? AND item = ?"
# With a note where there is an event: its row goes by itself when nobody asks for it any more.
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
SET_UNTOLD = """
UPDATE marks SET place = ?, bucket = ? WHERE user_id = ? AND kind = ? AND item = ? IF place = null
"""
UNSET_UNTOLD = """
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
# Most tweets have no marks at all. Only the others are counted, a partition a statement: over several Cassandra warns each time.
ANY_MARKS = "SELECT DISTINCT tweet_id, bucket FROM marks_by_tweet WHERE tweet_id IN ? AND bucket = ?"
FIRST_COUNTED = """
SELECT tweet_id, kind, COUNT(*) FROM marks_by_tweet WHERE tweet_id = ? AND bucket = ? GROUP BY kind
"""
TOTALS = "SELECT tweet_id, kind, marks FROM totals WHERE tweet_id IN ?"
SPREAD = "SELECT bucket FROM totals WHERE tweet_id = ? AND kind = ? LIMIT 1"
# The time of the count decides between two that meet.
PUT_TOTAL = "INSERT INTO totals (tweet_id, kind, bucket, marks) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"


def bucket_of(user_id: int) -> int:
    """The bucket, within 1 and BUCKETS, of a user's marks on tweets that have many. The low bits of an id count within a millisecond and
    are mostly 0: so all of it is mixed first."""
    return 1 + ((user_id * 0x9E3779B97F4A7C15) >> 40) % BUCKETS
