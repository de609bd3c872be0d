"""Tables and statements of the Cassandra adapter.

`pairs` is authoritative: all edges between two users are one row, changed by compare-and-set only. The lists by user
are copies, written with the row's own stamp as write timestamp, so that a late or repeated write never undoes a newer
one.
"""

from __future__ import annotations

from services.graph.store import Listing
from services.platform.cassandra.outbox import OUTBOX_MIGRATION

_PAIRS = """
CREATE TABLE IF NOT EXISTS pairs (
    low bigint, high bigint, change bigint, stamp bigint,
    low_follows bigint, low_bucket tinyint, high_follows bigint, high_bucket tinyint,
    low_blocks bigint, high_blocks bigint, low_mutes bigint, high_mutes bigint,
    last text, PRIMARY KEY ((low, high))
);
CREATE TABLE IF NOT EXISTS settled (low bigint, high bigint, stamp bigint, PRIMARY KEY ((low, high)));
"""
# `settled` and `intents` are unused: `notes` replaced them. Their migrations must stay, because migrations are applied
# in order and never changed.
_INTENTS = """
CREATE TABLE IF NOT EXISTS intents (
    minute bigint, shard tinyint, low bigint, high bigint, PRIMARY KEY ((minute, shard), low, high)
) WITH default_time_to_live = 86400
    AND compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS', 'compaction_window_size': 2};
"""
_LISTS_BY_USER = """
CREATE TABLE IF NOT EXISTS following_by_user (
    user_id bigint, at_ms bigint, other_id bigint, PRIMARY KEY (user_id, at_ms, other_id)
) WITH CLUSTERING ORDER BY (at_ms DESC, other_id DESC);
CREATE TABLE IF NOT EXISTS followers_by_user (
    user_id bigint, bucket tinyint, at_ms bigint, other_id bigint, PRIMARY KEY ((user_id, bucket), at_ms, other_id)
) WITH CLUSTERING ORDER BY (at_ms DESC, other_id DESC);
CREATE TABLE IF NOT EXISTS blocks_by_user (
    user_id bigint, at_ms bigint, other_id bigint, PRIMARY KEY (user_id, at_ms, other_id)
) WITH CLUSTERING ORDER BY (at_ms DESC, other_id DESC);
CREATE TABLE IF NOT EXISTS mutes_by_user (
    user_id bigint, at_ms bigint, other_id bigint, PRIMARY KEY (user_id, at_ms, other_id)
) WITH CLUSTERING ORDER BY (at_ms DESC, other_id DESC);
"""
# All users who ever had an edge, in ascending ranges of ids. Scans over all users read this.
_PEOPLE = """
CREATE TABLE IF NOT EXISTS people (range int, user_id bigint, PRIMARY KEY (range, user_id));
CREATE TABLE IF NOT EXISTS ranges (one tinyint, range int, PRIMARY KEY (one, range));
"""
_COUNTS = """
CREATE TABLE IF NOT EXISTS counts (
    user_id bigint, side tinyint, bucket tinyint, changed_ms bigint, counted_ms bigint, edges bigint,
    PRIMARY KEY (user_id, side, bucket)
);
"""
_TIERS = """
CREATE TABLE IF NOT EXISTS tiers (
    shard tinyint, user_id bigint, tier tinyint, choice tinyint, changed_at_ms bigint, change bigint, event blob,
    PRIMARY KEY (shard, user_id)
);
CREATE TABLE IF NOT EXISTS told (user_id bigint PRIMARY KEY, change bigint);
CREATE TABLE IF NOT EXISTS settings (name text PRIMARY KEY, value bigint);
"""
# Intents, and whether the follow-up writes of their changes are done.
_INTENT_LOG = """
CREATE TABLE IF NOT EXISTS notes (
    minute bigint, shard tinyint, low bigint, high bigint, stamp bigint, done boolean,
    PRIMARY KEY ((minute, shard), low, high, stamp)
) WITH default_time_to_live = 259200
    AND compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS', 'compaction_window_size': 6};
"""
# Follows that are excluded from the counts of `user_id` because the other user is absent. The write timestamp is the
# time of the suspension or deactivation.
_UNCOUNTED = """
CREATE TABLE IF NOT EXISTS uncounted (user_id bigint, side tinyint, other_id bigint, PRIMARY KEY ((user_id, side), other_id))
"""
KEYSPACE = "graph"
# The keyspaces of the service by name, each with its migrations in order.
KEYSPACES = {
    KEYSPACE: (_PAIRS, _INTENTS, _LISTS_BY_USER, _PEOPLE, _COUNTS, _TIERS, OUTBOX_MIGRATION, _INTENT_LOG, _UNCOUNTED)
}

_EDGE_COLUMNS = "low_follows, low_bucket, high_follows, high_bucket, low_blocks, high_blocks, low_mutes, high_mutes"
PAIR = f"SELECT change, stamp, last, {_EDGE_COLUMNS} FROM pairs WHERE low = ? AND high = ?"  # noqa: S608 (our own names)
SWAP_PAIR = """
UPDATE pairs SET change = ?, stamp = ?, last = ?, low_follows = ?, low_bucket = ?, high_follows = ?, high_bucket = ?,
    low_blocks = ?, high_blocks = ?, low_mutes = ?, high_mutes = ?
WHERE low = ? AND high = ? IF change = ?
"""

