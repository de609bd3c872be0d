"""Reads accounts by user id from Cassandra."""

from __future__ import annotations

from collections.abc import Sequence

from services.identity.store import Account, AccountLogin
from services.identity.store.cassandra import schema
from services.identity.store.cassandra.accounts.rows import decode_login
from services.platform.cassandra.keyspace import Keyspace

# Maximum number of ids in one SELECT … IN; more ids are read by several statements. One SELECT of 100 ids costs a tenth
# of 100 single reads.
IDS_PER_READ = 100


class AccountReader:
    """Reads accounts of one keyspace. Methods raise the errors of Keyspace."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    async def exists(self, user_id: int) -> bool:
        """Returns whether the user id has an account."""
        return bool(await self.logins([user_id]))

    async def login(self, user_id: int) -> AccountLogin | None:
        """Returns the account with its credential; None for an unknown id, and for 0."""
        return (await self.logins([user_id])).get(user_id) if user_id else None

    async def accounts(self, ids: Sequence[int]) -> dict[int, Account]:
        """Returns the accounts by user id, without unknown ids."""
        return {user_id: login.account for user_id, login in (await self.logins(ids)).items()}

    async def logins(self, ids: Sequence[int]) -> dict[int, AccountLogin]:
        """Returns the accounts with their credentials by user id, without unknown ids."""
        wanted = list(dict.fromkeys(ids))
        keys = (((wanted[at : at + IDS_PER_READ]),) for at in range(0, len(wanted), IDS_PER_READ))
        found = await self._keyspace.read_each(schema.ACCOUNTS_OF, keys)
        # A row without a version belongs to a sign-up in progress: the event id may be visible before the account.
        return {row[0]: decode_login(row) for rows in found for row in rows if row[4] is not None}
