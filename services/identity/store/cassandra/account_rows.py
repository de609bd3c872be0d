"""Accounts and sessions as rows: what the cluster adapter writes first, reads back, and compares an import with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import Account, AccountLogin, NewAccount, Session
from services.identity.store.cassandra import schema
from services.identity.store.user_refs import is_equal, roles_of, roles_text
from services.platform.cassandra.keyspace import MAX_BATCH, Row, Statement
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Cassandra as it is delivered warns of batches above 5 KiB; what a row weighs beside its values is under a third.
BATCH_BYTES = 3_600
# What neither text nor bytes hold: numbers, and the frame of a value.
VALUE_BYTES = 12
# A session's row goes by itself, this long after nobody may use it: clocks differ.
SESSION_GRACE_S = 24 * 3600
# The most that Cassandra takes as a time to live: 20 years.
MAX_TTL_S = 20 * 365 * 24 * 3600


def login_of(row: Row) -> AccountLogin:
    """The account of one row of cql.ACCOUNTS_OF."""
    user_id, core, email, state, version, roles, scheme, password_hash = row
    account = Account(user_id, core, email, user_pb2.UserState.ValueType(state), version, roles_of(roles))
    return AccountLogin(account, Credential(Scheme(scheme), password_hash))


def session_values(session: Session, used: bytes, offered: bytes) -> tuple[Any, ...]:
    """The values of a session's row, as cql.FIRST_SESSION, OPEN_SESSION and ROTATE have them in common, time to live first."""
    ttl_s = (session.expires_ms - session.used_ms) // 1000 + SESSION_GRACE_S
    written = (session.used_ms, session.expires_ms, session.user_agent, used, offered)
    return min(max(ttl_s, 1), MAX_TTL_S), *written, session.user_id, session.session_id


def account_steps(new: NewAccount, note_s: int) -> list[Statement]:
    """The first write of an account. That its creation is true is noted for `note_s` seconds."""
    account, user_id = new.account, new.account.user_id
    written = (account.email, account.core, account.state, account.version, roles_text(account))
    credential = (int(new.credential.scheme), new.credential.hash)
    return [
        (schema.FIRST_ACCOUNT, (schema.FIRST_STAMP, *written, *credential, user_id)),
        (schema.FIRST_MADE, (schema.FIRST_STAMP, note_s, {new.created.event_id}, user_id)),
        (schema.LIST_ID, (schema.bucket_of(user_id), user_id, schema.FIRST_STAMP)),
    ]


def lots(groups: Iterable[Sequence[Statement]]) -> Iterator[list[Statement]]:
    """Groups of steps joined to as few batches as Cassandra takes; no group is divided."""
    lot: list[Statement] = []
    weight = 0
    for group in groups:
        more = sum(map(_weight, group))
        if lot and (weight + more > BATCH_BYTES or len(lot) + len(group) > MAX_BATCH):
            yield lot
            lot, weight = [], 0
        lot += group
        weight += more
    if lot:
        yield lot


def _weight(step: Statement) -> int:
    return sum(VALUE_BYTES + (len(value) if isinstance(value, bytes | str) else 0) for value in step[1])


class ImportPlan:
    """An import against what there is. ALREADY_EXISTS, at once, where its own accounts contradict each other."""

    def __init__(self, new: Sequence[NewAccount]) -> None:
        self._new = new
        self._first: dict[str, NewAccount] = {}
        addresses: dict[str, str] = {}
        self._ids: dict[str, int] = {}
        for one in new:
            first = self._first.setdefault(one.username_key, one)
            if first is not one and not is_equal(AccountLogin(first.account, first.credential), one):
                raise _another(one)
            if addresses.setdefault(one.email_key, one.username_key) != one.username_key:
                raise errors.already_exists("the email is taken", Reason.EMAIL_TAKEN)
        self.names = list(self._first)

    @property
    def ids(self) -> list[int]:
        """The ids in the order of the import: found ones, and those of the accounts that were missing."""
        return [self._ids[one.username_key] for one in self._new]

    def missing(self, found: Mapping[int, AccountLogin], holders: Sequence[int]) -> list[NewAccount]:
        """Those to be made, given who holds each of `names` and the accounts there are. ALREADY_EXISTS where one is another."""
        missing = []
        for (name, one), holder in zip(self._first.items(), holders, strict=True):
            stored = found.get(holder)
            if stored is None:
                missing.append(one)
            elif not is_equal(stored, one):
                raise _another(one)
            self._ids[name] = one.account.user_id if stored is None else holder
        return missing


def _another(new: NewAccount) -> errors.RoostError:
    name = user_pb2.User.FromString(new.account.core).username
    return errors.already_exists(f"{name} exists and is another", Reason.USERNAME_TAKEN)
