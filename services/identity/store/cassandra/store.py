"""The Cassandra adapter: Cassandra holds the accounts; Redis caches the user references for all processes.

The process itself caches nothing. Events of a lightweight transaction (LWT) are inserted into the outbox before it, and the LWT stores
their ids in the user's partition. So any process can decide later, with `committed_events`, which events in the outbox belong to
a committed change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Any, Self

import structlog
from roost.identity.v1 import user_pb2, user_service_pb2

from services.identity.password import Credential
from services.identity.store import MAX_SESSIONS, Account, AccountLogin, NewAccount, Rotation, Session
from services.identity.store.cassandra import schema
from services.identity.store.cassandra.account_rows import (
    ImportPlan,
    create_statements,
    decode_login,
    group_into_batches,
    session_values,
)
from services.identity.store.cassandra.username_claims import MAX_SIGN_UP_S, Claims
from services.identity.store.rotation import RotationState
from services.identity.store.user_refs import serialized_ref
from services.platform.cassandra.keyed_lock import KeyedLocks, run_to_completion
from services.platform.cassandra.keyspace import Keyspace, Statement
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import EventLog, Record
from services.platform.ids.snowflake import first_id_at
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

if TYPE_CHECKING:
    from services.platform.backends.cluster import ClusterBackends

# Seconds for which ids of committed events are stored: as long as outbox rows exist, because these are checked against them.
EVENT_ID_TTL_S = 3 * 24 * 3600
# Attempts at an LWT. An attempt fails only if another process refreshed the same session.
MAX_ATTEMPTS = 10
# Partitions of the id index that are read concurrently: half a year without sign-ups takes two rounds.
BUCKETS_PER_READ = 16
# Attempts of an import whose names are claimed by a concurrent one, and the seconds between them.
MAX_IMPORT_ATTEMPTS = 4
IMPORT_RETRY_S = 0.3
# Concurrent batches of an import. Each writes a few dozen rows on one coordinator.
MAX_CONCURRENT_BATCHES = 16
# Seconds between attempts at a batch of an import.
BATCH_RETRY_S = 1.0
# Sessions read to find those above MAX_SESSIONS. Concurrent log-ins may leave a few more; the next log-in ends them.
MAX_SESSIONS_READ = 2 * MAX_SESSIONS
# Ids in one SELECT … IN: it costs a tenth of single reads.
IDS_PER_READ = 100
_MAX_ID = 2**63 - 1

log = structlog.get_logger(__name__)


class CassandraStore:
    """Implements Store on Cassandra and Redis. Created by `open`. `outbox` must run as a worker of the service."""

    def __init__(
        self,
        keyspace: Keyspace,
        keys: Keyspace,
        shared: SharedVersions,
        event_log: EventLog,
        clock: Callable[[], float],
    ) -> None:
        self.outbox = Outbox(keyspace, event_log, clock, self.committed_events)
        self._keyspace = keyspace
        self._keys = keys
        self._shared_refs = shared
        self._clock = clock
        self._claims = Claims(keyspace, clock, self._exists)
        self._locks = KeyedLocks()

    @classmethod
    async def open(cls, cluster: ClusterBackends, event_log: EventLog, clock: Callable[[], float]) -> Self:
        """Opens the keyspaces and applies missing migrations. `clock` returns unix seconds. Raises as Keyspace.open."""
        keyspace = await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE])
        keys = await cluster.keyspace(schema.KEYS_KEYSPACE, schema.KEYSPACES[schema.KEYS_KEYSPACE])
        return cls(keyspace, keys, cluster.shared, event_log, clock)

    async def close(self) -> None:
        """Does nothing: the connections belong to the process."""

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        return user_service_pb2.BatchGetUserRefsResponse.FromString(await self.refs_serialized(ids))

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        entries = await self._shared_refs.users(ids)
        serialized = [entry.data if entry is not None else None for entry in entries]
        missing = [user_id for user_id, ref in zip(ids, serialized, strict=True) if ref is None]
        if missing:
            loaded = await self._accounts(missing)
            filled = {user_id: (account.version, serialized_ref(account)) for user_id, account in loaded.items()}
            await self._shared_refs.fill_users(filled)
            serialized = [
                filled[user_id][1] if ref is None and user_id in filled else ref
                for user_id, ref in zip(ids, serialized, strict=True)
            ]
        return b"".join(filter(None, serialized))

    async def accounts(self, ids: Sequence[int]) -> list[Account]:
        found = await self._accounts(ids)
        return [found[user_id] for user_id in ids if user_id in found]

    async def by_username(self, username_key: str) -> AccountLogin | None:
        return await self._login(await self._claims.username_holder(username_key))

    async def by_email(self, email_key: str) -> AccountLogin | None:
        return await self._login(await self._claims.email_holder(email_key))

    async def credential(self, user_id: int) -> Credential | None:
        login = await self._login(user_id)
        return login.credential if login is not None else None

    async def create(self, new: NewAccount, session: Session, token_hash: bytes) -> None:
        statements = [
            *create_statements(new, EVENT_ID_TTL_S),
            (schema.FIRST_SESSION, (schema.FIRST_WRITE_TIMESTAMP, *session_values(session, b"", token_hash))),
        ]
        await run_to_completion(self._create_accounts([new], [statements]))

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        """As the port, except that accounts that do not fit into one batch may be created only in part.

        That happens if this process dies, or if Cassandra is unavailable for MAX_SIGN_UP_S. A repeat of the import creates the rest,
        once the claims have expired.
        """
        plan = ImportPlan(new)
        for tries_left in reversed(range(MAX_IMPORT_ATTEMPTS)):
            holders = await self._claims.username_holders(plan.names)
            missing = plan.missing(await self._logins(holders), holders)
            try:
                if missing:
                    await run_to_completion(
                        self._create_accounts(missing, [create_statements(one, EVENT_ID_TTL_S) for one in missing])
                    )
            except errors.RoostError as error:
                # A concurrent request creates one of the accounts, perhaps the same import: retry, and compare with the stored account.
                if error.reason != Reason.USERNAME_TAKEN or not tries_left:
                    raise
                await asyncio.sleep(IMPORT_RETRY_S)
            else:
                break
        return plan.ids

    async def _create_accounts(self, new: Sequence[NewAccount], statements: Sequence[Sequence[Statement]]) -> None:
        """Claims usernames and e-mail addresses, writes each account by its `statements` with its event, then publishes the events."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + MAX_SIGN_UP_S
        await self._claims.claim(new)
        groups = ([*mine, *self.outbox.statements([one.created])] for one, mine in zip(new, statements, strict=True))
        first, *others = group_into_batches(groups)
        try:
            if clock() > give_up:
                raise errors.unavailable(
                    "the sign-up took too long, so the username may be taken: retry", reason=Reason.STORE_UNAVAILABLE
                )
            await self._keyspace.batch(first)
        except errors.RoostError as error:
            if error.reason == Reason.STORE_UNAVAILABLE:
                await self._claims.release(new)
            raise
        slots = asyncio.Semaphore(MAX_CONCURRENT_BATCHES)

        async def store(batch: Sequence[Statement]) -> None:
            # The first batch is stored, so the import must be completed: retry until `give_up`.
            while True:
                async with slots:
                    try:
                        return await self._keyspace.batch(batch)
                    except errors.RoostError:
                        if clock() > give_up:
                            raise
                await asyncio.sleep(BATCH_RETRY_S)

        await asyncio.gather(*map(store, others))
        self.outbox.publish([one.created for one in new])

    async def replace(self, account: Account, records: Sequence[Record], *, end_sessions: bool = False) -> bool:
        user_id = account.user_id
        change = (account.core, account.state, account.version, user_id, account.version - 1)
        event_ids = (EVENT_ID_TTL_S, _ids(records), user_id)
        values = (*change, *event_ids, user_id, 0, user_id, 0) if end_sessions else (*change, *event_ids)
        statement = schema.REPLACE_AND_END if end_sessions else schema.REPLACE
        return await run_to_completion(self._apply_with_events(user_id, records, statement, *values, shared=account))

    async def set_credential(
        self,
        user_id: int,
        checked: Credential,
        credential: Credential,
        keep_session_id: int,
        records: Sequence[Record],
    ) -> bool:
        event_ids = (EVENT_ID_TTL_S, _ids(records), user_id)
        change = (int(credential.scheme), credential.hash, user_id, int(checked.scheme), checked.hash)
        ends = (user_id, keep_session_id, user_id, keep_session_id)
        return await run_to_completion(
            self._apply_with_events(user_id, records, schema.SET_CREDENTIAL, *change, *event_ids, *ends)
        )

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        found: list[Account] = []
        # Ids without an account belong to a sign-up that is in progress or failed.
        while len(found) < limit and (ids := await self._ids_after(after_id, limit - len(found))):
            found += await self.accounts(ids)
            after_id = ids[-1]
        return found

    async def _ids_after(self, after_id: int, limit: int) -> list[int]:
        # One bucket further, because the clock of another process may be ahead.
        end = schema.bucket_of(first_id_at(int(self._clock() * 1000))) + 2
        for start in range(schema.bucket_of(after_id), end, BUCKETS_PER_READ):
            buckets = range(start, min(start + BUCKETS_PER_READ, end))
            rows = await self._keyspace.read_each(schema.IDS_AFTER, ((bucket, after_id, limit) for bucket in buckets))
            # Buckets ascend and each returns its lowest ids, so cutting the list drops only higher ids.
            if ids := [row[0] for batch in rows for row in batch][:limit]:
                return ids
        return []

    async def open_session(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        return await run_to_completion(self._open_session(session, token_hash, checked))

    async def _open_session(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        user_id = session.user_id
        async with self._locks.hold(user_id):
            unchanged = (user_pb2.USER_STATE_ACTIVE, int(checked.scheme), checked.hash)
            values = (*session_values(session, b"", token_hash), *unchanged)
            applied, _ = await self._keyspace.execute_lwt(schema.OPEN_SESSION, *values)
            if applied:
                living = await self.sessions(user_id, session.used_ms, 0, MAX_SESSIONS_READ)
                living.sort(key=lambda one: (one.used_ms, one.session_id), reverse=True)
                for surplus in living[MAX_SESSIONS:]:
                    await self._keyspace.execute_lwt(schema.DROP_SESSION, user_id, surplus.session_id)
        return applied

    async def rotate(
        self, user_id: int, session_id: int, presented: bytes, successor: bytes, now_ms: int, expires_ms: int
    ) -> Rotation:
        return await run_to_completion(self._rotate(user_id, session_id, presented, successor, now_ms, expires_ms))

    async def _rotate(
        self, user_id: int, session_id: int, presented: bytes, successor: bytes, now_ms: int, expires_ms: int
    ) -> Rotation:
        async with self._locks.hold(user_id):
            for _ in range(MAX_ATTEMPTS):
                rows = await self._keyspace.read(schema.SESSION, user_id, session_id)
                if not rows or rows[0][3] <= now_ms:
                    return Rotation.ENDED
                *kept, _, user_agent = rows[0]
                found = RotationState(*kept)
                following = found.use(presented, successor, now_ms)
                if isinstance(following, Rotation):
                    return following
                session = Session(session_id, user_id, now_ms, expires_ms, user_agent)
                values = session_values(session, following.used, following.offered)
                if (await self._keyspace.execute_lwt(schema.ROTATE, *values, found.used, found.offered))[0]:
                    return Rotation.DONE
        raise errors.unavailable("the session is being refreshed by others", reason=Reason.CONTENDED)

    async def sessions(self, user_id: int, now_ms: int, before_id: int, limit: int) -> list[Session]:
        found: list[Session] = []
        before_id = before_id or _MAX_ID
        while len(found) < limit:
            rows = await self._keyspace.read(schema.SESSIONS, user_id, before_id, limit)
            found += [Session(*row) for row in rows if row[3] > now_ms]
            if len(rows) < limit:
                break
            before_id = rows[-1][0]
        return found[:limit]

    async def end_session(self, session_id: int, user_id: int, records: Sequence[Record]) -> bool:
        values = (user_id, session_id, EVENT_ID_TTL_S, _ids(records), user_id)
        return await run_to_completion(self._apply_with_events(user_id, records, schema.END_SESSION, *values))

    async def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        rows = await self._keys.read(schema.SECRET, name)
        if not rows:
            # The copy of an earlier release is not deleted, because processes of that release may still restart during an upgrade.
            earlier = await self._keyspace.read_serial(schema.SECRET, name)
            if earlier:
                # To be deleted from the accounts' keyspace once no process of the earlier release runs.
                log.warning("legacy_key.copied", name=name, keyspace=schema.KEYSPACE)
            await self._keys.execute_lwt(schema.INSERT_SECRET, name, earlier[0][0] if earlier else make())
            rows = await self._keys.read_serial(schema.SECRET, name)
        return bytes(rows[0][0])

    async def write_refs(self, ids: Sequence[int]) -> None:
        """Writes the current references of these users to Redis. Raises UNAVAILABLE if Redis does not accept them."""
        for user_id, account in (await self._accounts(ids)).items():
            if not await self._shared_refs.put_user(user_id, account.version, serialized_ref(account)):
                raise errors.unavailable("user references cannot be written to Redis: retry later")

    async def committed_events(self, records: Sequence[Record]) -> list[Record]:
        """Returns those of the events whose change was committed. Its serial read completes an LWT that is in progress."""
        made: dict[int, Set[int]] = {}
        for user_id in {record.key for record in records}:
            rows = await self._keyspace.read_serial(schema.MADE, user_id)
            made[user_id] = set(rows[0][0] or ()) if rows else set()
        return [record for record in records if record.event_id in made[record.key]]

    async def _apply_with_events(
        self, user_id: int, records: Sequence[Record], statement: str, *values: Any, shared: Account | None = None
    ) -> bool:
        """Executes an LWT on the user's partition that also stores the ids of the events; returns whether it was applied.

        Inserts the events into the outbox before. If the LWT was applied, writes `shared` to Redis and then publishes the events.
        """
        async with self._locks.hold(user_id):
            await self._keyspace.write_each(self.outbox.statements(records))
            try:
                applied, _ = await self._keyspace.execute_lwt(statement, *values)
            except errors.RoostError:
                # The outcome is unknown, unless the stored event ids prove that the LWT was applied.
                applied = bool(records) and len(await self.committed_events(records)) == len(records)
                if not applied:
                    raise
        if applied:
            if shared is not None:
                # Before the events are published, so that consumers of the events read the new reference.
                await self._shared_refs.put_user(user_id, shared.version, serialized_ref(shared))
            self.outbox.publish(records)
        return applied

    async def _exists(self, user_id: int) -> bool:
        return bool(await self._logins([user_id]))

    async def _login(self, user_id: int) -> AccountLogin | None:
        return (await self._logins([user_id])).get(user_id) if user_id else None

    async def _accounts(self, ids: Sequence[int]) -> dict[int, Account]:
        return {user_id: login.account for user_id, login in (await self._logins(ids)).items()}

    async def _logins(self, ids: Sequence[int]) -> dict[int, AccountLogin]:
        wanted = list(dict.fromkeys(ids))
        keys = (((wanted[at : at + IDS_PER_READ]),) for at in range(0, len(wanted), IDS_PER_READ))
        found = await self._keyspace.read_each(schema.ACCOUNTS_OF, keys)
        # A row without a version is of a sign-up in progress: its event id may be visible before the account.
        return {row[0]: decode_login(row) for rows in found for row in rows if row[4] is not None}


def _ids(records: Sequence[Record]) -> set[int]:
    return {record.event_id for record in records}
