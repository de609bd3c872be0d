"""Holds the current call of a task, with its actor, caller, deadline and trace, in a context variable.

Servicers read the caller's identity here and nowhere else. Before a servicer runs, the policy of its method has been
enforced.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from services.platform.rpc import errors

# `Call.caller` of a call that carries the operator's token.
OPERATOR = "operator"
# `Call.caller` of a call by the gateway, which is a process of the mesh but no service of the contract.
GATEWAY = "gateway"

NEVER = float("inf")

# Maximum length of a user agent in characters; the rest is cut off. It is enough for the longest user agents of
# browsers. The text is stored with each session.
MAX_USER_AGENT_CHARS = 256


@dataclass(frozen=True, slots=True)
class Actor:
    """The actor of a call, as its verified access token names the user. `user_id` is 0 if the call carries no token."""

    user_id: int = 0
    session_id: int = 0
    roles: frozenset[str] = frozenset()
    token: str = field(default="", repr=False)


ANONYMOUS = Actor()


class Call(NamedTuple):
    """One call.

    `method` is its path, such as `/roost.tweet.v1.TweetService/GetTweet`. `caller` is the name of the calling service,
    GATEWAY, OPERATOR, or "" for a client outside the mesh. `deadline` is in seconds of the event loop's clock, NEVER if
    the method has none. `user_agent` names the client's program, as returned by `bounded_user_agent`. `address` is the
    client's network address, which the process where the call entered the mesh has determined; "" if it is not known.
    """

    # A tuple, because one is created for every call: creating a frozen dataclass takes four times as long (measured).
    method: str = ""
    actor: Actor = ANONYMOUS
    caller: str = ""
    request_id: str = ""
    traceparent: str = ""
    deadline: float = NEVER
    user_agent: str = ""
    address: str = ""


_NO_CALL = Call()
current_call: ContextVar[Call] = ContextVar("roost_call", default=_NO_CALL)


def bounded_user_agent(text: str) -> str:
    """Returns the first MAX_USER_AGENT_CHARS characters without any that are not printable ASCII, which gRPC metadata
    cannot carry."""
    text = text[:MAX_USER_AGENT_CHARS]
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if " " <= character <= "~")


def current() -> Call:
    """Returns the call that this task serves, or an empty Call if it serves none (consumers, start-up)."""
    return current_call.get()


def actor() -> Actor:
    """Returns the actor of the current call, or ANONYMOUS."""
    return current_call.get().actor


def reader_id() -> int:
    """Returns the user id of the current call's actor, 0 if the call is anonymous."""
    return current_call.get().actor.user_id


def require_user() -> int:
    """Returns the user id of the current call's actor. Raises UNAUTHENTICATED if the call is anonymous."""
    user_id = current_call.get().actor.user_id
    if not user_id:
        raise errors.unauthenticated()
    return user_id
