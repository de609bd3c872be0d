"""Tables and statements of the Cassandra adapter.

`tweets_by_id` is authoritative. The tables by author, by hour and by linked tweet are copies with the columns that
lists and counts need; they are written in the same logged batch. `claims` and `tweet_revisions` are written by
lightweight transactions (LWT) only.

The column `hidden` is the state of a tweet (LIVE, REMOVED or DELETED), in every table that lists the tweet. Write
timestamps decide between writes, so writes may arrive late, twice and in any order. The timestamp of a creation is the
time in the id; that of an edit is the same plus one microsecond per version; that of a moderation action is its own
time; that of a deletion is FOREVER_US, above which is only PURGED_US.
"""

from __future__ import annotations

from services.platform.cassandra.outbox import OUTBOX_MIGRATION
from services.platform.ids.snowflake import timestamp_ms

LIVE, REMOVED, DELETED = 0, 1, 2
# The kinds of links (see the glossary), as stored in `links_by_tweet`.
REPLY, RETWEET, QUOTE = 1, 2, 3
# Added to the kind in a second row for a link whose author is absent. Counts subtract the number of second rows.
UNCOUNTED = 10
# Larger than every id: the bound of a list from the newest entry on.
NO_BOUND = (1 << 63) - 1

# Write timestamps of deletions and purges, larger than those of all other writes: a deletion is final, and a purge wins
# over a deletion that arrives late.
FOREVER_US = 1 << 62
PURGED_US = FOREVER_US + 1

# Length of a month bucket in milliseconds. A partition has the tweets of one author in 30 days: a few thousand rows for
# the most active authors.
MONTH_MS = 30 * 24 * 3_600_000
HOUR_MS = 3_600_000
# Number of partitions per hour bucket, so that new posts are spread over several nodes. At 6,000 posts a second a
# partition has about 2.7 million rows, 100 MB.
HOUR_SHARDS = 8
# Maximum number of ids per statement. An id takes a fifth of the time of a statement of its own. With many more the
# coordinator would become slow.
IDS_PER_READ = 100
# Key of the only partition of `tweet_hours` and of `deletion_hours`: each gets 8,760 rows a year.
ALL_HOURS = 0

_TWEETS = """
CREATE TABLE IF NOT EXISTS tweets_by_id (
    tweet_id bigint PRIMARY KEY, author_id bigint, conversation_id bigint,
    reply_to_id bigint, reply_to_author_id bigint, retweet_of_id bigint, retweet_of_author_id bigint,
    quote_of_id bigint, quote_of_author_id bigint, above frozen<list<bigint>>,
    version int, core blob, hidden tinyint, action_id bigint, hidden_at_s bigint
);
CREATE TABLE IF NOT EXISTS tweets_by_author (
    author_id bigint, month int, tweet_id bigint,
    reply_to_id bigint, retweet_of_id bigint, hidden tinyint, orphaned tinyint,
    PRIMARY KEY ((author_id, month), tweet_id)
) WITH CLUSTERING ORDER BY (tweet_id DESC);
CREATE TABLE IF NOT EXISTS author_months (
    author_id bigint, month int, PRIMARY KEY (author_id, month)
) WITH CLUSTERING ORDER BY (month DESC);
CREATE TABLE IF NOT EXISTS tweets_by_hour (
    hour int, shard int, tweet_id bigint, hidden tinyint, PRIMARY KEY ((hour, shard), tweet_id)
) WITH CLUSTERING ORDER BY (tweet_id DESC);
CREATE TABLE IF NOT EXISTS tweet_hours (
    part int, hour int, PRIMARY KEY (part, hour)
) WITH CLUSTERING ORDER BY (hour DESC);
CREATE TABLE IF NOT EXISTS links_by_tweet (
    tweet_id bigint, kind tinyint, link_id bigint, author_id bigint, hidden tinyint,
    PRIMARY KEY ((tweet_id), kind, link_id)
);
CREATE TABLE IF NOT EXISTS retweets_by_user (
    user_id bigint, original_id bigint, retweet_id bigint, hidden tinyint,
    PRIMARY KEY ((user_id), original_id, retweet_id)
);
CREATE TABLE IF NOT EXISTS claims (
    user_id bigint, name text, tweet_id bigint, body_hash blob, expires_at_s bigint,
    conversation_id bigint, core blob, event frozen<tuple<text, bigint, bigint, blob, text>>,
    PRIMARY KEY ((user_id, name))
);
CREATE TABLE IF NOT EXISTS tweet_revisions (
    tweet_id bigint, version int, text text, created_at_ms bigint,
    core blob, event frozen<tuple<text, bigint, bigint, blob, text>>,
    PRIMARY KEY ((tweet_id), version)
) WITH CLUSTERING ORDER BY (version DESC);
CREATE TABLE IF NOT EXISTS deletions_by_hour (
    hour int, deleted_at_s bigint, tweet_id bigint, PRIMARY KEY ((hour), deleted_at_s, tweet_id)
);
CREATE TABLE IF NOT EXISTS deletion_hours (
    part int, hour int, PRIMARY KEY (part, hour)
)
"""
KEYSPACE = "tweet"
# The keyspaces of the service by name, each with its migrations in order.
KEYSPACES = {KEYSPACE: (_TWEETS, OUTBOX_MIGRATION)}


