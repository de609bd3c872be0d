"""Caches user references in Redis for all processes. The process itself caches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from services.identity.store import Account
from services.identity.store.cassandra.accounts.reader import AccountReader
from services.identity.store.user_refs import serialized_ref
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors


class SharedUserRefs:
    """Reads user references through Redis, and writes the reference of an account to Redis after the account was
    changed."""

    def __init__(self, reader: AccountReader, shared: SharedVersions) -> None:
        self._reader = reader
        self._shared = shared

    async def get_serialized(self, ids: Sequence[int]) -> bytes:
        """Returns the references of these users as a serialized BatchGetUserRefsResponse, in the order of `ids`; omits
        unknown ids. References that Redis does not have are read from Cassandra and written to Redis."""
        entries = await self._shared.users(ids)
        serialized = [entry.data if entry is not None else None for entry in entries]
        missing = [user_id for user_id, ref in zip(ids, serialized, strict=True) if ref is None]
        if missing:
            loaded = await self._reader.accounts(missing)
            filled = {user_id: (account.version, serialized_ref(account)) for user_id, account in loaded.items()}
            await self._shared.fill_users(filled)
            serialized = [
                filled[user_id][1] if ref is None and user_id in filled else ref
                for user_id, ref in zip(ids, serialized, strict=True)
            ]
        return b"".join(filter(None, serialized))

    async def put(self, account: Account) -> bool:
        """Writes the reference of the account to Redis, unless Redis has the reference of a newer version. Returns
        False if Redis is unavailable."""
        return await self._shared.put_user(account.user_id, account.version, serialized_ref(account))

    async def write(self, ids: Sequence[int]) -> None:
        """Writes the current references of these users to Redis. Raises UNAVAILABLE if Redis does not accept them."""
        for account in (await self._reader.accounts(ids)).values():
            if not await self.put(account):
                raise errors.unavailable("user references cannot be written to Redis: retry later")
