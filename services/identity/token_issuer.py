"""Issues the tokens of sessions: access tokens with the roles of their user, and the first refresh token of a
session."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from roost.identity.v1 import auth_service_pb2, user_pb2

from services.identity.profile import UsernamePolicy
from services.identity.refresh import RefreshTokens
from services.identity.signing import Signer
from services.identity.store import Account, Session
from services.platform.config import Settings
from services.platform.ids.snowflake import Snowflake
from services.platform.rpc import context as calls


class NewSession(NamedTuple):
    """A session that is not stored yet, its first refresh token, and the SHA-256 of this token."""

    session: Session
    refresh_token: str
    token_hash: bytes


class TokenIssuer:
    """Issues tokens with the lifetimes of the settings. `clock` returns Unix seconds."""

    def __init__(
        self,
        signer: Signer,
        refresh_tokens: RefreshTokens,
        settings: Settings,
        ids: Snowflake,
        clock: Callable[[], float],
    ) -> None:
        self.access_ttl_s = settings.access_token_ttl_s
        self.refresh_ttl_ms = settings.refresh_token_ttl_s * 1000
        self._username_policy = UsernamePolicy(settings.admins)
        self._signer = signer
        self._refresh_tokens = refresh_tokens
        self._ids = ids
        self._clock = clock

    def public_keys(self) -> auth_service_pb2.GetSigningKeysResponse:
        """Returns the public keys that verify the access tokens, in a new message."""
        return self._signer.public_keys()

    async def new_session(self, user_id: int) -> NewSession:
        """Returns a new session of the user, which the caller must store. Raises UNAVAILABLE if no id can be minted."""
        session_id = await self._ids.mint()
        now_ms = int(self._clock() * 1000)
        token, token_hash = self._refresh_tokens.make(user_id, session_id)
        session = Session(session_id, user_id, now_ms, now_ms + self.refresh_ttl_ms, calls.current().user_agent)
        return NewSession(session, token, token_hash)

    def access_token(self, account: Account, session_id: int, ttl_s: int = 0) -> str:
        """Returns an access token that expires in `ttl_s` seconds (0: the configured lifetime). Takes about 0.1 ms.

        `session_id` is 0 for a token without a session.
        """
        return self._signer.sign(account.user_id, session_id, self._roles(account), ttl_s or self.access_ttl_s)

    def _roles(self, account: Account) -> set[str]:
        """Returns the account's stored roles in lower case, and `admin` if the setting `admins` names the user."""
        roles = {user_pb2.Role.Name(role).removeprefix("ROLE_").lower() for role in account.roles}
        if self._username_policy.is_admin(user_pb2.User.FromString(account.core).username):
            roles.add("admin")
        return roles