def month_of(tweet_id: int) -> int:
    """Returns the month bucket of the id: the whole 30-day periods from the Unix epoch to the time in the id. Larger
    ids never have a smaller bucket."""
    return timestamp_ms(tweet_id) // MONTH_MS


def hour_of(tweet_id: int) -> int:
    """Returns the hour bucket of the id: the whole hours from the Unix epoch to the time in the id."""
    return timestamp_ms(tweet_id) // HOUR_MS


def created_us(tweet_id: int, version: int = 1) -> int:
    """Returns the write timestamp of a revision of a tweet, in Unix microseconds. `version` is the number of the
    revision; 1 is the creation. Every process computes the same timestamp, so a repeated write is identical."""
    return timestamp_ms(tweet_id) * 1000 + version - 1


# Tweets.
ADD = """INSERT INTO tweets_by_id (tweet_id, author_id, conversation_id, reply_to_id, reply_to_author_id, retweet_of_id,
    retweet_of_author_id, quote_of_id, quote_of_author_id, above, version, core, hidden)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, 0) USING TIMESTAMP ?"""
ADD_OF_AUTHOR = """INSERT INTO tweets_by_author (author_id, month, tweet_id, reply_to_id, retweet_of_id, hidden, orphaned)
    VALUES (?, ?, ?, ?, ?, 0, 0) USING TIMESTAMP ?"""
ADD_MONTH = "INSERT INTO author_months (author_id, month) VALUES (?, ?)"
ADD_TO_HOUR = "INSERT INTO tweets_by_hour (hour, shard, tweet_id, hidden) VALUES (?, ?, ?, 0) USING TIMESTAMP ?"
ADD_HOUR = "INSERT INTO tweet_hours (part, hour) VALUES (?, ?)"
ADD_LINK = """INSERT INTO links_by_tweet (tweet_id, kind, link_id, author_id, hidden)
    VALUES (?, ?, ?, ?, 0) USING TIMESTAMP ?"""
ADD_RETWEET = """INSERT INTO retweets_by_user (user_id, original_id, retweet_id, hidden)
    VALUES (?, ?, ?, 0) USING TIMESTAMP ?"""

HIDE = "UPDATE tweets_by_id USING TIMESTAMP ? SET hidden = ?, action_id = ?, hidden_at_s = ? WHERE tweet_id = ?"
HIDE_OF_AUTHOR = (
    "UPDATE tweets_by_author USING TIMESTAMP ? SET hidden = ? WHERE author_id = ? AND month = ? AND tweet_id = ?"
)
HIDE_IN_HOUR = "UPDATE tweets_by_hour USING TIMESTAMP ? SET hidden = ? WHERE hour = ? AND shard = ? AND tweet_id = ?"
HIDE_LINK = "UPDATE links_by_tweet USING TIMESTAMP ? SET hidden = ? WHERE tweet_id = ? AND kind = ? AND link_id = ?"
HIDE_RETWEET = (
    "UPDATE retweets_by_user USING TIMESTAMP ? SET hidden = ? WHERE user_id = ? AND original_id = ? AND retweet_id = ?"
)
UNCOUNT_LINK = (
    "UPDATE links_by_tweet USING TIMESTAMP ? SET author_id = ? WHERE tweet_id = ? AND kind = ? AND link_id = ?"
)
COUNT_LINK_AGAIN = (
    "DELETE author_id FROM links_by_tweet USING TIMESTAMP ? WHERE tweet_id = ? AND kind = ? AND link_id = ?"
)
ORPHAN = "UPDATE tweets_by_author USING TIMESTAMP ? SET orphaned = ? WHERE author_id = ? AND month = ? AND tweet_id = ?"
REVISE = "UPDATE tweets_by_id USING TIMESTAMP ? SET version = ?, core = ? WHERE tweet_id = ?"

