"""Stores sessions in Cassandra, in the partition of their user."""

from __future__ import annotations

from collections.abc import Sequence

from roost.identity.v1 import user_pb2

from services.identity.password import Credential
from services.identity.store import MAX_SESSIONS, Rotation, Session
from services.identity.store.cassandra import schema
from services.identity.store.cassandra.accounts.rows import session_values
from services.identity.store.cassandra.user_transactions import EVENT_ID_TTL_S, UserTransactions, event_ids
from services.identity.store.rotation import RotationState
from services.platform.cassandra.keyspace import Keyspace
from services.platform.detached import run_to_completion
from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Maximum number of attempts of the LWT of one refresh; after that the call fails with UNAVAILABLE (CONTENDED). An
# attempt fails only if another process refreshed the same session at the same time.
MAX_ATTEMPTS = 10
# Maximum number of sessions that a log-in reads to find those above MAX_SESSIONS. After concurrent log-ins a user may
# have a few sessions too many; the next log-in ends these sessions.
MAX_SESSIONS_READ = 2 * MAX_SESSIONS
_MAX_ID = 2**63 - 1


class CassandraSessionStore:
    """Implements SessionStore on Cassandra."""

    def __init__(self, keyspace: Keyspace, transactions: UserTransactions) -> None:
        self._keyspace = keyspace
        self._transactions = transactions

    async def open(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        return await run_to_completion(self._open(session, token_hash, checked))

    async def _open(self, session: Session, token_hash: bytes, checked: Credential) -> bool:
        user_id = session.user_id
        async with self._transactions.locks.hold(user_id):
            unchanged = (user_pb2.USER_STATE_ACTIVE, int(checked.scheme), checked.hash)
            values = (*session_values(session, b"", token_hash), *unchanged)
            applied, _ = await self._keyspace.execute_lwt(schema.OPEN_SESSION, *values)
            if applied:
                living = await self.list_live(user_id, session.used_ms, 0, MAX_SESSIONS_READ)
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
        async with self._transactions.locks.hold(user_id):
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
        raise errors.unavailable(
            "the session is being refreshed by other requests: retry later", reason=Reason.CONTENDED
        )

    async def list_live(self, user_id: int, now_ms: int, before_id: int, limit: int) -> list[Session]:
        found: list[Session] = []
        before_id = before_id or _MAX_ID
        while len(found) < limit:
            rows = await self._keyspace.read(schema.SESSIONS, user_id, before_id, limit)
            found += [Session(*row) for row in rows if row[3] > now_ms]
            if len(rows) < limit:
                break
            before_id = rows[-1][0]
        return found[:limit]

    async def end(self, session_id: int, user_id: int, records: Sequence[Record]) -> bool:
        values = (user_id, session_id, EVENT_ID_TTL_S, event_ids(records), user_id)
        return await self._transactions.execute(user_id, records, schema.END_SESSION, *values)
