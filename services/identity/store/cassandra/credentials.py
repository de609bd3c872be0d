"""Stores credentials in Cassandra, in the partition of their user."""

from __future__ import annotations

from collections.abc import Sequence

from services.identity.password import Credential
from services.identity.store.cassandra import schema
from services.identity.store.cassandra.accounts.reader import AccountReader
from services.identity.store.cassandra.user_transactions import EVENT_ID_TTL_S, UserTransactions, event_ids
from services.platform.events.log import Record


class CassandraCredentialStore:
    """Implements CredentialStore on Cassandra."""

    def __init__(self, transactions: UserTransactions, reader: AccountReader) -> None:
        self._transactions = transactions
        self._reader = reader

    async def get(self, user_id: int) -> Credential | None:
        login = await self._reader.login(user_id)
        return login.credential if login is not None else None

    async def replace(
        self,
        user_id: int,
        checked: Credential,
        credential: Credential,
        keep_session_id: int,
        records: Sequence[Record],
    ) -> bool:
        events = (EVENT_ID_TTL_S, event_ids(records), user_id)
        change = (int(credential.scheme), credential.hash, user_id, int(checked.scheme), checked.hash)
        ends = (user_id, keep_session_id, user_id, keep_session_id)
        return await self._transactions.execute(user_id, records, schema.SET_CREDENTIAL, *change, *events, *ends)
