"""Who calls over a socket: a user by token, the operator by its token, a service by the mesh's secret."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import NamedTuple

from services.platform.auth.tokens import Verifier
from services.platform.rpc import errors
from services.platform.rpc.context import ANONYMOUS, OPERATOR, Actor
from services.platform.rpc.contract import methods
from services.platform.rpc.reasons import Reason
from services.platform.transport.remote import AUTHORIZATION_KEY, CALLER_KEY, SECRET_KEY

# The caller's name of the HTTP gateway, which is no service of the contract.
GATEWAY = "gateway"


class Identity(NamedTuple):
    """Who calls: the user, and the calling service, OPERATOR, or "" for clients outside the mesh."""

    actor: Actor
    caller: str


class Authenticator:
    """Turns a call's metadata into who calls."""

    def __init__(self, verifier: Verifier, operator_token: str, mesh_secret: str) -> None:
        self._verifier = verifier
        self._operator_token = operator_token.encode()
        self._mesh_secret = mesh_secret.encode()
        # "" is a client outside, whose call a process of the mesh passes on. The operator is known by its own token alone.
        self._callers = frozenset({"", GATEWAY, *(method.service_name for method in methods().values())})

    def is_mesh(self, metadata: Mapping[str, str]) -> bool:
        """Returns whether a process of the mesh sent the call."""
        return hmac.compare_digest(metadata.get(SECRET_KEY, "").encode(), self._mesh_secret)

    async def identify(self, metadata: Mapping[str, str]) -> Identity:
        """Returns who calls. Raises UNAUTHENTICATED if credentials are sent that do not hold, UNAVAILABLE if that cannot be told now."""
        caller = metadata.get(CALLER_KEY, "")
        if CALLER_KEY in metadata and not self.is_mesh(metadata):
            raise errors.unauthenticated("the mesh secret does not match", Reason.MESH_SECRET)
        if caller not in self._callers:
            raise errors.unauthenticated(f"{CALLER_KEY} names no service of the mesh", Reason.UNKNOWN_CALLER)
        authorization = metadata.get(AUTHORIZATION_KEY, "")
        if not authorization:
            return Identity(ANONYMOUS, caller)
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.unauthenticated("authorization must be 'Bearer <token>'")
        if hmac.compare_digest(token.encode(), self._operator_token):
            return Identity(ANONYMOUS, OPERATOR)
        return Identity(await self._verifier.verify(token), caller)