DROP = "DELETE FROM tweets_by_id USING TIMESTAMP ? WHERE tweet_id = ?"
DROP_OF_AUTHOR = "DELETE FROM tweets_by_author USING TIMESTAMP ? WHERE author_id = ? AND month = ? AND tweet_id = ?"
DROP_IN_HOUR = "DELETE FROM tweets_by_hour USING TIMESTAMP ? WHERE hour = ? AND shard = ? AND tweet_id = ?"
DROP_LINK = "DELETE FROM links_by_tweet USING TIMESTAMP ? WHERE tweet_id = ? AND kind = ? AND link_id = ?"
DROP_RETWEET = "DELETE FROM retweets_by_user USING TIMESTAMP ? WHERE user_id = ? AND original_id = ? AND retweet_id = ?"

_CORE = """SELECT tweet_id, author_id, reply_to_author_id, reply_to_id, retweet_of_id, retweet_of_author_id, quote_of_id,
    quote_of_author_id, hidden, core"""
_BY_IDS = " FROM tweets_by_id WHERE tweet_id IN ?"
# For at most IDS_PER_READ ids.
CORES = _CORE + _BY_IDS
STORED = _CORE + ", conversation_id, version, action_id, hidden_at_s, above, writetime(hidden)" + _BY_IDS
ABOVE = "SELECT tweet_id, above" + _BY_IDS

# Lists. ALLOW FILTERING is not slow here, because each statement filters the rows of one partition.
MONTHS = "SELECT month FROM author_months WHERE author_id = ? AND month <= ? LIMIT ?"
_OF_AUTHOR = "SELECT tweet_id FROM tweets_by_author WHERE author_id = ? AND month = ? AND tweet_id < ?"
_AUTHOR_IDS = _OF_AUTHOR + f" AND hidden = {LIVE}"
_NO_REPLIES, _NO_RETWEETS = " AND reply_to_id = 0", " AND retweet_of_id = 0"
_FILTERED = " LIMIT ? ALLOW FILTERING"
# Statements by (with replies, with retweets), as in `TweetLists.list_author`.
AUTHOR_IDS = {
    (True, True): _AUTHOR_IDS + _FILTERED,
    (False, True): _AUTHOR_IDS + _NO_REPLIES + _FILTERED,
    (True, False): _AUTHOR_IDS + _NO_RETWEETS + _FILTERED,
    (False, False): _AUTHOR_IDS + _NO_REPLIES + _NO_RETWEETS + _FILTERED,
}
REMOVED_IDS = _OF_AUTHOR + f" AND hidden = {REMOVED}" + _FILTERED
COUNT_OF_AUTHOR = """SELECT count(*) FROM tweets_by_author
    WHERE author_id = ? AND month = ? AND hidden = 0 AND orphaned = 0 ALLOW FILTERING"""
HOURS_DOWN = "SELECT hour FROM tweet_hours WHERE part = ? AND hour <= ? LIMIT ?"
HOURS_UP = "SELECT hour FROM tweet_hours WHERE part = ? AND hour >= ? ORDER BY hour ASC LIMIT ?"
HOUR_DOWN = """SELECT tweet_id FROM tweets_by_hour
    WHERE hour = ? AND shard = ? AND tweet_id < ? AND hidden = 0 LIMIT ? ALLOW FILTERING"""
HOUR_UP = """SELECT tweet_id FROM tweets_by_hour
    WHERE hour = ? AND shard = ? AND tweet_id > ? ORDER BY tweet_id ASC LIMIT ?"""
LINKS_DOWN = """SELECT link_id, author_id FROM links_by_tweet WHERE tweet_id = ? AND kind = ? AND link_id < ? AND hidden = 0
    ORDER BY kind DESC, link_id DESC LIMIT ? ALLOW FILTERING"""
