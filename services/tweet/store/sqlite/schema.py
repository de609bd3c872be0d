"""Tables and statements of the SQLite adapter.

One table holds tweets, replies, quotes and retweets; the others are indexes. States: 0 live, 1 deleted by its author, 2
removed by a moderator.
"""

from __future__ import annotations

from services.platform.sqlite.absences import ABSENCES_SCHEMA
from services.platform.sqlite.outbox import OUTBOX_SCHEMA

LIVE, DELETED, REMOVED = 0, 1, 2
# Larger than every id: the bound of a list from the newest entry on.
NO_BOUND = (1 << 63) - 1

_TWEETS = """
CREATE TABLE tweets (
    id INTEGER PRIMARY KEY, author_id INTEGER NOT NULL, version INTEGER NOT NULL, state INTEGER NOT NULL,
    core BLOB NOT NULL, conversation_id INTEGER NOT NULL,
    reply_to_id INTEGER NOT NULL, reply_to_author_id INTEGER NOT NULL,
    retweet_of_id INTEGER NOT NULL, retweet_of_author_id INTEGER NOT NULL,
    quote_of_id INTEGER NOT NULL, quote_of_author_id INTEGER NOT NULL,
    replies INTEGER NOT NULL DEFAULT 0, retweets INTEGER NOT NULL DEFAULT 0, quotes INTEGER NOT NULL DEFAULT 0,
    hidden_at_s INTEGER NOT NULL DEFAULT 0, action_id INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX tweets_by_author ON tweets (author_id, id, reply_to_id, retweet_of_id) WHERE state = 0;
CREATE INDEX tweets_to_purge ON tweets (hidden_at_s, id) WHERE state = 1;
CREATE VIEW cores AS
    SELECT id, author_id, reply_to_author_id, reply_to_id, retweet_of_id, retweet_of_author_id, quote_of_id,
        quote_of_author_id, state, core, replies, retweets, quotes FROM tweets;
CREATE TABLE author_counts (author_id INTEGER PRIMARY KEY, tweets INTEGER NOT NULL);
CREATE TABLE idempotency_keys (
    user_id INTEGER NOT NULL, key TEXT NOT NULL, body_hash BLOB NOT NULL, tweet_id INTEGER NOT NULL,
    expires_at_s INTEGER NOT NULL, PRIMARY KEY (user_id, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (expires_at_s);
"""
# Partial indexes, because most tweets have no links. `replies_by_tweet` includes hidden replies, because threads show
# them as tombstones. `retweets_by_author` is unique: a user has at most one retweet of an original, not counting those
# that the user deleted.
_LINKS = """
CREATE INDEX replies_by_tweet ON tweets (reply_to_id, id, state) WHERE reply_to_id > 0;
CREATE INDEX quotes_by_tweet ON tweets (quote_of_id, id, state) WHERE quote_of_id > 0 AND state = 0;
CREATE INDEX retweets_by_tweet ON tweets (retweet_of_id, id, author_id, state) WHERE retweet_of_id > 0 AND state = 0;
CREATE UNIQUE INDEX retweets_by_author ON tweets (author_id, retweet_of_id) WHERE retweet_of_id > 0 AND state != 1;
CREATE TABLE revisions (
    tweet_id INTEGER NOT NULL, version INTEGER NOT NULL, text TEXT NOT NULL, created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (tweet_id, version)
) WITHOUT ROWID;
"""
# The ids of live replies, retweets and quotes that are excluded from counts because their author is absent.
_UNCOUNTED = "CREATE TABLE uncounted_links (tweet_id INTEGER PRIMARY KEY);"
# The purge of an account deletes them too.
_REMOVED = "CREATE INDEX removed_by_author ON tweets (author_id, id) WHERE state = 2;"
MIGRATIONS = (_TWEETS, OUTBOX_SCHEMA, _LINKS, ABSENCES_SCHEMA, _UNCOUNTED, _REMOVED)
UNCOUNT = "INSERT OR IGNORE INTO uncounted_links (tweet_id) VALUES (?)"
RECOUNT = "DELETE FROM uncounted_links WHERE tweet_id = ?"

LIST_REPLIES_DOWN = (
    "SELECT id FROM tweets WHERE reply_to_id = ? AND reply_to_id > 0 AND id < ? AND state = 0 ORDER BY id DESC LIMIT ?"
)
LIST_REPLIES_UP = (
    "SELECT id FROM tweets WHERE reply_to_id = ? AND reply_to_id > 0 AND id > ? AND state = 0 ORDER BY id LIMIT ?"
)
LIST_QUOTES = (
    "SELECT id FROM tweets WHERE quote_of_id = ? AND quote_of_id > 0 AND id < ? AND state = 0 ORDER BY id DESC LIMIT ?"
)
LIST_RETWEETERS = """
SELECT id, author_id FROM tweets WHERE retweet_of_id = ? AND retweet_of_id > 0 AND id < ? AND state = 0
ORDER BY id DESC LIMIT ?
"""
LIST_CHILDREN = "SELECT id FROM tweets WHERE reply_to_id = ? AND reply_to_id > 0 AND id > ? ORDER BY id LIMIT ?"
PARENT = "SELECT reply_to_id FROM tweets WHERE id = ?"

