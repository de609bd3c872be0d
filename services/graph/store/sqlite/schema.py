"""Tables and statements of the SQLite adapter.

Every follow is stored in two tables, one per direction; both can be read in the order of time. Deleting an edge deletes
its rows.
"""

from __future__ import annotations

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing
from services.platform.sqlite.absences import ABSENCES_SCHEMA
from services.platform.sqlite.outbox import OUTBOX_SCHEMA

EDGES_SCHEMA = """
CREATE TABLE following (
    follower_id INTEGER NOT NULL, followee_id INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    PRIMARY KEY (follower_id, followee_id)
) WITHOUT ROWID;
CREATE INDEX following_by_time ON following (follower_id, at_ms, followee_id);
CREATE TABLE followers (
    followee_id INTEGER NOT NULL, at_ms INTEGER NOT NULL, follower_id INTEGER NOT NULL,
    PRIMARY KEY (followee_id, at_ms, follower_id)
) WITHOUT ROWID;
CREATE TABLE blocks (
    user_id INTEGER NOT NULL, target_id INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (user_id, target_id)
) WITHOUT ROWID;
CREATE INDEX blocks_by_time ON blocks (user_id, at_ms, target_id);
CREATE TABLE mutes (
    user_id INTEGER NOT NULL, target_id INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (user_id, target_id)
) WITHOUT ROWID;
CREATE INDEX mutes_by_time ON mutes (user_id, at_ms, target_id);
CREATE TABLE counts (
    user_id INTEGER PRIMARY KEY, followers INTEGER NOT NULL CHECK (followers >= 0),
    following INTEGER NOT NULL CHECK (following >= 0), version INTEGER NOT NULL
);
CREATE TABLE tiers (
    user_id INTEGER PRIMARY KEY, tier INTEGER NOT NULL, choice INTEGER NOT NULL, changed_at_ms INTEGER NOT NULL
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
# The index for suggestions to users who follow nobody. Without the index, each request for these suggestions would read
# and sort all counts.
_POPULAR_SCHEMA = "CREATE INDEX counts_by_followers ON counts (followers DESC, user_id);"
# Follows excluded from the counts of `user_id` because the other user is absent; `side` is 0 for followers, 1 for
# followees.
_UNCOUNTED_SCHEMA = """
CREATE TABLE uncounted (
    user_id INTEGER NOT NULL, side INTEGER NOT NULL, other_id INTEGER NOT NULL, PRIMARY KEY (user_id, side, other_id)
) WITHOUT ROWID;
"""
MIGRATIONS = (EDGES_SCHEMA, OUTBOX_SCHEMA, _POPULAR_SCHEMA, ABSENCES_SCHEMA, _UNCOUNTED_SCHEMA)
OF_FOLLOWERS, OF_FOLLOWEES = 0, 1
UNCOUNT = "INSERT OR IGNORE INTO uncounted (user_id, side, other_id) VALUES (?, ?, ?)"
COUNT_AGAIN = "DELETE FROM uncounted WHERE user_id = ? AND side = ? AND other_id = ?"
# The statements by side. They do not change the relation version, because no edge changes.
COUNT_ONE = {
    OF_FOLLOWERS: "UPDATE counts SET followers = followers + ? WHERE user_id = ?",
    OF_FOLLOWEES: "UPDATE counts SET following = following + ? WHERE user_id = ?",
}

ADD_FOLLOWING = "INSERT OR IGNORE INTO following (follower_id, followee_id, at_ms) VALUES (?, ?, ?)"
ADD_FOLLOWER = "INSERT INTO followers (followee_id, at_ms, follower_id) VALUES (?, ?, ?)"
DROP_FOLLOWING = "DELETE FROM following WHERE follower_id = ? AND followee_id = ? RETURNING at_ms"
DROP_FOLLOWER = "DELETE FROM followers WHERE followee_id = ? AND at_ms = ? AND follower_id = ?"
ADD_BLOCK = "INSERT OR IGNORE INTO blocks (user_id, target_id, at_ms) VALUES (?, ?, ?)"
DROP_BLOCK = "DELETE FROM blocks WHERE user_id = ? AND target_id = ?"
ADD_MUTE = "INSERT OR IGNORE INTO mutes (user_id, target_id, at_ms) VALUES (?, ?, ?)"
DROP_MUTE = "DELETE FROM mutes WHERE user_id = ? AND target_id = ?"

COUNT_UP = """
INSERT INTO counts (user_id, followers, following, version) VALUES (?, ?, ?, ?)
ON CONFLICT (user_id) DO UPDATE SET
    followers = followers + excluded.followers, following = following + excluded.following, version = excluded.version
