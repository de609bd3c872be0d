"""Decides which of the events that a sweeper finds may be published."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.relationship import pair_key_of
from services.platform.events.log import Record


class FinishedPairs:
    """The EventValidator of the graph store: every event found is valid, but the lists of its pair may be missing.

    `edge_writer` returns the writer of the keyspace. It is called at the first sweep, and not when this object is
    created, because the writer itself needs the outbox.
    """

    def __init__(self, edge_writer: Callable[[], EdgeWriter]) -> None:
        self._edge_writer = edge_writer

    async def publishable(self, records: Sequence[Record]) -> Sequence[Record]:
        """Returns all of the events, after finishing the changes of their pairs: the other statements of their batch
        may not have been applied."""
        for low, high in sorted({key for record in records if (key := pair_key_of(record))}):
            await self._edge_writer().read_finished(low, high)
        return records