INSERT = """
INSERT INTO tweets (id, author_id, version, state, core, conversation_id, reply_to_id, reply_to_author_id,
    retweet_of_id, retweet_of_author_id, quote_of_id, quote_of_author_id)
VALUES (?, ?, 1, 0, ?, ?, ?, ?, ?, ?, ?, ?)
"""
STATE = "SELECT state FROM tweets WHERE id = ?"
ROW = "SELECT author_id, state, action_id, reply_to_id, retweet_of_id, quote_of_id FROM tweets WHERE id = ?"
HIDE = "UPDATE tweets SET state = ?, action_id = ?, hidden_at_s = ? WHERE id = ?"
OWN_RETWEET = (
    "SELECT id, state FROM tweets WHERE author_id = ? AND retweet_of_id = ? AND retweet_of_id > 0 AND state != 1"
)
OWN_RETWEETS = """
SELECT retweet_of_id, id FROM tweets WHERE author_id = ? AND retweet_of_id > 0 AND state = 0
ORDER BY retweet_of_id DESC LIMIT ?
"""
SOME_OWN_RETWEETS = """
SELECT retweet_of_id, id FROM tweets
WHERE author_id = ? AND retweet_of_id IN (SELECT value FROM json_each(?)) AND retweet_of_id > 0 AND state = 0
"""
COUNT_REPLIES = "UPDATE tweets SET replies = replies + ? WHERE id = ?"
COUNT_RETWEETS = "UPDATE tweets SET retweets = retweets + ? WHERE id = ?"
COUNT_QUOTES = "UPDATE tweets SET quotes = quotes + ? WHERE id = ?"
COUNT_OF_AUTHOR = """
INSERT INTO author_counts (author_id, tweets) VALUES (?, ?)
ON CONFLICT (author_id) DO UPDATE SET tweets = tweets + excluded.tweets
"""
# Changes the tweet counts of all users who retweeted an original. For 100,000 users it takes 0.07 s.
COUNT_OF_RETWEETERS = """
UPDATE author_counts SET tweets = tweets + ? WHERE author_id IN
    (SELECT author_id FROM tweets WHERE retweet_of_id = ? AND retweet_of_id > 0 AND state = 0)
"""
VERSION = "SELECT version, core FROM tweets WHERE id = ? AND state = 0"
REVISE = "UPDATE tweets SET version = ?, core = ? WHERE id = ?"
ADD_REVISION = "INSERT INTO revisions (tweet_id, version, text, created_at_ms) VALUES (?, ?, ?, ?)"
REVISIONS = "SELECT version, text, created_at_ms FROM revisions WHERE tweet_id = ? ORDER BY version"
CORE = "SELECT core FROM tweets WHERE id = ?"

BY_IDS = "SELECT * FROM cores WHERE id IN (SELECT value FROM json_each(?))"
SCAN = "SELECT * FROM cores WHERE id > ? ORDER BY id LIMIT ?"
AUTHOR_IDS = "SELECT id FROM tweets WHERE author_id = ? AND state = 0 AND id < ? ORDER BY id DESC LIMIT ?"
AUTHOR_IDS_NARROWED = """
SELECT id FROM tweets WHERE author_id = ? AND state = 0 AND id < ?
    AND (? OR reply_to_id = 0) AND (? OR retweet_of_id = 0) ORDER BY id DESC LIMIT ?
"""
REMOVED_IDS = "SELECT id FROM tweets WHERE author_id = ? AND state = 2 AND id < ? ORDER BY id DESC LIMIT ?"
RECENT_IDS = "SELECT id FROM tweets WHERE id < ? AND state = 0 ORDER BY id DESC LIMIT ?"
COUNTS = (
    "SELECT author_id, tweets FROM author_counts WHERE author_id IN (SELECT value FROM json_each(?)) AND tweets > 0"
)

EXPIRED = "SELECT user_id, key FROM idempotency_keys WHERE expires_at_s <= ? ORDER BY expires_at_s LIMIT ?"
KEY = "SELECT body_hash, tweet_id FROM idempotency_keys WHERE user_id = ? AND key = ? AND expires_at_s > ?"
STORE_KEY = """
INSERT OR REPLACE INTO idempotency_keys (user_id, key, body_hash, tweet_id, expires_at_s) VALUES (?, ?, ?, ?, ?)
"""
DROP_KEY = "DELETE FROM idempotency_keys WHERE user_id = ? AND key = ?"

PURGEABLE = "SELECT id FROM tweets WHERE state = 1 AND hidden_at_s < ? ORDER BY hidden_at_s, id LIMIT ?"
RETWEETS_OF = "SELECT id, author_id FROM tweets WHERE retweet_of_id = ? AND retweet_of_id > 0 AND state = 0 LIMIT ?"
PURGE = "DELETE FROM tweets WHERE id = ?"
PURGE_REVISIONS = "DELETE FROM revisions WHERE tweet_id = ?"
