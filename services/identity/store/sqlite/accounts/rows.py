"""Converts accounts to and from SQLite rows, and inserts them within a transaction of the caller."""

from __future__ import annotations

import sqlite3

from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import Account, AccountLogin, NewAccount, Session
from services.identity.store.sqlite import schema
from services.identity.store.user_refs import decode_roles, encode_roles
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite.database import Database
from services.platform.sqlite.outbox import enqueue

_INSERT = "INSERT INTO account VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_SESSION = "INSERT INTO session VALUES (?, ?, ?, ?, ?, ?, ?)"

_Row = tuple[int, bytes, str, int, int, str, int, bytes]


async def read_login(db: Database, condition: str, value: str | int) -> AccountLogin | None:
    """Returns the account for which the SQL `condition` holds, such as "id = ?" with its `value`; None if there is no
    such account. Raises the errors of `Database.read`."""
    row = await db.read(lambda c: c.execute(f"{schema.ACCOUNT} WHERE {condition}", (value,)).fetchone())
    return decode_login(row) if row is not None else None


def decode_login(row: _Row) -> AccountLogin:
    """Returns the account of one row of schema.ACCOUNT."""
    user_id, core, email, state, version, roles, scheme, password_hash = row
    account = Account(
        user_id,
        core,
        email,
        user_pb2.UserState.ValueType(state),
        version,
        decode_roles(roles),
    )
    return AccountLogin(account, Credential(Scheme(scheme), password_hash))


def insert_account(connection: sqlite3.Connection, new: NewAccount) -> None:
    """Inserts an account with the event of its creation. Raises ALREADY_EXISTS if another account has the username
    (reason USERNAME_TAKEN) or the e-mail address (EMAIL_TAKEN)."""
    account = new.account
    for column, value, reason in (
        ("username_key", new.username_key, Reason.USERNAME_TAKEN),
        ("email_key", new.email_key, Reason.EMAIL_TAKEN),
    ):
        if connection.execute(f"SELECT 1 FROM account WHERE {column} = ?", (value,)).fetchone():  # noqa: S608 (ours)
            raise errors.already_exists(f"the {reason.split('_', 1)[0].lower()} is taken: choose another", reason)
    values = (account.user_id, new.username_key, new.email_key, account.email, account.core)
    connection.execute(_INSERT, (*values, account.state, account.version, encode_roles(account), *new.credential))
    enqueue(connection, [new.created])


def insert_session(connection: sqlite3.Connection, session: Session, token_hash: bytes) -> None:
    """Inserts a session whose first refresh token has the SHA-256 `token_hash`."""
    connection.execute(_INSERT_SESSION, (*session, b"", token_hash))
