"""The servicer of roost.identity.v1.AuthService: sign-up, log-in, sessions and tokens.

The RPCs for one-time codes and for password resets return UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2
from roost.identity.v1 import auth_service_pb2 as pb
from roost.identity.v1 import user_pb2
from roost.identity.v1.auth_service_pb2_grpc import AuthServiceServicer

from services.identity.password import Passwords
from services.identity.password_rules import check_new_password
from services.identity.profile import UsernamePolicy, fold_email, fold_username, login_username, new_core
from services.identity.refresh import RefreshTokens, invalid_refresh_token
from services.identity.store import (
    MAX_SESSIONS,
    Account,
    AccountLogin,
    AccountStore,
    IdentityStores,
    NewAccount,
    Rotation,
    Session,
)
from services.identity.token_issuer import TokenIssuer
from services.identity.user_hydrator import UserHydrator
from services.platform.auth.tokens import Revocations
from services.platform.config import Settings
from services.platform.detached import run_to_completion
from services.platform.events.records import EventBuilder
from services.platform.ids import snowflake
from services.platform.ids.snowflake import Snowflake
from services.platform.log_events import LogEvent
from services.platform.pagination.cursors import Cursors
from services.platform.pagination.page_size import page_size_of
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Maximum number of tokens that MintTokens signs before it yields to the event loop. One signature takes at least 0.1
# ms, so other calls of the process wait about 2 ms.
SIGNATURES_PER_YIELD = 20
# Maximum number of user ids in the log line of one MintTokens call; further ids are left out. A thousand ids would take
# 20 kB. The line also has the number of users.
MAX_AUDITED_IDS = 20

log = structlog.get_logger(__name__)

# The generated context type differs for each method, and no method uses the context.
_Context = Any


class AuthService(AuthServiceServicer):
    """Serves sign-up, log-in, sessions and tokens. `clock` returns Unix seconds. `revocations` are those of this process:
    it rejects the tokens of an ended session at once, other processes after they have consumed the event."""

    def __init__(
        self,
        *,
        stores: IdentityStores,
        hydrator: UserHydrator,
        passwords: Passwords,
        tokens: TokenIssuer,
        refresh_tokens: RefreshTokens,
        events: EventBuilder,
        revocations: Revocations,
        settings: Settings,
        ids: Snowflake,
        cursors: Cursors,
        clock: Callable[[], float],
    ) -> None:
        self._accounts = stores.accounts
        self._credentials = stores.credentials
        self._sessions = stores.sessions
        self._hydrator = hydrator
        self._passwords = passwords
        self._tokens = tokens
        self._refresh_tokens = refresh_tokens
        self._events = events
        self._revocations = revocations
        self._username_policy = UsernamePolicy(settings.admins)
        self._ids = ids
        self._cursors = cursors
        self._clock = clock

    async def CheckUsernameAvailability(
        self, request: pb.CheckUsernameAvailabilityRequest, context: _Context
    ) -> pb.CheckUsernameAvailabilityResponse:
        reserved = self._username_policy.is_reserved(request.username)
        taken = reserved or await self._accounts.by_username(fold_username(request.username))
        return pb.CheckUsernameAvailabilityResponse(available=not taken)

    async def SignUp(self, request: pb.SignUpRequest, context: _Context) -> pb.SignUpResponse:
        username_key, email_key = fold_username(request.username), fold_email(request.email)
        user_id = await self._ids.mint()
        core = new_core(user_id, request.username, request.profile)
        await check_new_password(request.password, _owner_names(request.username, request.email), "password")
        # The store guarantees that the name is unique. This check only avoids hashing the password if the name is
        # taken.
        if await self._accounts.by_username(username_key):
            raise errors.already_exists("the username is taken: choose another", Reason.USERNAME_TAKEN)
        if self._username_policy.is_reserved(request.username):
            message = "the username is reserved: choose another, or ask the operator to create the account"
            raise errors.already_exists(message, Reason.USERNAME_RESERVED)
        if await self._accounts.by_email(email_key):
            raise errors.already_exists("the email is taken: choose another", Reason.EMAIL_TAKEN)
        credential = await self._passwords.hash(request.password)
        account = Account(user_id, core, request.email, user_pb2.USER_STATE_ACTIVE, 1, frozenset())
        created = await self._events.record(event_pb2.UserCreated(user_id=user_id, username=request.username))
        session, refresh_token, digest = await self._tokens.new_session(user_id)
        await self._accounts.create(NewAccount(account, username_key, email_key, credential, created), session, digest)
        return pb.SignUpResponse(
            user=await self._hydrate_own(account),
            access_token=self._tokens.access_token(account, session.session_id),
            refresh_token=refresh_token,
            expires_in=self._tokens.access_ttl_s,
        )

    async def Login(self, request: pb.LoginRequest, context: _Context) -> pb.LoginResponse:
        login = await _find_login(self._accounts, request.username, request.email)
        # The check runs for unknown accounts too and takes the same time, so that the response time does not reveal
        # whether an account exists.
        matches = await self._passwords.check(request.password, login.credential if login is not None else None)
        if login is None or not matches:
            raise _wrong_credentials()
        if login.account.state == user_pb2.USER_STATE_SUSPENDED:
            raise errors.permission_denied("the account is suspended: ask the operator", Reason.USER_SUSPENDED)
        account = login.account
        if account.state == user_pb2.USER_STATE_DEACTIVATED:
            if not request.reactivate:
                raise _deactivated()
            account = await self._reactivate(account)
        session, refresh_token, digest = await self._tokens.new_session(account.user_id)
        # The access token is signed before the session is stored. If the account is suspended between the two steps,
        # the suspension also revokes this token, because a suspension revokes all tokens that were issued before it.
        access_token = self._tokens.access_token(account, session.session_id)
        if not await self._sessions.open(session, digest, login.credential):
            raise _wrong_credentials()
        return pb.LoginResponse(
            user=await self._hydrate_own(account),
            access_token=access_token,
            refresh_token=refresh_token,
            expires_in=self._tokens.access_ttl_s,
        )

    async def RefreshToken(self, request: pb.RefreshTokenRequest, context: _Context) -> pb.RefreshTokenResponse:
        presented = self._refresh_tokens.read(request.refresh_token)
        refresh_token, digest = self._refresh_tokens.successor(presented)
        now_ms = int(self._clock() * 1000)
        expires_ms = now_ms + self._tokens.refresh_ttl_ms
        user_id, session_id = presented.user_id, presented.session_id
        outcome = await self._sessions.rotate(user_id, session_id, presented.hash, digest, now_ms, expires_ms)
        if outcome is Rotation.REUSED:
            # A refresh token that is used again after its successor was probably stolen. The service cannot tell the
            # thief from the user, so it ends the session for both.
            log.warning(LogEvent.REFRESH_TOKEN_REUSED, user_id=user_id, session_id=session_id)
            await run_to_completion(self._end_session(user_id, session_id), keep_context=True)
        if outcome is not Rotation.DONE:
            raise invalid_refresh_token()
        accounts = await self._accounts.batch_get([presented.user_id])
        if not accounts or accounts[0].state != user_pb2.USER_STATE_ACTIVE:
            raise invalid_refresh_token()
        return pb.RefreshTokenResponse(
            access_token=self._tokens.access_token(accounts[0], presented.session_id),
            refresh_token=refresh_token,
            expires_in=self._tokens.access_ttl_s,
        )

    async def Logout(self, request: pb.LogoutRequest, context: _Context) -> pb.LogoutResponse:
        presented = self._refresh_tokens.read(request.refresh_token)
        await self._end_session(presented.user_id, presented.session_id)
        return pb.LogoutResponse()

    async def ListSessions(self, request: pb.ListSessionsRequest, context: _Context) -> pb.ListSessionsResponse:
        user_id = calls.require_user()
        size = page_size_of(request)
        before = self._cursors.open(request.cursor, "sessions", user_id)[0] if request.cursor else 0
        now_ms = int(self._clock() * 1000)
        found = await self._sessions.list_live(user_id, now_ms, int(before), size + 1)
        more = len(found) > size
        return pb.ListSessionsResponse(
            sessions=[_session_message(session, calls.actor().session_id) for session in found[:size]],
            next_cursor=self._cursors.seal("sessions", user_id, found[size - 1].session_id) if more else "",
        )

    async def RevokeSession(self, request: pb.RevokeSessionRequest, context: _Context) -> pb.RevokeSessionResponse:
        await self._end_session(calls.require_user(), request.session_id)
        return pb.RevokeSessionResponse()

    async def ChangePassword(self, request: pb.ChangePasswordRequest, context: _Context) -> pb.ChangePasswordResponse:
        user_id = calls.require_user()
        for account in await self._accounts.batch_get([user_id]):
            names = _owner_names(user_pb2.User.FromString(account.core).username, account.email)
            await check_new_password(request.new_password, names, "new_password")
        checked = await self._credentials.get(user_id)
        if checked is None or not await self._passwords.check(request.current_password, checked):
            raise _wrong_current_password()
        new = await self._passwords.hash(request.new_password)
        keep = calls.actor().session_id
        others = [s for s in await self._sessions.list_live(user_id, 0, 0, MAX_SESSIONS) if s.session_id != keep]
        bodies = [event_pb2.SessionRevoked(user_id=user_id, session_id=session.session_id) for session in others]
        records = [await self._events.record(body) for body in bodies]
        if not await self._credentials.replace(user_id, checked, new, keep, records):
            # The password was changed after the comparison, so the given password is no longer the current one.
            raise _wrong_current_password()
        for session in others:
            self._revocations.revoke_session(session.session_id)
        return pb.ChangePasswordResponse()

    async def GetSigningKeys(self, request: pb.GetSigningKeysRequest, context: _Context) -> pb.GetSigningKeysResponse:
        return self._tokens.public_keys()

    async def MintTokens(self, request: pb.MintTokensRequest, context: _Context) -> pb.MintTokensResponse:
        accounts = await self._accounts.batch_get(request.user_ids)
        active = [account for account in accounts if account.state == user_pb2.USER_STATE_ACTIVE]
        minted = []
        for number, account in enumerate(active):
            if number % SIGNATURES_PER_YIELD == SIGNATURES_PER_YIELD - 1:
                await asyncio.sleep(0)
            token = self._tokens.access_token(account, 0, request.ttl_seconds)
            minted.append(pb.MintedToken(user_id=account.user_id, access_token=token))
        log.info(
            LogEvent.TOKENS_MINTED,
            operator=calls.current().caller,
            request_id=calls.current().request_id,
            ttl_s=request.ttl_seconds,
            users=len(active),
            user_ids=[account.user_id for account in active[:MAX_AUDITED_IDS]],
        )
        return pb.MintTokensResponse(tokens=minted)

    async def _reactivate(self, account: Account) -> Account:
        """Reactivates a deactivated account and returns the active account. Raises UNAVAILABLE (CONTENDED) if another
        request changed the account concurrently."""
        version = account.version + 1
        active = account._replace(state=user_pb2.USER_STATE_ACTIVE, version=version)
        reinstated = await self._events.record(event_pb2.UserReinstated(user_id=account.user_id, version=version))
        if not await self._accounts.replace(active, [reinstated]):
            raise errors.unavailable(
                "the account is being changed by another request: retry later", reason=Reason.CONTENDED
            )
        return active

    async def _end_session(self, user_id: int, session_id: int) -> None:
        revoked = event_pb2.SessionRevoked(user_id=user_id, session_id=session_id)
        if await self._sessions.end(session_id, user_id, [await self._events.record(revoked)]):
            self._revocations.revoke_session(session_id)

    async def _hydrate_own(self, account: Account) -> user_pb2.User:
        (user,) = await self._hydrator.users(account.user_id, [account])
        return user


async def _find_login(accounts: AccountStore, username: str, email: str) -> AccountLogin | None:
    """Returns the account with this username or e-mail address; None if there is none. `username` may also hold an
    e-mail address, as users may type it at log-in.

    If `username` and `email` are both given, the account must have both.
    """
    username, email = login_username(username), email.strip()
    if not username:
        return await accounts.by_email(fold_email(email))
    if "@" in username:
        login = await accounts.by_email(fold_email(username))
    else:
        login = await accounts.by_username(fold_username(username))
    if login is not None and email and fold_email(login.account.email) != fold_email(email):
        return None
    return login


def _session_message(session: Session, current_id: int) -> pb.Session:
    created_at, last_used_at, expires_at = Timestamp(), Timestamp(), Timestamp()
    created_at.FromMilliseconds(snowflake.timestamp_ms(session.session_id))
    last_used_at.FromMilliseconds(session.used_ms)
    expires_at.FromMilliseconds(session.expires_ms)
    return pb.Session(
        id=session.session_id,
        created_at=created_at,
        last_used_at=last_used_at,
        expires_at=expires_at,
        user_agent=session.user_agent,
        current=session.session_id == current_id,
    )


def _owner_names(username: str, email: str) -> tuple[str, ...]:
    """Returns the texts that the user's password must not equal, because others may know them: the username, the e-mail
    address, and the local part of the address."""
    return username, email, email.partition("@")[0]


def _wrong_current_password() -> errors.RoostError:
    return errors.permission_denied("the current password is wrong", Reason.WRONG_CREDENTIALS)


def _deactivated() -> errors.RoostError:
    # This error is returned only after the password was verified, because nobody else may learn that the account
    # exists.
    message = (
        "the account was deleted: log in with `reactivate` set to true to restore it, which works until it is purged"
    )
    return errors.permission_denied(message, Reason.ACCOUNT_DEACTIVATED)


def _wrong_credentials() -> errors.RoostError:
    # The error is identical for a wrong password and for an unknown name, so that it does not reveal which names exist.
    return errors.unauthenticated("the username or the password is wrong", reason=Reason.WRONG_CREDENTIALS)
