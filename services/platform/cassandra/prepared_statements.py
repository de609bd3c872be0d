"""Caches the prepared statements of one keyspace by their CQL text.

CQL texts name tables without a keyspace, because the name of the keyspace is a setting. `qualified` inserts that name
into the text. The request also has a field for the keyspace, but a server that must prepare an unqualified statement
again may prepare it in another keyspace, and logs warnings.
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

# Maximum number of cached statements. Beyond it `get` raises RuntimeError: CQL texts are constants, so there are few,
# and more of them mean that a caller formats values into the text.
MAX_STATEMENTS = 500
# Seconds by which the driver's timers may differ from the event loop's clock.
TIMER_TOLERANCE_S = 0.02
# Matches the position before each table name. Keywords are written in capitals and table names in lower case.
_BEFORE_TABLE = re.compile(r"\b(FROM|INTO|UPDATE|TRUNCATE)\s+(?=[a-z])")


def qualified(cql: str, keyspace: str) -> str:
    """Returns the statement with the keyspace inserted before each table name."""
    return _BEFORE_TABLE.sub(rf"\1 {keyspace}.", cql)


class PreparedStatementCache:
    """Prepares each CQL text once, by `prepare`. A failed preparation is not cached: the next caller prepares again."""

    def __init__(self, prepare: Callable[[str], Awaitable[PreparedStatement]]) -> None:
        self._prepare = prepare
        self._tasks: dict[str, asyncio.Task[PreparedStatement]] = {}

    async def bind(self, cql: str, values: Sequence[Any], deadline: float) -> BoundStatement:
        """Returns the statement with a value bound to each `?`.

        Raises ValueError if the number of values differs from the number of placeholders, TypeError if a value has the
        wrong type. If the statement is not prepared by `deadline` (event loop time), raises DEADLINE_EXCEEDED if the
        call's own deadline passed, else UNAVAILABLE.
        """
        statement = await self.get(cql, deadline)
        if len(values) != len(statement.column_metadata):
            raise ValueError(f"{len(values)} values for {len(statement.column_metadata)} placeholders: {cql}")
        return statement.bind(values)

    async def get(self, cql: str, deadline: float) -> PreparedStatement:
        """Returns the prepared statement. Raises RuntimeError for more than MAX_STATEMENTS texts. If the statement is
        not prepared by `deadline`, raises DEADLINE_EXCEEDED if the call's own deadline passed, else UNAVAILABLE."""
        task = self._tasks.get(cql)
        if task is None:
            if len(self._tasks) >= MAX_STATEMENTS:
                raise RuntimeError(
                    f"more than {MAX_STATEMENTS} statements: bind values with ? instead of writing them into {cql!r}"
                )
            task = self._tasks[cql] = asyncio.create_task(self._make(cql))
            # Reads the exception, so that asyncio does not log it as never retrieved if every waiting task was
            # cancelled.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        if task.done():
            return task.result()
        try:
            async with asyncio.timeout_at(deadline):
                # Other tasks may wait for the same preparation, so a timeout here must not cancel it.
                return await asyncio.shield(task)
        except TimeoutError as error:
            if asyncio.get_running_loop().time() >= current().deadline - TIMER_TOLERANCE_S:
                raise errors.deadline_exceeded("the store did not answer in time") from error
            raise errors.unavailable(
                "the store is unavailable: retry later", reason=Reason.STORE_UNAVAILABLE
            ) from error

    def clear(self) -> None:
        """Drops all cached statements."""
        self._tasks.clear()

    async def _make(self, cql: str) -> PreparedStatement:
        try:
            statement = await self._prepare(cql)
        except BaseException:
            self._tasks.pop(cql, None)
            raise
        statement.fetch_size = FETCH_SIZE
        return statement
