"""Identity's tables in Cassandra, and every statement on them.

A user is one partition: the account in its static columns, a row for each session. So whatever needs several of them to agree (a
suspension that ends sessions, a log-in of the active only) is one conditional write. The first write of an account is a plain one,
stamped older than any conditional one can be; everything after it is conditional.
"""

from __future__ import annotations

from services.platform.cassandra.outbox import OUTBOX_MIGRATION

# Conditional writes carry the time of day in microseconds. A first write of 1 loses against every later one, however late it arrives.
FIRST_STAMP = 1
# Ids of about six days lie in one partition of the index: a million sign-ups a day make 6 million small rows.
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

# Claims: conditional writes only.
HANDLE_OF = "SELECT user_id, claimed_ms FROM handles WHERE name = ?"
HANDLES_OF = "SELECT name, user_id FROM handles WHERE name IN ?"
CLAIM_HANDLE = "INSERT INTO handles (name, user_id, claimed_ms) VALUES (?, ?, ?) IF NOT EXISTS"
TAKE_HANDLE = "UPDATE handles SET user_id = ?, claimed_ms = ? WHERE name = ? IF user_id = ? AND claimed_ms = ?"
FREE_HANDLE = "DELETE FROM handles WHERE name = ? IF user_id = ?"
EMAIL_OF = "SELECT user_id, claimed_ms FROM emails WHERE name = ?"
CLAIM_EMAIL = "INSERT INTO emails (name, user_id, claimed_ms) VALUES (?, ?, ?) IF NOT EXISTS"
TAKE_EMAIL = "UPDATE emails SET user_id = ?, claimed_ms = ? WHERE name = ? IF user_id = ? AND claimed_ms = ?"
FREE_EMAIL = "DELETE FROM emails WHERE name = ? IF user_id = ?"

# The first write: together with the outbox in one logged batch.
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

# All of these apply to one partition, so each is one round of Paxos, whatever it holds.
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

# A keyspace of its own: its rights and backups can be others than those of the accounts, whose hashes the keys protect.
KEYS_SCHEMA = "CREATE TABLE IF NOT EXISTS secrets (name text PRIMARY KEY, value blob)"
KEYSPACE, KEYS_KEYSPACE = "identity", "identity_keys"
# The keyspaces of the service by name, each with its migrations in order.
KEYSPACES = {KEYSPACE: (SCHEMA, OUTBOX_MIGRATION), KEYS_KEYSPACE: (KEYS_SCHEMA,)}
# Of both keyspaces: earlier releases kept the keys beside the accounts.
SECRET = "SELECT value FROM secrets WHERE name = ?"  # noqa: S105 (a statement)
KEEP_SECRET = "INSERT INTO secrets (name, value) VALUES (?, ?) IF NOT EXISTS"  # noqa: S105


def bucket_of(user_id: int) -> int:
    """The partition of the index of ids that holds this one: they ascend with the ids."""
    return user_id >> BUCKET_SHIFT
