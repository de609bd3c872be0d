"""Converts accounts and sessions to and from Cassandra rows, groups writes into batches, and plans imports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import Account, AccountLogin, NewAccount, Session
from services.identity.store.cassandra import schema
from services.identity.store.user_refs import decode_roles, encode_roles, is_same_account
from services.platform.cassandra.keyspace import MAX_BATCH, Row, Statement
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Maximum size of the values in one batch, in bytes. By default Cassandra warns about batches above 5 KiB; the overhead
# of rows adds less than a third to the values.
BATCH_BYTES = 3_600
# Estimated size of one value in bytes, in addition to the text or blob itself: a number, or the length prefix.
VALUE_BYTES = 12
# Time in seconds from the expiry of a session to the expiry (TTL) of its row. It is far longer than clocks of nodes
# differ, so that no row expires before its session.
SESSION_GRACE_S = 24 * 3600
# Cassandra's maximum TTL: 20 years.
MAX_TTL_S = 20 * 365 * 24 * 3600


def decode_login(row: Row) -> AccountLogin:
    """Returns the account of one row of schema.ACCOUNTS_OF."""
    user_id, core, email, state, version, roles, scheme, password_hash = row
    account = Account(user_id, core, email, user_pb2.UserState.ValueType(state), version, decode_roles(roles))
    return AccountLogin(account, Credential(Scheme(scheme), password_hash))


def session_values(session: Session, used: bytes, offered: bytes) -> tuple[Any, ...]:
    """Returns the bind values that schema.FIRST_SESSION, OPEN_SESSION and ROTATE have in common, starting with the TTL
    in seconds."""
    ttl_s = (session.expires_ms - session.used_ms) // 1000 + SESSION_GRACE_S
    written = (session.used_ms, session.expires_ms, session.user_agent, used, offered)
    return min(max(ttl_s, 1), MAX_TTL_S), *written, session.user_id, session.session_id


def create_statements(new: NewAccount, ttl_s: int) -> list[Statement]:
    """Returns the statements that create an account. One of them stores the id of the creation event in the user's
    partition for `ttl_s` seconds, which proves that the event was committed."""
    account, user_id = new.account, new.account.user_id
    written = (account.email, account.core, account.state, account.version, encode_roles(account))
    credential = (int(new.credential.scheme), new.credential.hash)
    return [
        (schema.FIRST_ACCOUNT, (schema.FIRST_WRITE_TIMESTAMP, *written, *credential, user_id)),
        (schema.FIRST_MADE, (schema.FIRST_WRITE_TIMESTAMP, ttl_s, {new.created.event_id}, user_id)),
        (schema.LIST_ID, (schema.bucket_of(user_id), user_id, schema.FIRST_WRITE_TIMESTAMP)),
    ]


def group_into_batches(groups: Iterable[Sequence[Statement]]) -> Iterator[list[Statement]]:
    """Yields batches of whole groups. A batch has at most BATCH_BYTES bytes of values and MAX_BATCH statements, unless
    it consists of a single group that exceeds these bounds."""
    batch: list[Statement] = []
    weight = 0
    for group in groups:
        more = sum(map(_weight, group))
        if batch and (weight + more > BATCH_BYTES or len(batch) + len(group) > MAX_BATCH):
            yield batch
            batch, weight = [], 0
        batch += group
        weight += more
    if batch:
        yield batch


def _weight(step: Statement) -> int:
    return sum(VALUE_BYTES + (len(value) if isinstance(value, bytes | str) else 0) for value in step[1])


class ImportPlan:
    """Compares an import with the stored accounts. Raises ALREADY_EXISTS if two accounts of the import have the same
    username and differ, or have the same e-mail address but different usernames.
    """

    def __init__(self, new: Sequence[NewAccount]) -> None:
        self._new = new
        self._first: dict[str, NewAccount] = {}
        addresses: dict[str, str] = {}
        self._ids: dict[str, int] = {}
        for one in new:
            first = self._first.setdefault(one.username_key, one)
            if first is not one and not is_same_account(AccountLogin(first.account, first.credential), one):
                raise _conflicting_account(one)
            if addresses.setdefault(one.email_key, one.username_key) != one.username_key:
                raise errors.already_exists("the email is taken: choose another", Reason.EMAIL_TAKEN)
        self.names = list(self._first)

    @property
    def ids(self) -> list[int]:
        """Returns the ids of all accounts in the order of the import, existing and new ones. Call `missing` first."""
        return [self._ids[one.username_key] for one in self._new]

    def missing(self, found: Mapping[int, AccountLogin], holders: Sequence[int]) -> list[NewAccount]:
        """Returns the accounts to create. `holders` are the user ids for which `names` are claimed, in order (0: not
        claimed); `found` are the stored accounts by user id.

        Raises ALREADY_EXISTS if a stored account differs from the import.
        """
        missing = []
        for (name, one), holder in zip(self._first.items(), holders, strict=True):
            stored = found.get(holder)
            if stored is None:
                missing.append(one)
            elif not is_same_account(stored, one):
                raise _conflicting_account(one)
            self._ids[name] = one.account.user_id if stored is None else holder
        return missing


def _conflicting_account(new: NewAccount) -> errors.RoostError:
    name = user_pb2.User.FromString(new.account.core).username
    return errors.already_exists(f"the username {name} is taken by a different account", Reason.USERNAME_TAKEN)
