"""What the adapters share: the form in which references leave, and when two accounts are the same."""

from __future__ import annotations

from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.profile import ref_of
from services.identity.store import Account, AccountLogin, NewAccount


def wire_of(account: Account) -> bytes:
    """The account's reference as a response of one entry: joined with others it is a response of them all."""
    entry = user_service_pb2.UserRefEntry(
        user_id=account.user_id, ref=ref_of(account.core), state=account.state, version=account.version
    )
    return user_service_pb2.BatchGetUserRefsResponse(refs=[entry]).SerializeToString()


def roles_text(account: Account) -> str:
    """The roles as they are stored: their numbers, ascending, with commas between."""
    return ",".join(str(role) for role in sorted(account.roles))


def roles_of(text: str) -> frozenset[user_pb2.Role.ValueType]:
    """The roles of a stored text."""
    return frozenset(user_pb2.Role.ValueType(int(role)) for role in text.split(",") if role)


def is_equal(stored: AccountLogin, new: NewAccount) -> bool:
    """Whether an import of `new` finds itself in what is stored: equal in all but id, time and state."""
    if stored.credential != new.credential or stored.account.roles != new.account.roles:
        return False
    return stored.account.email == new.account.email and _written(stored.account) == _written(new.account)


def _written(account: Account) -> user_pb2.User:
    user = user_pb2.User.FromString(account.core)
    user.ClearField("id")
    user.ClearField("created_at")
    return user
