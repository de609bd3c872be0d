"""Who calls, with how much time left: the current call, carried by the task's context.

A servicer reads identity from here and nowhere else. By the time it runs, the policy of its method has been enforced.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from services.platform.rpc import errors

# The caller's name of the operator's credentials.
OPERATOR = "operator"

NEVER = float("inf")

# Enough for the longest that browsers send, far below what a header may have: it is kept with each session.
MAX_USER_AGENT_CHARS = 256


@dataclass(frozen=True, slots=True)
class Actor:
    """The user a verified access token speaks for; `user_id` 0 is nobody."""

    user_id: int = 0
    session_id: int = 0
    roles: frozenset[str] = frozenset()
    token: str = field(default="", repr=False)


ANONYMOUS = Actor()


class Call(NamedTuple):
    """One call: `method` is its path, `caller` the calling service, OPERATOR, or "" for clients outside; `deadline` is in the
    loop's seconds, NEVER where the method has none; `user_agent` names the program at the client's end, as `bounded_user_agent`
    gives it; `address` is the client's, as seen where it entered the mesh, "" if not known."""

    # A tuple: one is made for every call, and a frozen dataclass takes four times as long to make.
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
    """Returns what a client's program calls itself in printable ASCII, which gRPC metadata can carry: MAX_USER_AGENT_CHARS at most."""
    text = text[:MAX_USER_AGENT_CHARS]
    if text.isascii() and text.isprintable():
        return text
    return "".join(character for character in text if " " <= character <= "~")


def current() -> Call:
    """The call this task serves; an empty one outside of calls (consumers, start-up)."""
    return current_call.get()


def actor() -> Actor:
    """The caller's actor, or ANONYMOUS."""
    return current_call.get().actor


def reader_id() -> int:
    """The caller's user id, 0 where nobody is signed in."""
    return current_call.get().actor.user_id


def require_user() -> int:
    """The caller's user id; UNAUTHENTICATED where nobody is signed in."""
    user_id = current_call.get().actor.user_id
    if not user_id:
        raise errors.unauthenticated()
    return user_id
