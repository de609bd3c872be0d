"""Identity's tables in Cassandra, and all CQL statements on them.

Each user is one partition: static columns hold the account, and each row a session. So changes that involve both (a
suspension ends sessions, a log-in needs an active account) are one lightweight transaction (LWT). The first write of an
account is a plain write with a timestamp older than any LWT; all later writes are LWTs.
"""

from __future__ import annotations

from services.platform.cassandra.outbox import OUTBOX_MIGRATION

# LWTs have the current time in microseconds as timestamp. A first write with timestamp 1 loses against them, even if it
# arrives later.
FIRST_WRITE_TIMESTAMP = 1
# Number of low bits of a user id that `bucket_of` drops. So one bucket, a partition of `user_ids`, holds the ids of
# about six days: 6 million small rows at a million sign-ups a day.
BUCKET_SHIFT = 51

SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    user_id bigint, email text static, core blob static, state int static, version bigint static, roles text static,
    scheme int static, password_hash blob static, made set<bigint> static,
    session_id bigint, used_ms bigint, expires_ms bigint, user_agent text, used blob, offered blob,
    PRIMARY KEY (user_id, session_id)
) WITH CLUSTERING ORDER BY (session_id DESC);
CREATE TABLE IF NOT EXISTS handles (name text PRIMARY KEY, user_id bigint, claimed_ms bigint);
CREATE TABLE IF NOT EXISTS emails (name text PRIMARY KEY, user_id bigint, claimed_ms bigint);
CREATE TABLE IF NOT EXISTS user_ids (bucket int, user_id bigint, PRIMARY KEY (bucket, user_id));
CREATE TABLE IF NOT EXISTS secrets (name text PRIMARY KEY, value blob)
"""

# The list of deactivated accounts, by the day (UTC) of their deactivation, and the days that have entries. `version` is
# the version of the account since its deactivation.
_DEACTIVATIONS = """
CREATE TABLE IF NOT EXISTS deactivations (
    day int, deactivated_s bigint, user_id bigint, version bigint, PRIMARY KEY (day, deactivated_s, user_id)
);
CREATE TABLE IF NOT EXISTS deactivation_days (part int, day int, PRIMARY KEY (part, day))
"""
# The only partition of `deactivation_days`: it gets one row a day.
ALL_DAYS = 0
DAY_S = 86_400

# Statements on the claims of usernames (handles) and e-mail addresses. All writes of claims are LWTs.
HANDLE_OF = "SELECT user_id, claimed_ms FROM handles WHERE name = ?"
HANDLES_OF = "SELECT name, user_id FROM handles WHERE name IN ?"
CLAIM_HANDLE = "INSERT INTO handles (name, user_id, claimed_ms) VALUES (?, ?, ?) IF NOT EXISTS"
TAKE_HANDLE = "UPDATE handles SET user_id = ?, claimed_ms = ? WHERE name = ? IF user_id = ? AND claimed_ms = ?"
FREE_HANDLE = "DELETE FROM handles WHERE name = ? IF user_id = ?"
EMAIL_OF = "SELECT user_id, claimed_ms FROM emails WHERE name = ?"
CLAIM_EMAIL = "INSERT INTO emails (name, user_id, claimed_ms) VALUES (?, ?, ?) IF NOT EXISTS"
TAKE_EMAIL = "UPDATE emails SET user_id = ?, claimed_ms = ? WHERE name = ? IF user_id = ? AND claimed_ms = ?"
FREE_EMAIL = "DELETE FROM emails WHERE name = ? IF user_id = ?"

# The statements that create an account. They run in one logged batch with the outbox row of the event. The column
# `made` holds the ids of committed events.
FIRST_ACCOUNT = """
UPDATE accounts USING TIMESTAMP ? SET email = ?, core = ?, state = ?, version = ?, roles = ?, scheme = ?, password_hash = ?
WHERE user_id = ?
"""
FIRST_MADE = "UPDATE accounts USING TIMESTAMP ? AND TTL ? SET made = made + ? WHERE user_id = ?"
FIRST_SESSION = """
UPDATE accounts USING TIMESTAMP ? AND TTL ? SET used_ms = ?, expires_ms = ?, user_agent = ?, used = ?, offered = ?
WHERE user_id = ? AND session_id = ?
"""
LIST_ID = "INSERT INTO user_ids (bucket, user_id) VALUES (?, ?) USING TIMESTAMP ?"

ACCOUNTS_OF = """
SELECT DISTINCT user_id, core, email, state, version, roles, scheme, password_hash FROM accounts WHERE user_id IN ?
"""
MADE = "SELECT DISTINCT made FROM accounts WHERE user_id = ?"
IDS_AFTER = "SELECT user_id FROM user_ids WHERE bucket = ? AND user_id > ? LIMIT ?"

# Each of these batches writes to one partition, so it is one Paxos round.
REPLACE = """
BEGIN BATCH
UPDATE accounts SET core = ?, state = ?, version = ? WHERE user_id = ? IF version = ?;
UPDATE accounts USING TTL ? SET made = made + ? WHERE user_id = ?;
APPLY BATCH
"""
REPLACE_AND_END = """
BEGIN BATCH
UPDATE accounts SET core = ?, state = ?, version = ? WHERE user_id = ? IF version = ?;
UPDATE accounts USING TTL ? SET made = made + ? WHERE user_id = ?;
DELETE FROM accounts WHERE user_id = ? AND session_id < ?;
DELETE FROM accounts WHERE user_id = ? AND session_id > ?;
APPLY BATCH
"""
SET_CREDENTIAL = """
BEGIN BATCH
UPDATE accounts SET scheme = ?, password_hash = ? WHERE user_id = ? IF scheme = ? AND password_hash = ?;
UPDATE accounts USING TTL ? SET made = made + ? WHERE user_id = ?;
DELETE FROM accounts WHERE user_id = ? AND session_id < ?;
DELETE FROM accounts WHERE user_id = ? AND session_id > ?;
APPLY BATCH
"""
OPEN_SESSION = """
UPDATE accounts USING TTL ? SET used_ms = ?, expires_ms = ?, user_agent = ?, used = ?, offered = ?
WHERE user_id = ? AND session_id = ? IF state = ? AND scheme = ? AND password_hash = ?
"""
ROTATE = """
UPDATE accounts USING TTL ? SET used_ms = ?, expires_ms = ?, user_agent = ?, used = ?, offered = ?
WHERE user_id = ? AND session_id = ? IF used = ? AND offered = ?
"""
END_SESSION = """
BEGIN BATCH
DELETE FROM accounts WHERE user_id = ? AND session_id = ? IF EXISTS;
UPDATE accounts USING TTL ? SET made = made + ? WHERE user_id = ?;
APPLY BATCH
"""
DROP_SESSION = "DELETE FROM accounts WHERE user_id = ? AND session_id = ? IF EXISTS"
SESSION = "SELECT used, offered, used_ms, expires_ms, user_agent FROM accounts WHERE user_id = ? AND session_id = ?"
SESSIONS = """
SELECT session_id, user_id, used_ms, expires_ms, user_agent FROM accounts WHERE user_id = ? AND session_id < ? LIMIT ?
"""

# The purge. Both changes of an account are one LWT; `CLEAR_CREDENTIAL` also makes later activations fail, because it
# changes the version.
CLEAR_CREDENTIAL = """
UPDATE accounts SET scheme = ?, password_hash = ?, version = ? WHERE user_id = ? IF version = ?
"""
CLEAR_PROFILE = """
BEGIN BATCH
UPDATE accounts SET core = ?, email = ?, roles = ?, version = ? WHERE user_id = ? IF version = ?;
UPDATE accounts USING TTL ? SET made = made + ? WHERE user_id = ?;
APPLY BATCH
"""
ADD_DEACTIVATION = "INSERT INTO deactivations (day, deactivated_s, user_id, version) VALUES (?, ?, ?, ?)"
ADD_DAY = "INSERT INTO deactivation_days (part, day) VALUES (?, ?)"
DAYS = "SELECT day FROM deactivation_days WHERE part = ? AND day > ? AND day <= ? LIMIT ?"
DEACTIVATIONS = """
SELECT deactivated_s, user_id, version FROM deactivations
WHERE day = ? AND (deactivated_s, user_id) > (?, ?) AND (deactivated_s) < (?) LIMIT ?
"""
ANY_DEACTIVATION = "SELECT user_id FROM deactivations WHERE day = ? LIMIT 1"
DROP_DEACTIVATION = "DELETE FROM deactivations WHERE day = ? AND deactivated_s = ? AND user_id = ?"
DROP_DAY = "DELETE FROM deactivation_days USING TIMESTAMP ? WHERE part = ? AND day = ?"

# Keys have a separate keyspace, so that permissions and backups can differ from those of the accounts, whose hashes the
# keys protect.
KEYS_SCHEMA = "CREATE TABLE IF NOT EXISTS secrets (name text PRIMARY KEY, value blob)"
KEYSPACE, KEYS_KEYSPACE = "identity", "identity_keys"
# The keyspaces of the service, each with its migrations in order.
KEYSPACES = {KEYSPACE: (SCHEMA, OUTBOX_MIGRATION, _DEACTIVATIONS), KEYS_KEYSPACE: (KEYS_SCHEMA,)}
# This statement is executed in both keyspaces, because earlier releases stored the keys in the keyspace of the
# accounts.
SECRET = "SELECT value FROM secrets WHERE name = ?"  # noqa: S105 (a statement)
INSERT_SECRET = "INSERT INTO secrets (name, value) VALUES (?, ?) IF NOT EXISTS"  # noqa: S105


def bucket_of(user_id: int) -> int:
    """Returns the bucket (partition) of `user_ids` that contains this id. Buckets ascend with ids."""
    return user_id >> BUCKET_SHIFT