LINKS_UP = """SELECT link_id FROM links_by_tweet WHERE tweet_id = ? AND kind = ? AND link_id > ? AND hidden = 0
    LIMIT ? ALLOW FILTERING"""
# Includes hidden links.
ALL_LINKS = """SELECT link_id, author_id FROM links_by_tweet WHERE tweet_id = ? AND kind = ? AND link_id > ? LIMIT ?"""
# For at most IDS_PER_READ ids.
ANY_LINKS = "SELECT DISTINCT tweet_id FROM links_by_tweet WHERE tweet_id IN ?"
# Counts `author_id` instead of rows. Cassandra's UPDATE creates a missing row, so a change of state that arrives after
# the purge, or before the creation, makes a row without `author_id`. A second row of an author who is active again has
# none either.
COUNT_LINKS = """SELECT kind, count(author_id) FROM links_by_tweet WHERE tweet_id = ? AND hidden = 0
    GROUP BY kind ALLOW FILTERING"""
OWN_RETWEETS = """SELECT original_id, retweet_id FROM retweets_by_user WHERE user_id = ? AND original_id IN ? AND hidden = 0
    ALLOW FILTERING"""
NEWEST_RETWEETS = """SELECT original_id, retweet_id FROM retweets_by_user WHERE user_id = ? AND hidden = 0
    ORDER BY original_id DESC, retweet_id DESC LIMIT ? ALLOW FILTERING"""

# Claims.
CLAIM = """SELECT tweet_id, body_hash, expires_at_s, conversation_id, core, event FROM claims
    WHERE user_id = ? AND name = ?"""
TAKE = """INSERT INTO claims (user_id, name, tweet_id, body_hash, expires_at_s, conversation_id, core, event)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS USING TTL ?"""
TAKE_OVER = """UPDATE claims USING TTL ? SET tweet_id = ?, body_hash = ?, expires_at_s = ?, conversation_id = ?, core = ?,
    event = ? WHERE user_id = ? AND name = ? IF tweet_id = ?"""
FREE = "DELETE FROM claims WHERE user_id = ? AND name = ? IF tweet_id = ?"

# Revisions.
ADD_REVISION = """INSERT INTO tweet_revisions (tweet_id, version, text, created_at_ms, core, event)
    VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS"""
# Most tweets are never edited, so revision 1 is stored only with the first edit.
ADD_FIRST_REVISIONS = """BEGIN BATCH
    INSERT INTO tweet_revisions (tweet_id, version, text, created_at_ms) VALUES (?, ?, ?, ?) IF NOT EXISTS;
    INSERT INTO tweet_revisions (tweet_id, version, text, created_at_ms, core, event)
        VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS;
    APPLY BATCH"""
REVISIONS = "SELECT version, text, created_at_ms FROM tweet_revisions WHERE tweet_id = ? ORDER BY version ASC"
LAST_REVISION = "SELECT version, core, event FROM tweet_revisions WHERE tweet_id = ? LIMIT 1"
DROP_REVISION = "DELETE FROM tweet_revisions WHERE tweet_id = ? AND version = ? IF EXISTS"

# Deletions, for the purge.
ADD_DELETION = "INSERT INTO deletions_by_hour (hour, deleted_at_s, tweet_id) VALUES (?, ?, ?)"
ADD_DELETION_HOUR = "INSERT INTO deletion_hours (part, hour) VALUES (?, ?)"
DELETION_HOURS = "SELECT hour FROM deletion_hours WHERE part = ? AND hour > ? AND hour <= ? LIMIT ?"
DELETIONS = """SELECT deleted_at_s, tweet_id FROM deletions_by_hour
    WHERE hour = ? AND (deleted_at_s, tweet_id) > (?, ?) AND (deleted_at_s) < (?) LIMIT ?"""
ANY_DELETION = "SELECT tweet_id FROM deletions_by_hour WHERE hour = ? LIMIT 1"
DROP_DELETION = "DELETE FROM deletions_by_hour WHERE hour = ? AND deleted_at_s = ? AND tweet_id = ?"
DROP_DELETION_HOUR = "DELETE FROM deletion_hours USING TIMESTAMP ? WHERE part = ? AND hour = ?"
