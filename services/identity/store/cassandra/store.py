"""The cluster adapter: Cassandra holds the accounts, Redis the references in use, for all processes at once.

Nothing is kept in process memory. A change that a condition decides has its events in the outbox before it is decided, and notes
their ids with the change: so `decided` can tell, at any time and in any process, which of them are true.
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
from services.identity.store.cassandra.account_rows import ImportPlan, account_steps, login_of, lots, session_values
from services.identity.store.cassandra.username_claims import MAX_HELD_S, Claims
from services.identity.store.rotation import Succession
from services.identity.store.user_refs import wire_of
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

# As long as the outbox keeps its rows: until then somebody may ask whether an event is true.
NOTE_S = 3 * 24 * 3600
# Refreshes of one session at once, by other processes: each loses to one that won.
MAX_TRIES = 10
# Partitions of the index of ids that are read together: an empty half-year costs two rounds.
BUCKETS_A_ROUND = 16
# An import that meets another of the same names waits for it, this often and so long.
MAX_IMPORTS = 4
IMPORT_AGAIN_S = 0.3
# Each is a few dozen rows' work for one node.
BATCHES_AT_ONCE = 16
# Between the tries of a batch of an import of which a part is stored.
LOT_AGAIN_S = 1.0
# Log-ins of other processes at the same moment may leave a few more than MAX_SESSIONS: the next log-in ends those too.
MAX_LISTED = 2 * MAX_SESSIONS
# In one statement: a node gathers them, which costs a tenth of asking for each.
IDS_PER_READ = 100
_MAX_ID = 2**63 - 1

_log = structlog.get_logger(__name__)


class CassandraStore:
    """The Store port over one keyspace. Made by `open`; `outbox` is one of the service's workers."""

    def __init__(
        self, keyspace: Keyspace, keys: Keyspace, shared: SharedVersions, log: EventLog, clock: Callable[[], float]
    ) -> None:
        self.outbox = Outbox(keyspace, log, clock, self.decided)
        self._keyspace = keyspace
        self._keys = keys
        self._shared = shared
        self._clock = clock
        self._claims = Claims(keyspace, clock, self._exists)
        self._turns = KeyedLocks()

    @classmethod
    async def open(cls, cluster: ClusterBackends, log: EventLog, clock: Callable[[], float]) -> Self:
        """The store in its keyspace, brought up to date. `clock` gives unix seconds. Errors as Keyspace.open."""
        keyspace = await cluster.keyspace(schema.KEYSPACE, schema.KEYSPACES[schema.KEYSPACE])
        keys = await cluster.keyspace(schema.KEYS_KEYSPACE, schema.KEYSPACES[schema.KEYS_KEYSPACE])
        return cls(keyspace, keys, cluster.shared, log, clock)

    async def close(self) -> None:
        """Nothing: the connections are the process's."""

    async def refs(self, ids: Sequence[int]) -> user_service_pb2.BatchGetUserRefsResponse:
        return user_service_pb2.BatchGetUserRefsResponse.FromString(await self.refs_serialized(ids))

    async def refs_serialized(self, ids: Sequence[int]) -> bytes:
        entries = await self._shared.users(ids)
        wires = [entry.data if entry is not None else None for entry in entries]
        missing = [user_id for user_id, wire in zip(ids, wires, strict=True) if wire is None]
        if missing:
            loaded = await self._accounts(missing)
            filled = {user_id: (account.version, wire_of(account)) for user_id, account in loaded.items()}
            await self._shared.fill_users(filled)
            wires = [
                filled[user_id][1] if wire is None and user_id in filled else wire
                for user_id, wire in zip(ids, wires, strict=True)
            ]
        return b"".join(filter(None, wires))

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
        steps = [
            *account_steps(new, NOTE_S),
            (schema.FIRST_SESSION, (schema.FIRST_STAMP, *session_values(session, b"", token_hash))),
        ]
        await run_to_completion(self._make([new], [steps]))

    async def import_accounts(self, new: Sequence[NewAccount]) -> list[int]:
        """See the port. More accounts than fit into one batch are all made, if this process lives and Cassandra answers again within
        MAX_HELD_S; else a repeat makes the rest once their claims are abandoned."""
        plan = ImportPlan(new)
        for tries_left in reversed(range(MAX_IMPORTS)):
            holders = await self._claims.username_holders(plan.names)
            missing = plan.missing(await self._logins(holders), holders)
            try:
                if missing:
                    await run_to_completion(self._make(missing, [account_steps(one, NOTE_S) for one in missing]))
            except errors.RoostError as error:
                # Somebody makes one of them now: perhaps the very same, which then is found.
                if error.reason != Reason.USERNAME_TAKEN or not tries_left:
                    raise
                await asyncio.sleep(IMPORT_AGAIN_S)
            else:
                break
        return plan.ids

    async def _make(self, new: Sequence[NewAccount], steps: Sequence[Sequence[Statement]]) -> None:
        """Claims the keys of these accounts, then writes each with its `steps` and its event."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + MAX_HELD_S
        await self._claims.hold(new)
        groups = ([*mine, *self.outbox.statements([one.created])] for one, mine in zip(new, steps, strict=True))
        first, *others = lots(groups)
        try:
            if clock() > give_up:
                raise errors.unavailable("others may have the name by now", reason=Reason.STORE_UNAVAILABLE)
            await self._keyspace.batch(first)
        except errors.RoostError as error:
            if error.reason == Reason.STORE_UNAVAILABLE:
                await self._claims.release(new)
            raise
        room = asyncio.Semaphore(BATCHES_AT_ONCE)

        async def store(lot: Sequence[Statement]) -> None:
            # A part of them is made, so the others are to be as well.
            while True:
                async with room:
                    try:
                        return await self._keyspace.batch(lot)
                    except errors.RoostError:
                        if clock() > give_up:
                            raise
                await asyncio.sleep(LOT_AGAIN_S)

        await asyncio.gather(*map(store, others))
        self.outbox.publish([one.created for one in new])

    async def replace(self, account: Account, records: Sequence[Record], *, end_sessions: bool = False) -> bool:
        user_id = account.user_id
        change = (account.core, account.state, account.version, user_id, account.version - 1)
        note = (NOTE_S, _ids(records), user_id)
        steps = (*change, *note, user_id, 0, user_id, 0) if end_sessions else (*change, *note)
        statement = schema.REPLACE_AND_END if end_sessions else schema.REPLACE
        return await run_to_completion(self._decide(user_id, records, statement, *steps, shared=account))

    async def set_credential(
        self,
        user_id: int,
        checked: Credential,
        credential: Credential,
        keep_session_id: int,
        records: Sequence[Record],
    ) -> bool:
        note = (NOTE_S, _ids(records), user_id)
        change = (int(credential.scheme), credential.hash, user_id, int(checked.scheme), checked.hash)
        ends = (user_id, keep_session_id, user_id, keep_session_id)
        return await run_to_completion(self._decide(user_id, records, schema.SET_CREDENTIAL, *change, *note, *ends))

    async def scan(self, after_id: int, limit: int) -> list[Account]:
        found: list[Account] = []
        # An id without an account is one whose batch is under way, or was given up.
        while len(found) < limit and (ids := await self._ids_after(after_id, limit - len(found))):
            found += await self.accounts(ids)
            after_id = ids[-1]
        return found

    async def _ids_after(self, after_id: int, limit: int) -> list[int]:
        # One further: another process's clock may be ahead.
        end = schema.bucket_of(first_id_at(int(self._clock() * 1000))) + 2
        for start in range(schema.bucket_of(after_id), end, BUCKETS_A_ROUND):
            buckets = range(start, min(start + BUCKETS_A_ROUND, end))
            rows = await self._keyspace.read_each(schema.IDS_AFTER, ((bucket, after_id, limit) for bucket in buckets))
            # Buckets ascend, and each gives its first: so what is cut off is above what stays.
            if ids := [row[0] for lot in rows for row in lot][:limit]:
                return ids
        return []

    async def open_session(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        return await run_to_completion(self._open_session(session, token_hash, checked))

    async def _open_session(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        user_id = session.user_id
        async with self._turns.hold(user_id):
            unchanged = (user_pb2.USER_STATE_ACTIVE, int(checked.scheme), checked.hash)
            values = (*session_values(session, b"", token_hash), *unchanged)
            applied, _ = await self._keyspace.execute_lwt(schema.OPEN_SESSION, *values)
            if applied:
                living = await self.sessions(user_id, session.used_ms, 0, MAX_LISTED)
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
        async with self._turns.hold(user_id):
            for _ in range(MAX_TRIES):
                rows = await self._keyspace.read(schema.SESSION, user_id, session_id)
                if not rows or rows[0][3] <= now_ms:
                    return Rotation.OVER
                *kept, _, user_agent = rows[0]
                found = Succession(*kept)
                following = found.present(presented, successor, now_ms)
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
        values = (user_id, session_id, NOTE_S, _ids(records), user_id)
        return await run_to_completion(self._decide(user_id, records, schema.END_SESSION, *values))

    async def secret(self, name: str, make: Callable[[], bytes]) -> bytes:
        rows = await self._keys.read(schema.SECRET, name)
        if not rows:
            # An earlier release's stays where it is, for its processes may start again until the last was replaced.
            earlier = await self._keyspace.read_serial(schema.SECRET, name)
            if earlier:
                _log.warning(
                    "a key of an earlier release lies beside the accounts: delete it once no such process runs"
                )
            await self._keys.execute_lwt(schema.KEEP_SECRET, name, earlier[0][0] if earlier else make())
            rows = await self._keys.read_serial(schema.SECRET, name)
        return bytes(rows[0][0])

    async def share(self, ids: Sequence[int]) -> None:
        """Puts the references of these users where every process finds them. UNAVAILABLE where Redis does not take them."""
        for user_id, account in (await self._accounts(ids)).items():
            if not await self._shared.put_user(user_id, account.version, wire_of(account)):
                raise errors.unavailable("references cannot be shared now")

    async def decided(self, records: Sequence[Record]) -> list[Record]:
        """Those of these events that are true: their change was made. A change half made is seen through first."""
        made: dict[int, Set[int]] = {}
        for user_id in {record.key for record in records}:
            rows = await self._keyspace.read_serial(schema.MADE, user_id)
            made[user_id] = set(rows[0][0] or ()) if rows else set()
        return [record for record in records if record.event_id in made[record.key]]

    async def _decide(
        self, user_id: int, records: Sequence[Record], statement: str, *values: Any, shared: Account | None = None
    ) -> bool:
        """One conditional write to a user's partition, which notes the events; whether it was applied. Then `shared` is put where every
        process reads it, and the events are published."""
        async with self._turns.hold(user_id):
            await self._keyspace.write_each(self.outbox.statements(records))
            try:
                applied, _ = await self._keyspace.execute_lwt(statement, *values)
            except errors.RoostError:
                # Unless the events show that it was, nobody knows: the caller may look, or try again.
                applied = bool(records) and len(await self.decided(records)) == len(records)
                if not applied:
                    raise
        if applied:
            if shared is not None:
                # Before anybody hears of it: whoever reads next finds it there, also a consumer whom the event makes read.
                await self._shared.put_user(user_id, shared.version, wire_of(shared))
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
        # Without a version it is not there: of a batch under way the note may be seen first.
        return {row[0]: login_of(row) for rows in found for row in rows if row[4] is not None}


def _ids(records: Sequence[Record]) -> set[int]:
    return {record.event_id for record in records}
