"""Decides which events in the outbox belong to a committed change."""

from __future__ import annotations

from collections.abc import Sequence, Set

from services.identity.store.cassandra import schema
from services.platform.cassandra.keyspace import Keyspace
from services.platform.events.log import Record


class CommittedChanges:
    """The EventValidator of the identity store. An event is valid if the user's partition contains the id of the event,
    because the LWT that made the change stored the id there."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace

    async def publishable(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns the events whose change was committed. Reads each user's partition serially, which first completes an
        LWT that is in progress there."""
        made: dict[int, Set[int]] = {}
        for user_id in {record.key for record in records}:
            rows = await self._keyspace.read_serial(schema.MADE, user_id)
            made[user_id] = set(rows[0][0] or ()) if rows else set()
        return [record for record in records if record.event_id in made[record.key]]
