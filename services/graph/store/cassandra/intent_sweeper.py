"""Finishes what a process began and did not live to finish: changes of pairs whose lists, events or marks are still owed.

Every change is noted, by the minute, before it is made. A minute is looked through once it is over, by whichever process comes first.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from services.graph.store.cassandra import schema
from services.graph.store.cassandra.edge_writer import EdgeWriter
from services.graph.store.cassandra.intent_log import LIVE_S, SHARDS
from services.platform.cassandra.keyspace import Keyspace, Row

# Between two rounds, on average.
EVERY_S = 30.0
# A minute is over for certain after this: writers have seconds, and clocks differ by less.
SETTLED_AFTER_S = 60
# Where nobody swept before: what the first processes of a mesh did before their first round.
FIRST_LOOK_MINUTES = 60
# Notes live no longer.
MAX_LOOK_MINUTES = LIVE_S // 60
# Partitions read at once. Nearly all are empty but the newest.
PLACES_A_READ = 256
PAGE_ROWS = 1_000
_SWEPT_TO = "swept_to_minute"

_log = structlog.get_logger(__name__)


class Sweeper:
    """A worker. Any number may run at once: they finish the same things to the same effect. `clock` gives unix seconds."""

    def __init__(self, keyspace: Keyspace, ties: EdgeWriter, clock: Callable[[], float]) -> None:
        self._keyspace = keyspace
        self._ties = ties
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins with what an earlier life left."""
        self._task = asyncio.create_task(self._run(), name="graph-sweeper")

    async def stop(self) -> None:
        """Ends at once: whatever is not finished is found again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def sweep(self) -> int:
        """Looks through the minutes that are over and that nobody looked through; how many notes without a mark lay there."""
        last = (int(self._clock()) - SETTLED_AFTER_S) // 60 - 1
        rows = await self._keyspace.read(schema.SETTING, _SWEPT_TO)
        swept_to = rows[0][0] if rows else last - FIRST_LOOK_MINUTES
        first = max(swept_to + 1, last - MAX_LOOK_MINUTES)
        places = [(minute, shard) for minute in range(first, last + 1) for shard in range(SHARDS)]
        noted = 0
        for start in range(0, len(places), PLACES_A_READ):
            lot = places[start : start + PLACES_A_READ]
            pages = await self._keyspace.read_each(schema.NOTES, [(*place, 0, 0, 0, PAGE_ROWS) for place in lot])
            for place, page in zip(lot, pages, strict=True):
                noted += await self._finish(place, page)
        if first <= last:
            await self._keyspace.write(schema.SWEPT, _SWEPT_TO, last, last)
        return noted

    async def _finish(self, place: tuple[int, int], page: list[Row]) -> int:
        found = 0
        while page:
            owed = [(low, high) for low, high, _, done in page if not done]
            for low, high in owed:
                # Reads the pair, and finishes it where something is owed.
                await self._ties.settled(low, high)
            found += len(owed)
            if len(page) < PAGE_ROWS:
                break
            page = await self._keyspace.read(schema.NOTES, *place, *page[-1][:3], PAGE_ROWS)
        return found

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception as error:
                _log.warning("sweep failed, will go on", error=repr(error))
            # Processes that began together do not go on together: one then finds what the other has done.
            await asyncio.sleep(EVERY_S * (0.5 + random.random()))  # noqa: S311
