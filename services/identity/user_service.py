"""The servicer of roost.identity.v1.UserService: profiles and account states. The RPC that exports a user's data
returns UNIMPLEMENTED."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from google.protobuf.message import Message
from roost.event.v1 import event_pb2
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as pb
from roost.identity.v1.user_service_pb2_grpc import UserServiceServicer

from services.identity.password import imported_credential
from services.identity.profile import MAX_CODE_POINTS, changed_core, fold_email, fold_username, new_core
from services.identity.store import Account, AccountStore, NewAccount
from services.identity.user_hydrator import UserHydrator
from services.platform.auth.tokens import Revocations
from services.platform.events.records import EventBuilder
from services.platform.ids.snowflake import Snowflake
from services.platform.rpc import context as calls
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.shared.users import no_such_user

# Maximum number of attempts at a conditional write of an account; after that the call fails with UNAVAILABLE
# (CONTENDED). An attempt fails only if another process changed the account meanwhile. A process makes one change of an
# account at a time, so 20 processes may change the same account at once.
MAX_ATTEMPTS = 20
# Maximum random delay in seconds before the next attempt: the time of a few conditional writes, so that competing
# processes do not try at the same time again.
MAX_BACKOFF_S = 0.05
# Maximum number of accounts in one message of ScanUsers. The protos allow 1,000; 500 accounts of maximum size stay
# below 1 MiB.
ACCOUNTS_PER_SCAN_MESSAGE = 500
# Maximum number of imported profiles that ImportUsers checks before it yields to the event loop. One profile takes
# about 20 µs, so other calls of the process wait about 1 ms.
IMPORTS_PER_YIELD = 50

# The generated context type differs between methods, and no method here uses the context.
_Context = Any


class KeyedLocks(Protocol):
    """Locks by user id: changes of the same account within this process run one after the other, in FIFO order."""

    def hold(self, key: int, /) -> AbstractAsyncContextManager[None]:
        """Returns a context manager that holds the lock of this user id. Entering it raises RESOURCE_EXHAUSTED if too
        many callers wait for the lock."""


class UserService(UserServiceServicer):
    """Reads and changes profiles and account states. `clock` returns Unix seconds.

    `revocations` are those of this process: it rejects the access tokens of a suspended or deactivated user at once,
    other processes when they have consumed the event.
    """

    def __init__(
        self,
        accounts: AccountStore,
        hydrator: UserHydrator,
        events: EventBuilder,
        revocations: Revocations,
        ids: Snowflake,
        locks: KeyedLocks,
        clock: Callable[[], float],
    ) -> None:
        self._accounts = accounts
        self._clock = clock
        self._revocations = revocations
        self._locks = locks
        self._hydrator = hydrator
        self._events = events
        self._ids = ids

    async def GetUser(self, request: pb.GetUserRequest, context: _Context) -> pb.GetUserResponse:
        return pb.GetUserResponse(user=await self._hydrate_one(await self._accounts.batch_get([request.user_id])))

    async def GetUserByUsername(
        self, request: pb.GetUserByUsernameRequest, context: _Context
    ) -> pb.GetUserByUsernameResponse:
        login = await self._accounts.by_username(fold_username(request.username))
        return pb.GetUserByUsernameResponse(user=await self._hydrate_one([login.account] if login is not None else []))

    async def BatchGetUsers(self, request: pb.BatchGetUsersRequest, context: _Context) -> pb.BatchGetUsersResponse:
        accounts = await self._accounts.batch_get(request.ids)
        return pb.BatchGetUsersResponse(users=await self._hydrator.users(calls.reader_id(), accounts))

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: _Context) -> pb.UpdateUserResponse:
        changes = {field.name: value for field, value in request.ListFields() if field.name in MAX_CODE_POINTS}

        def changed(account: Account) -> tuple[Account, Message] | None:
            if account.state != user_pb2.USER_STATE_ACTIVE:
                raise no_such_user()
            core = changed_core(account.core, changes)
            if core == account.core:
                return None
            version = account.version + 1
            body = event_pb2.UserUpdated(user_id=account.user_id, version=version)
            return account._replace(core=core, version=version), body

        account = await self._change(calls.require_user(), changed)
        return pb.UpdateUserResponse(user=await self._hydrate_one([account]))

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: _Context) -> pb.DeleteUserResponse:
        def changed(account: Account) -> tuple[Account, Message] | None:
            if account.state == user_pb2.USER_STATE_SUSPENDED:
                # A suspended account cannot be deleted, because deleting and reactivating it would end the suspension.
                raise errors.permission_denied("the account is suspended: ask the operator", Reason.USER_SUSPENDED)
            body = event_pb2.UserDeleted(user_id=account.user_id, version=account.version + 1)
            return _to_state(account, user_pb2.USER_STATE_DEACTIVATED, body)

        await self._change(calls.require_user(), changed)
        return pb.DeleteUserResponse()

    async def SuspendUser(self, request: pb.SuspendUserRequest, context: _Context) -> pb.SuspendUserResponse:
        def changed(account: Account) -> tuple[Account, Message] | None:
            if account.state == user_pb2.USER_STATE_DEACTIVATED:
                return None
            body = event_pb2.UserSuspended(user_id=account.user_id, version=account.version + 1)
            return _to_state(account, user_pb2.USER_STATE_SUSPENDED, body)

        await self._change(request.user_id, changed)
        return pb.SuspendUserResponse()

    async def ReinstateUser(self, request: pb.ReinstateUserRequest, context: _Context) -> pb.ReinstateUserResponse:
        def changed(account: Account) -> tuple[Account, Message] | None:
            if account.state == user_pb2.USER_STATE_DEACTIVATED:
                return None
            body = event_pb2.UserReinstated(user_id=account.user_id, version=account.version + 1)
            return _to_state(account, user_pb2.USER_STATE_ACTIVE, body)

        await self._change(request.user_id, changed)
        return pb.ReinstateUserResponse()

    async def ImportUsers(self, request: pb.ImportUsersRequest, context: _Context) -> pb.ImportUsersResponse:
        new = []
        for number, user in enumerate(request.users):
            if number % IMPORTS_PER_YIELD == IMPORTS_PER_YIELD - 1:
                await asyncio.sleep(0)
            new.append(await self._new_account(user, f"users[{number}].profile"))
        return pb.ImportUsersResponse(user_ids=await self._accounts.import_accounts(new))

    async def BatchGetUserRefs(self, request: pb.BatchGetUserRefsRequest, context: _Context) -> pb.SerializedUserRefs:
        # Returns the wire type, in which the references stay serialized: the hydrator, which calls this method, has
        # cached the parsed form of most of them.
        return pb.SerializedUserRefs.FromString(await self._accounts.refs_serialized(list(request.ids)))

    async def ScanUsers(self, request: pb.ScanUsersRequest, context: _Context) -> AsyncIterator[pb.ScanUsersResponse]:
        after_id = request.after_id
        while accounts := await self._accounts.scan(after_id, ACCOUNTS_PER_SCAN_MESSAGE):
            after_id = accounts[-1].user_id
            yield pb.ScanUsersResponse(
                users=[
                    pb.ScannedUser(
                        user=user_pb2.User.FromString(account.core), state=account.state, version=account.version
                    )
                    for account in accounts
                ]
            )

    async def _hydrate_one(self, accounts: list[Account]) -> user_pb2.User:
        users = await self._hydrator.users(calls.reader_id(), accounts)
        if not users:
            raise no_such_user()
        return users[0]

    async def _new_account(self, user: pb.ImportedUser, path: str) -> NewAccount:
        user_id = await self._ids.mint()
        core = new_core(user_id, user.username, user.profile, path)
        account = Account(user_id, core, user.email, user_pb2.USER_STATE_ACTIVE, 1, frozenset(user.roles))
        created = await self._events.record(event_pb2.UserCreated(user_id=user_id, username=user.username))
        keys = fold_username(user.username), fold_email(user.email)
        return NewAccount(account, *keys, imported_credential(user.password_hash), created)

    async def _change(self, user_id: int, changed: Callable[[Account], tuple[Account, Message] | None]) -> Account:
        """Applies `changed` to the current account, stores the result with its event, and returns the account.

        If `changed` returns None, the account stays unchanged. Raises NOT_FOUND if there is no such user, and
        UNAVAILABLE (CONTENDED) after MAX_ATTEMPTS attempts.
        """
        async with self._locks.hold(user_id):
            for attempt in range(MAX_ATTEMPTS):
                if attempt:
                    await asyncio.sleep(random.uniform(0, MAX_BACKOFF_S))  # noqa: S311 (spreads load)
                accounts = await self._accounts.batch_get([user_id])
                if not accounts:
                    raise no_such_user()
                change = changed(accounts[0])
                if change is None:
                    return accounts[0]
                account, body = change
                ends = account.state != user_pb2.USER_STATE_ACTIVE
                deactivated_s = int(self._clock()) if account.state == user_pb2.USER_STATE_DEACTIVATED else None
                records = [await self._events.record(body)]
                if await self._accounts.replace(account, records, end_sessions=ends, deactivated_s=deactivated_s):
                    if ends:
                        self._revocations.revoke_user(user_id, self._clock())
                    return account
        raise errors.unavailable(
            "the account is being changed by another request: retry later", reason=Reason.CONTENDED
        )


def _to_state(account: Account, state: user_pb2.UserState.ValueType, body: Message) -> tuple[Account, Message] | None:
    if account.state == state:
        return None
    return account._replace(state=state, version=account.version + 1), body
