"""Stores accounts in Cassandra; Redis caches the user references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roost.identity.v1 import user_service_pb2

from services.identity.store import Account, AccountLogin, NewAccount, Session
from services.identity.store.cassandra import schema
from services.identity.store.cassandra.accounts.claims import Claims
from services.identity.store.cassandra.accounts.creator import AccountCreator
from services.identity.store.cassandra.accounts.reader import AccountReader
from services.identity.store.cassandra.shared_refs import SharedUserRefs
from services.identity.store.cassandra.user_transactions import EVENT_ID_TTL_S, UserTransactions, event_ids
from services.platform.cassandra.keyspace import Keyspace
from services.platform.events.log import Record
from services.platform.ids.snowflake import first_id_at

# Maximum number of buckets of `user_ids` that are read concurrently. A bucket holds the ids of six days, so a scan
# skips half a year without sign-ups in two rounds of reads.
BUCKETS_PER_READ = 16


class CassandraAccountStore:
    """Implements AccountStore on Cassandra and Redis. `clock` returns Unix seconds."""

    def __init__(
        self,
        keyspace: Keyspace,
        transactions: UserTransactions,
        reader: AccountReader,
        claims: Claims,
        refs: SharedUserRefs,
        clock: Callable[[], float],
    ) -> None:
        self._keyspace = keyspace
        self._transactions = transactions
        self._reader = reader
        self._refs = refs
        self._clock = clock
        self._claims = claims
        self._creator = AccountCreator(keyspace, transactions.outbox, reader, claims)

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        return user_service_pb2.BatchGetUserRefsResponse.FromString(await self.refs_serialized(ids))

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        return await self._refs.get_serialized(ids)

    async def batch_get(self, ids: Sequence[int]) -> list[Account]:
        found = await self._reader.accounts(ids)
        return [found[user_id] for user_id in ids if user_id in found]

    async def by_username(self, username_key: str) -> AccountLogin | None:
        return await self._reader.login(await self._claims.username_holder(username_key))

    async def by_email(self, email_key: str) -> AccountLogin | None:
        return await self._reader.login(await self._claims.email_holder(email_key))

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        await self._creator.create(new, session, token_hash)

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        return await self._creator.import_accounts(new)

    async def replace(
        self,
        account: Account,
        records: Sequence[Record],
        *,
        end_sessions: bool = False,
        deactivated_s: int | None = None,
    ) -> bool:
        user_id = account.user_id
        if deactivated_s is not None:
            # Before the change, so that the purge finds the account even if this process dies after the change. If the
            # change is not made, the purge finds another version or state, and drops the entry.
            day = deactivated_s // schema.DAY_S
            await self._keyspace.write(schema.ADD_DEACTIVATION, day, deactivated_s, user_id, account.version)
            await self._keyspace.write(schema.ADD_DAY, schema.ALL_DAYS, day)
        change = (account.core, account.state, account.version, user_id, account.version - 1)
        events = (EVENT_ID_TTL_S, event_ids(records), user_id)
        values = (*change, *events, user_id, 0, user_id, 0) if end_sessions else (*change, *events)
        statement = schema.REPLACE_AND_END if end_sessions else schema.REPLACE
        # The user reference is written to Redis before the events are published, so that consumers of the events read
        # the new reference.
        return await self._transactions.execute(
            user_id, records, statement, *values, before_publish=lambda: self._refs.put(account)
        )

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        found: list[Account] = []
        # Ids without an account belong to a sign-up that is in progress or failed.
        while len(found) < limit and (ids := await self._ids_after(after_id, limit - len(found))):
            found += await self.batch_get(ids)
            after_id = ids[-1]
        return found

    async def _ids_after(self, after_id: int, limit: int) -> list[int]:
        # The scan reads one bucket beyond the current time, because the clock of another process may be ahead.
        end = schema.bucket_of(first_id_at(int(self._clock() * 1000))) + 2
        for start in range(schema.bucket_of(after_id), end, BUCKETS_PER_READ):
            buckets = range(start, min(start + BUCKETS_PER_READ, end))
            rows = await self._keyspace.read_each(schema.IDS_AFTER, ((bucket, after_id, limit) for bucket in buckets))
            # The buckets are in ascending order, and each read returns the lowest ids of its bucket. So the ids that
            # the slice drops are higher than the ids that it keeps.
            if ids := [row[0] for batch in rows for row in batch][:limit]:
                return ids
        return []