ADD_INTENT = "INSERT INTO notes (minute, shard, low, high, stamp) VALUES (?, ?, ?, ?, ?)"
FINISH_INTENT = "INSERT INTO notes (minute, shard, low, high, stamp, done) VALUES (?, ?, ?, ?, ?, true)"
INTENT_DONE = "SELECT done FROM notes WHERE minute = ? AND shard = ? AND low = ? AND high = ? AND stamp = ?"
INTENTS = (
    "SELECT low, high, stamp, done FROM notes WHERE minute = ? AND shard = ? AND (low, high, stamp) > (?, ?, ?) LIMIT ?"
)
# The minute is also the write timestamp, so the later minute wins in any order of writes.
SWEPT = "INSERT INTO settings (name, value) VALUES (?, ?) USING TIMESTAMP ?"

ADD_FOLLOWING = "INSERT INTO following_by_user (user_id, at_ms, other_id) VALUES (?, ?, ?) USING TIMESTAMP ?"
DROP_FOLLOWING = "DELETE FROM following_by_user USING TIMESTAMP ? WHERE user_id = ? AND at_ms = ? AND other_id = ?"
ADD_FOLLOWER = "INSERT INTO followers_by_user (user_id, bucket, at_ms, other_id) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"
DROP_FOLLOWER = (
    "DELETE FROM followers_by_user USING TIMESTAMP ? WHERE user_id = ? AND bucket = ? AND at_ms = ? AND other_id = ?"
)
ADD_BLOCK = "INSERT INTO blocks_by_user (user_id, at_ms, other_id) VALUES (?, ?, ?) USING TIMESTAMP ?"
DROP_BLOCK = "DELETE FROM blocks_by_user USING TIMESTAMP ? WHERE user_id = ? AND at_ms = ? AND other_id = ?"
ADD_MUTE = "INSERT INTO mutes_by_user (user_id, at_ms, other_id) VALUES (?, ?, ?) USING TIMESTAMP ?"
DROP_MUTE = "DELETE FROM mutes_by_user USING TIMESTAMP ? WHERE user_id = ? AND at_ms = ? AND other_id = ?"

FOLLOWERS_PAGE = """
SELECT at_ms, other_id FROM followers_by_user WHERE user_id = ? AND bucket = ? AND (at_ms, other_id) < (?, ?) LIMIT ?
"""
_PAGE = "SELECT at_ms, other_id FROM {} WHERE user_id = ? AND (at_ms, other_id) < (?, ?) LIMIT ?"
# Followers have a separate statement, because they are sharded into buckets.
PAGES = {
    Listing.FOLLOWING: _PAGE.format("following_by_user"),
    Listing.BLOCKS: _PAGE.format("blocks_by_user"),
    Listing.MUTES: _PAGE.format("mutes_by_user"),
}
ADD_USER = "INSERT INTO people (range, user_id) VALUES (?, ?)"
ADD_RANGE = "INSERT INTO ranges (one, range) VALUES (0, ?)"
RANGES = "SELECT range FROM ranges WHERE one = 0 AND range >= ? LIMIT ?"
USERS_IN_RANGE = "SELECT user_id FROM people WHERE range = ? AND user_id > ? LIMIT ?"

# The time is also the write timestamp, so the later of two changes wins in any order of writes.
MARK_DIRTY = "UPDATE counts USING TIMESTAMP ? SET changed_ms = ? WHERE user_id = ? AND side = ? AND bucket = ?"
SET_COUNT = (
    "UPDATE counts USING TIMESTAMP ? SET counted_ms = ?, edges = ? WHERE user_id = ? AND side = ? AND bucket = ?"
)
COUNTS = "SELECT side, bucket, changed_ms, counted_ms, edges FROM counts WHERE user_id = ?"
UNCOUNT = "INSERT INTO uncounted (user_id, side, other_id) VALUES (?, ?, ?) USING TIMESTAMP ?"
COUNT_AGAIN = "DELETE FROM uncounted USING TIMESTAMP ? WHERE user_id = ? AND side = ? AND other_id = ?"
# Finds the users with excluded edges among at most UNCOUNTED_PER_READ ids. Almost no user has excluded edges, so only
# few partitions must be counted.
ANY_UNCOUNTED = "SELECT DISTINCT user_id, side FROM uncounted WHERE user_id IN ? AND side IN ?"
UNCOUNTED_PER_READ = 50
COUNT_UNCOUNTED = "SELECT count(*) FROM uncounted WHERE user_id = ? AND side = ?"
COUNT_FOLLOWERS = "SELECT count(*) FROM followers_by_user WHERE user_id = ? AND bucket = ?"
COUNT_FOLLOWING = "SELECT count(*) FROM following_by_user WHERE user_id = ?"

TIER_ROW = "SELECT tier, choice, changed_at_ms, change, event FROM tiers WHERE shard = ? AND user_id = ?"
SWAP_TIER_ROW = """
UPDATE tiers SET tier = ?, choice = ?, changed_at_ms = ?, change = ?, event = ?
WHERE shard = ? AND user_id = ? IF change = ?
"""
TIER_ROWS = "SELECT user_id, tier, changed_at_ms FROM tiers WHERE shard = ? AND user_id > ? LIMIT ?"
PUBLISHED_CHANGE = "SELECT change FROM told WHERE user_id = ?"
SET_PUBLISHED_CHANGE = "INSERT INTO told (user_id, change) VALUES (?, ?) USING TIMESTAMP ?"
SETTING = "SELECT value FROM settings WHERE name = ?"
SET_SETTING = "INSERT INTO settings (name, value) VALUES (?, ?)"
