"""The statements of one keyspace: prepared once each, in a thread, and kept by their text.

Texts name tables alone, for the keyspace is a setting. It is put before them here, and not left to the request: a server takes a
statement without one for another keyspace's as soon as it has to prepare it again, and warns of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cassandra.query import BoundStatement, PreparedStatement

from services.platform.cassandra.driver import FETCH_SIZE
from services.platform.rpc import errors
from services.platform.rpc.context import current
from services.platform.rpc.reasons import Reason

# Texts are constants, so there are few. Beyond this somebody builds them from values.
MAX_STATEMENTS = 500
# How far the driver's timers may be from the loop's.
TIMER_TOLERANCE_S = 0.02
# Before a table's name in every statement that reads or changes rows; keywords are capitals here, tables are not.
_BEFORE_TABLE = re.compile(r"\b(FROM|INTO|UPDATE|TRUNCATE)\s+(?=[a-z])")


def qualified(cql: str, keyspace: str) -> str:
    """The statement with the keyspace before each table's name."""
    return _BEFORE_TABLE.sub(rf"\1 {keyspace}.", cql)


class PreparedStatementCache:
    """`prepare` makes one; it raises RoostError where the cluster cannot, and then the next who asks tries again."""

    def __init__(self, prepare: Callable[[str], Awaitable[PreparedStatement]]) -> None:
        self._prepare = prepare
        self._tasks: dict[str, asyncio.Task[PreparedStatement]] = {}

    async def bind(self, cql: str, values: Sequence[Any], deadline: float) -> BoundStatement:
        """The statement with values for each `?`: ValueError where they are more or fewer, TypeError where one does not fit.

        Where it is not prepared by then (the loop's seconds): DEADLINE_EXCEEDED if the call's own time is over, else UNAVAILABLE.
        """
        statement = await self.get(cql, deadline)
        if len(values) != len(statement.column_metadata):
            raise ValueError(f"{len(values)} values for {len(statement.column_metadata)} places: {cql}")
        return statement.bind(values)

    async def get(self, cql: str, deadline: float) -> PreparedStatement:
        """The prepared statement. RuntimeError beyond MAX_STATEMENTS; else as `bind`."""
        task = self._tasks.get(cql)
        if task is None:
            if len(self._tasks) >= MAX_STATEMENTS:
                raise RuntimeError(f"more than {MAX_STATEMENTS} statements: are values written into {cql!r}?")
            task = self._tasks[cql] = asyncio.create_task(self._make(cql))
            # A failure may find nobody waiting any more.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        if task.done():
            return task.result()
        try:
            async with asyncio.timeout_at(deadline):
                # Others wait for it too: who gives up must not end it.
                return await asyncio.shield(task)
        except TimeoutError as error:
            if asyncio.get_running_loop().time() >= current().deadline - TIMER_TOLERANCE_S:
                raise errors.deadline_exceeded("the store did not answer in time") from error
            raise errors.unavailable("the store cannot do it now", reason=Reason.STORE_UNAVAILABLE) from error

    def clear(self) -> None:
        """Forgets them."""
        self._tasks.clear()

    async def _make(self, cql: str) -> PreparedStatement:
        try:
            statement = await self._prepare(cql)
        except BaseException:
            self._tasks.pop(cql, None)
            raise
        statement.fetch_size = FETCH_SIZE
        return statement