RETURNING followers
"""
# COUNT_UP with a negative number would fail: SQLite applies a CHECK to the row to insert even if the insert becomes an
# update.
COUNT_DOWN = """
UPDATE counts SET followers = followers - ?, following = following - ?, version = ? WHERE user_id = ?
RETURNING followers
"""
COUNTS = "SELECT followers, following FROM counts WHERE user_id = ? AND (followers > 0 OR following > 0)"
FOLLOWERS_COUNT = "SELECT followers FROM counts WHERE user_id = ?"
MOST_FOLLOWED = "SELECT user_id FROM counts WHERE followers > 0 ORDER BY followers DESC, user_id LIMIT ?"
VERSION = "SELECT version FROM counts WHERE user_id = ?"

HAS_BLOCK_BETWEEN = """
SELECT EXISTS (SELECT 1 FROM blocks WHERE user_id = ? AND target_id = ?)
    OR EXISTS (SELECT 1 FROM blocks WHERE user_id = ? AND target_id = ?)
"""
RELATIONSHIP = """
SELECT EXISTS (SELECT 1 FROM following WHERE follower_id = ? AND followee_id = ?),
    EXISTS (SELECT 1 FROM following WHERE follower_id = ? AND followee_id = ?),
    EXISTS (SELECT 1 FROM blocks WHERE user_id = ? AND target_id = ?),
    EXISTS (SELECT 1 FROM blocks WHERE user_id = ? AND target_id = ?),
    EXISTS (SELECT 1 FROM mutes WHERE user_id = ? AND target_id = ?)
"""

# Table, owner column and other column of each list. The names are constants of this module, so they may be formatted
# into SQL.
_LISTS = {
    Listing.FOLLOWERS: ("followers", "followee_id", "follower_id"),
    Listing.FOLLOWING: ("following", "follower_id", "followee_id"),
    Listing.BLOCKS: ("blocks", "user_id", "target_id"),
    Listing.MUTES: ("mutes", "user_id", "target_id"),
}
PAGES = {
    listing: f"SELECT at_ms, {other} FROM {table} WHERE {owner} = ? AND (at_ms, {other}) < (?, ?) "  # noqa: S608 (see above)
    f"ORDER BY at_ms DESC, {other} DESC LIMIT ?"
    for listing, (table, owner, other) in _LISTS.items()
}
SCANS = {
    kind: f"SELECT {owner}, {other}, at_ms FROM {table} WHERE ({owner}, {other}) > (?, ?) "  # noqa: S608 (see above)
    f"ORDER BY {owner}, {other} LIMIT ?"
    for kind, (table, owner, other) in {
        pb.EDGE_KIND_FOLLOW: _LISTS[Listing.FOLLOWING],
        pb.EDGE_KIND_BLOCK: _LISTS[Listing.BLOCKS],
        pb.EDGE_KIND_MUTE: _LISTS[Listing.MUTES],
    }.items()
}

TIER = "SELECT tier, choice, changed_at_ms FROM tiers WHERE user_id = ?"
SET_TIER = "INSERT OR REPLACE INTO tiers (user_id, tier, choice, changed_at_ms) VALUES (?, ?, ?, ?)"
TIERS = "SELECT user_id, tier, changed_at_ms FROM tiers WHERE tier = ? OR changed_at_ms >= ?"
COUNTED_AFTER = "SELECT user_id, followers FROM counts WHERE user_id > ? ORDER BY user_id LIMIT ?"
SETTING = "SELECT value FROM settings WHERE name = ?"
SET_SETTING = "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)"

BLOCKED = "SELECT target_id FROM blocks WHERE user_id = ? LIMIT ?"
MUTED = "SELECT target_id FROM mutes WHERE user_id = ? LIMIT ?"
FOLLOWEES = "SELECT followee_id FROM following WHERE follower_id = ? ORDER BY followee_id LIMIT ?"
HAS_BLOCK = "SELECT 1 FROM blocks WHERE user_id = ? AND target_id = ?"
HAS_FOLLOW = "SELECT 1 FROM following WHERE follower_id = ? AND followee_id = ?"
NEWEST_FOLLOWEES = """
SELECT followee_id FROM following WHERE follower_id = ? ORDER BY at_ms DESC, followee_id DESC LIMIT ?
"""
