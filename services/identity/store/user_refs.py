"""Serializes user references, encodes and decodes roles, compares accounts at an import, and erases accounts, for both
adapters."""

from __future__ import annotations

from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.profile import ref_of
from services.identity.store import Account, AccountLogin, NewAccount


def serialized_ref(account: Account) -> bytes:
    """Returns the account's user reference as a serialized BatchGetUserRefsResponse with one entry. The concatenation
    of several results is one response with all entries."""
    entry = user_service_pb2.UserRefEntry(
        user_id=account.user_id, ref=ref_of(account.core), state=account.state, version=account.version
    )
    return user_service_pb2.BatchGetUserRefsResponse(refs=[entry]).SerializeToString()


def encode_roles(account: Account) -> str:
    """Returns the account's roles in their stored form: ascending numbers, separated by commas."""
    return ",".join(str(role) for role in sorted(account.roles))


def decode_roles(text: str) -> frozenset[user_pb2.Role.ValueType]:
    """Returns the roles of a text that `encode_roles` returned."""
    return frozenset(user_pb2.Role.ValueType(int(role)) for role in text.split(",") if role)


def is_same_account(stored: AccountLogin, new: NewAccount) -> bool:
    """Returns whether `stored` equals `new` except for id, creation time and state, as after a repeated import."""
    if stored.credential != new.credential or stored.account.roles != new.account.roles:
        return False
    return stored.account.email == new.account.email and _comparable(stored.account) == _comparable(new.account)


def erased(account: Account, version: int) -> Account:
    """Returns a deactivated account as the purge leaves it: with its id, the state DEACTIVATED and `version`, and
    nothing else."""
    core = user_pb2.User(id=account.user_id).SerializeToString()
    return Account(account.user_id, core, "", user_pb2.USER_STATE_DEACTIVATED, version, frozenset())


def _comparable(account: Account) -> user_pb2.User:
    user = user_pb2.User.FromString(account.core)
    user.ClearField("id")
    user.ClearField("created_at")
    return user
