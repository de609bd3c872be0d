"""Decides which of the events that a sweeper finds may be published."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.relationship import pair_key_of
from services.platform.events.log import Record


class FinishedPairs:
    """The EventValidator of the graph store. Every event that a sweeper finds is valid, but the other follow-up writes
    of its change (such as the lists of the two users) may be missing.

    `edge_writer` returns the EdgeWriter of the keyspace. This object calls `edge_writer` at the first sweep and not
    earlier, because the EdgeWriter is created after the outbox, and the outbox after this object.
    """

    def __init__(self, edge_writer: Callable[[], EdgeWriter]) -> None:
        self._edge_writer = edge_writer

    async def publishable(self, records: Sequence[Record]) -> Sequence[Record]:
        """Runs the pending follow-up writes of each pair of users that the events name, then returns all events.

        An event and these writes are in one unlogged batch, of which Cassandra may have applied only a part. Raises
        UNAVAILABLE, DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED if the store cannot answer.
        """
        for low, high in sorted({key for record in records if (key := pair_key_of(record))}):
            await self._edge_writer().read_finished(low, high)
        return records
