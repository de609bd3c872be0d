"""Authenticates calls that arrive over a socket.

A user is authenticated by an access token, the operator by the operator token, a service by the mesh secret.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import NamedTuple

from services.platform.auth.tokens import Verifier
from services.platform.rpc import errors
from services.platform.rpc.context import ANONYMOUS, OPERATOR, Actor
from services.platform.rpc.contract import mesh_callers
from services.platform.rpc.reasons import Reason
from services.platform.transport.remote import AUTHORIZATION_KEY, CALLER_KEY, SECRET_KEY


class Identity(NamedTuple):
    """The authenticated identity of a call.

    `actor` is the user, ANONYMOUS if the call carries no access token. `caller` is the name of the calling service,
    OPERATOR, or "" for a client outside the mesh.
    """

    actor: Actor
    caller: str


class Authenticator:
    """Determines the actor and the caller of a call from its metadata."""

    def __init__(self, verifier: Verifier, operator_token: str, mesh_secret: str) -> None:
        self._verifier = verifier
        self._operator_token = operator_token.encode()
        self._mesh_secret = mesh_secret.encode()
        # A process of the mesh sends "" if it forwards the call of a client outside the mesh. OPERATOR is not in the
        # set, because only the operator token authenticates the operator.
        self._callers = mesh_callers() | {""}

    def is_mesh(self, metadata: Mapping[str, str]) -> bool:
        """Returns True if the metadata contain the mesh secret, so a process of the mesh sent the call."""
        return hmac.compare_digest(metadata.get(SECRET_KEY, "").encode(), self._mesh_secret)

    async def identify(self, metadata: Mapping[str, str]) -> Identity:
        """Returns the actor and the caller of a call with these metadata.

        Raises UNAUTHENTICATED if a caller name is sent without the mesh secret or is unknown, or if `authorization` is
        not a bearer token that is valid now. Raises UNAVAILABLE if the keys to verify the token cannot be fetched.
        """
        caller = metadata.get(CALLER_KEY, "")
        if CALLER_KEY in metadata and not self.is_mesh(metadata):
            raise errors.unauthenticated(
                "the mesh secret does not match: set the same `mesh_secret` in all processes of the mesh",
                Reason.MESH_SECRET,
            )
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
