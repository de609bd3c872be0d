"""The tables and statements of the Cassandra adapter.

`pairs` is the truth: all that stands between two people, in one row that is changed by compare-and-set alone. The lists by user are
copies of it, each written with the row's own stamp, so that a late or repeated write never undoes a later one.
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
# Both superseded by `notes`, and not used any more.
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
# Everybody who ever had an edge, in ranges of ids that ascend: what walks over all people walks here.
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
# A change under way, for whoever has to finish it, and whether that is done.
_NOTES = """
CREATE TABLE IF NOT EXISTS notes (
    minute bigint, shard tinyint, low bigint, high bigint, stamp bigint, done boolean,
    PRIMARY KEY ((minute, shard), low, high, stamp)
) WITH default_time_to_live = 259200
    AND compaction = {'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'HOURS', 'compaction_window_size': 6};
"""
# Follows that the count of `user_id` leaves out, for the other does not take part. Written with the time of that decision.
_UNCOUNTED = """
CREATE TABLE IF NOT EXISTS uncounted (user_id bigint, side tinyint, other_id bigint, PRIMARY KEY ((user_id, side), other_id))
"""
KEYSPACE = "graph"
# The keyspaces of the service by name, each with its migrations in order.
KEYSPACES = {
    KEYSPACE: (_PAIRS, _INTENTS, _LISTS_BY_USER, _PEOPLE, _COUNTS, _TIERS, OUTBOX_MIGRATION, _NOTES, _UNCOUNTED)
}

_TIES = "low_follows, low_bucket, high_follows, high_bucket, low_blocks, high_blocks, low_mutes, high_mutes"
PAIR = f"SELECT change, stamp, last, {_TIES} FROM pairs WHERE low = ? AND high = ?"  # noqa: S608 (our own names)
SWAP_PAIR = """
UPDATE pairs SET change = ?, stamp = ?, last = ?, low_follows = ?, low_bucket = ?, high_follows = ?, high_bucket = ?,
    low_blocks = ?, high_blocks = ?, low_mutes = ?, high_mutes = ?
WHERE low = ? AND high = ? IF change = ?
"""

NOTE = "INSERT INTO notes (minute, shard, low, high, stamp) VALUES (?, ?, ?, ?, ?)"
MARK_NOTE = "INSERT INTO notes (minute, shard, low, high, stamp, done) VALUES (?, ?, ?, ?, ?, true)"
NOTED = "SELECT done FROM notes WHERE minute = ? AND shard = ? AND low = ? AND high = ? AND stamp = ?"
NOTES = (
    "SELECT low, high, stamp, done FROM notes WHERE minute = ? AND shard = ? AND (low, high, stamp) > (?, ?, ?) LIMIT ?"
)
# The later minute wins, whoever comes last.
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
# Followers are not here: they lie in buckets.
PAGES = {
    Listing.FOLLOWING: _PAGE.format("following_by_user"),
    Listing.BLOCKS: _PAGE.format("blocks_by_user"),
    Listing.MUTES: _PAGE.format("mutes_by_user"),
}
ADD_PERSON = "INSERT INTO people (range, user_id) VALUES (?, ?)"
ADD_RANGE = "INSERT INTO ranges (one, range) VALUES (0, ?)"
RANGES = "SELECT range FROM ranges WHERE one = 0 AND range >= ? LIMIT ?"
PEOPLE = "SELECT user_id FROM people WHERE range = ? AND user_id > ? LIMIT ?"

# The later of two marks wins by its own time, whoever comes last.
MARK = "UPDATE counts USING TIMESTAMP ? SET changed_ms = ? WHERE user_id = ? AND side = ? AND bucket = ?"
COUNTED = "UPDATE counts USING TIMESTAMP ? SET counted_ms = ?, edges = ? WHERE user_id = ? AND side = ? AND bucket = ?"
COUNTS = "SELECT side, bucket, changed_ms, counted_ms, edges FROM counts WHERE user_id = ?"
UNCOUNT = "INSERT INTO uncounted (user_id, side, other_id) VALUES (?, ?, ?) USING TIMESTAMP ?"
COUNT_AGAIN = "DELETE FROM uncounted USING TIMESTAMP ? WHERE user_id = ? AND side = ? AND other_id = ?"
# Of at most UNCOUNTED_AT_ONCE ids. Next to nobody has any: only those are counted, a partition a statement.
ANY_UNCOUNTED = "SELECT DISTINCT user_id, side FROM uncounted WHERE user_id IN ? AND side IN ?"
UNCOUNTED_AT_ONCE = 50
COUNT_UNCOUNTED = "SELECT count(*) FROM uncounted WHERE user_id = ? AND side = ?"
COUNT_FOLLOWERS = "SELECT count(*) FROM followers_by_user WHERE user_id = ? AND bucket = ?"
COUNT_FOLLOWING = "SELECT count(*) FROM following_by_user WHERE user_id = ?"

STAR = "SELECT tier, choice, changed_at_ms, change, event FROM tiers WHERE shard = ? AND user_id = ?"
SWAP_STAR = """
UPDATE tiers SET tier = ?, choice = ?, changed_at_ms = ?, change = ?, event = ?
WHERE shard = ? AND user_id = ? IF change = ?
"""
STARS = "SELECT user_id, tier, changed_at_ms FROM tiers WHERE shard = ? AND user_id > ? LIMIT ?"
TOLD = "SELECT change FROM told WHERE user_id = ?"
TELL = "INSERT INTO told (user_id, change) VALUES (?, ?) USING TIMESTAMP ?"
SETTING = "SELECT value FROM settings WHERE name = ?"
SET_SETTING = "INSERT INTO settings (name, value) VALUES (?, ?)"
