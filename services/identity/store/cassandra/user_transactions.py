"""Executes lightweight transactions (LWTs) on a user's partition, with their events.

This module inserts the events of an LWT into the outbox before the LWT, and the LWT stores the ids of the events in the
user's partition. So any process can decide later, with `CommittedChanges`, which events in the outbox belong to a
committed change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.identity.store.cassandra.committed_changes import CommittedChanges
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.detached import run_to_completion
from services.platform.events.log import EventLog, Record
from services.platform.rpc import errors

# The TTL in seconds of the stored ids of committed events. It equals the TTL of outbox rows, because the sweeper looks
# up the id of each unpublished event that it finds in the outbox.
EVENT_ID_TTL_S = 3 * 24 * 3600


class UserTransactions:
    """Executes the LWTs of one keyspace. `outbox` publishes their events, and must run as a worker of the service.

    `locks` makes the LWTs of this process on one user run one after the other. `clock` returns Unix seconds.
    """

    def __init__(self, keyspace: Keyspace, event_log: EventLog, clock: Callable[[], float]) -> None:
        self._validator = CommittedChanges(keyspace)
        self.outbox = Outbox(keyspace, event_log, clock, self._validator)
        self.locks = KeyedLocks()
        self._keyspace = keyspace

    async def execute(
        self,
        user_id: int,
        records: Sequence[Record],
        statement: str,
        *values: Any,
        before_publish: Callable[[], Awaitable[object]] | None = None,
    ) -> bool:
        """Executes an LWT on the user's partition that also stores `event_ids(records)`; returns whether it was
        applied.

        Before the LWT, inserts the events into the outbox. If the LWT was applied, calls `before_publish` and then
        publishes the events. Runs to its end even if the caller is cancelled. Raises UNAVAILABLE or
        DEADLINE_EXCEEDED if the outcome of the LWT is unknown, and RESOURCE_EXHAUSTED if too many LWTs of the user are
        queued.
        """
        return await run_to_completion(self._execute(user_id, records, statement, values, before_publish))

    async def _execute(
        self,
        user_id: int,
        records: Sequence[Record],
        statement: str,
        values: Sequence[Any],
        before_publish: Callable[[], Awaitable[object]] | None,
    ) -> bool:
        async with self.locks.hold(user_id):
            await self._keyspace.write_each(self.outbox.statements(records))
            try:
                applied, _ = await self._keyspace.execute_lwt(statement, *values)
            except errors.RoostError:
                # The outcome is unknown, unless the stored event ids prove that the LWT was applied.
                applied = bool(records) and len(await self._validator.publishable(records)) == len(records)
                if not applied:
                    raise
        if applied:
            if before_publish is not None:
                await before_publish()
            self.outbox.publish(records)
        return applied


def event_ids(records: Sequence[Record]) -> set[int]:
    """Returns the ids of the events, in the form in which an LWT adds them to the column `made` of the user's
    partition."""
    return {record.event_id for record in records}
