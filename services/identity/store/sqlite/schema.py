"""Identity's tables in SQLite, and the statements that several modules use."""

from __future__ import annotations

from services.platform.sqlite.outbox import OUTBOX_SCHEMA

_TABLES = """
CREATE TABLE account (
    id INTEGER PRIMARY KEY, username_key TEXT NOT NULL UNIQUE, email_key TEXT NOT NULL UNIQUE, email TEXT NOT NULL,
    core BLOB NOT NULL, state INTEGER NOT NULL, version INTEGER NOT NULL, roles TEXT NOT NULL,
    scheme INTEGER NOT NULL, password_hash BLOB NOT NULL
);
CREATE TABLE session (
    id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL, used_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    user_agent TEXT NOT NULL, used BLOB NOT NULL, offered BLOB NOT NULL
);
CREATE INDEX session_by_user ON session (user_id, id);
CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
# The deactivated accounts that are not erased yet. Accounts that an earlier release deactivated without an entry are
# erased one grace period after the migration.
_DEACTIVATIONS = """
CREATE TABLE deactivation (user_id INTEGER PRIMARY KEY, deactivated_s INTEGER NOT NULL);
CREATE INDEX deactivation_by_time ON deactivation (deactivated_s, user_id);
INSERT INTO deactivation SELECT id, CAST(strftime('%s', 'now') AS INTEGER) FROM account WHERE state = 3;
"""
MIGRATIONS = [_TABLES, OUTBOX_SCHEMA, _DEACTIVATIONS]
ACCOUNT = "SELECT id, core, email, state, version, roles, scheme, password_hash FROM account"
