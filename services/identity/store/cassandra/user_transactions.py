"""Executes lightweight transactions (LWTs) on a user's partition, with their events.

The events of an LWT are inserted into the outbox before it, and the LWT stores their ids in the user's partition. So any process can
decide later, with `CommittedChanges`, which events in the outbox belong to a committed change.
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

# Seconds for which ids of committed events are stored: as long as outbox rows exist, because these are checked against them.
EVENT_ID_TTL_S = 3 * 24 * 3600


class UserTransactions:
    """LWTs of one keyspace. `outbox` publishes their events, and must run as a worker of the service.

    `locks` serialise the LWTs of this process on each user id.
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
        """Executes an LWT on the user's partition that also stores `event_ids(records)`; returns whether it was applied.

        Before the LWT, inserts the events into the outbox. If the LWT was applied, calls `before_publish` and then
        publishes the events. Continues if the caller is cancelled.
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
    """Returns the ids of the events, which an LWT stores in the column `made`."""
    return {record.event_id for record in records}
