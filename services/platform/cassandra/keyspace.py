"""Cassandra: one driver a process, one keyspace a service, and nothing that blocks the loop.

The driver answers on its own thread; see `in_flight` for the way back. Statements are prepared once, in a thread, and kept by their
text, so texts are constants and values are bound.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Self

from cassandra import DriverException
from cassandra.cluster import Cluster as Driver
from cassandra.cluster import ResultSet, Session
from cassandra.query import BatchStatement, BatchType, PreparedStatement, SimpleStatement
from prometheus_client import Counter

from services.platform.cassandra.driver import (
    IDEMPOTENT,
    NON_IDEMPOTENT,
    SCHEMA,
    SCHEMA_AGREEMENT_S,
    SERIAL,
    STATEMENT_TIMEOUT_S,
    WriteTimestamps,
    connect,
    is_outcome_unknown,
    new_driver,
    to_roost_error,
    write_timestamp,
)
from services.platform.cassandra.migrations import migrate
from services.platform.cassandra.prepared_statements import TIMER_TOLERANCE_S, PreparedStatementCache, qualified
from services.platform.cassandra.request_limiter import RequestLimiter, StatementResult
from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.context import current
from services.platform.rpc.reasons import Reason

Row = tuple[Any, ...]
Statement = tuple[str, tuple[Any, ...]]
"""A statement's text and its values."""

# What one read may bring: lists that can be longer are read in pages, by LIMIT and a key to go on from.
MAX_ROWS = 10_000
# Sent in one go by `read_each` and `write_each`. Sending takes about 0.1 ms of the loop each, and others want their turn.
MAX_CONCURRENT_STATEMENTS = 64
# A write whose outcome is unknown is sent this often in all, within the caller's deadline.
MAX_WRITE_ATTEMPTS = 3
WRITE_RETRY_DELAY_S = 0.05
# The longest that a write without a deadline (a consumer's) is tried.
WRITE_BUDGET_S = 6.0
# A batch is written thrice, and one node coordinates it: many rows belong into many writes.
MAX_BATCH = 100

_write_retries = Counter(
    "roost_cassandra_write_retries", "Writes sent again, because the outcome of the first was unknown."
)


class Cassandra:
    """The connections of one process. What it runs is bounded in number and time; errors come out as RoostError."""

    def __init__(self, settings: Settings, driver: Driver, session: Session, timestamps: WriteTimestamps) -> None:
        self.settings = settings
        self.timestamps = timestamps
        self._loop = asyncio.get_running_loop()
        self._driver = driver
        self._session = session
        self._limiter = RequestLimiter()

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Connects. UNAVAILABLE where no node answers within seconds, FAILED_PRECONDITION where the settings do not fit the cluster."""
        timestamps = WriteTimestamps()
        driver = new_driver(settings, timestamps)
        return cls(settings, driver, await asyncio.to_thread(connect, driver, settings), timestamps)

    async def close(self) -> None:
        """Refuses what comes and what is still out, then closes the connections. A second call does nothing."""
        self._limiter.close()
        await asyncio.to_thread(self._driver.shutdown)

    async def prepare(self, cql: str) -> PreparedStatement:
        """Prepares a statement whose tables are named with their keyspace, within STATEMENT_TIMEOUT_S. Errors as those of a read."""
        try:
            return await asyncio.to_thread(self._session.prepare, cql)
        except Exception as error:
            raise to_roost_error(error, False) from error

    async def change_schema(self, cql: str, keyspace: str | None = None) -> None:
        """Runs one statement that changes the schema; returns when all nodes agree on it. UNAVAILABLE where they do not."""

        def run() -> bool:
            self._session.execute(SimpleStatement(cql, keyspace=keyspace), execution_profile=SCHEMA)
            return bool(self._driver.control_connection.wait_for_schema_agreement(wait_time=SCHEMA_AGREEMENT_S))

        try:
            agreed = await asyncio.to_thread(run)
        except Exception as error:
            raise to_roost_error(error, False) from error
        if not agreed:
            raise errors.unavailable("the nodes do not agree on the schema yet", reason=Reason.STORE_UNAVAILABLE)

    async def learn_replicas(self, keyspace: str) -> None:
        """Reads how a keyspace is replicated: from now on its statements go to the nodes that have the rows. Errors as those of a read."""
        try:
            # All nodes agree already, or know it for long: no waiting for that.
            await asyncio.to_thread(self._driver.refresh_keyspace_metadata, keyspace, max_schema_agreement_wait=0)
        except DriverException as error:
            raise errors.unavailable("the store cannot do it now", reason=Reason.STORE_UNAVAILABLE) from error
        except Exception as error:
            raise to_roost_error(error, False) from error

    def deadline(self, at_most_s: float = STATEMENT_TIMEOUT_S) -> float:
        """When what begins now must have ended, by the loop's clock: the call's deadline, or sooner."""
        return min(current().deadline, self._loop.time() + at_most_s)

    def time_left(self, deadline: float) -> float:
        """Seconds to it, above 0; DEADLINE_EXCEEDED once it is past."""
        left = deadline - self._loop.time()
        if left <= 0:
            raise errors.deadline_exceeded("no time was left to ask the store")
        return left

    def is_past(self, deadline: float) -> bool:
        """Whether it has come, by the loop's clock."""
        return self._loop.time() >= deadline

    async def run(
        self, statements: Sequence[Any], profile: Any, deadline: float, page: bytes | None = None, timestamp: int = 0
    ) -> list[StatementResult]:
        """Runs statements side by side; the answers, errors included, in their order. `timestamp` 0: fresh timestamps."""

        def sender(statement: Any) -> Callable[[], Any]:
            def send() -> Any:
                left = min(self.time_left(deadline), STATEMENT_TIMEOUT_S)
                token = write_timestamp.set(timestamp)
                try:
                    return self._session.execute_async(
                        statement, timeout=left, execution_profile=profile, paging_state=page
                    )
                finally:
                    write_timestamp.reset(token)

            return send

        return await self._limiter.run([sender(statement) for statement in statements], deadline)

    def error_of(self, failed: StatementResult, may_be_stored: bool = False) -> Exception:
        """The error for the caller, who is told of its own deadline only where that is what ended it."""
        assert failed.error is not None
        # The driver's timers run by another clock.
        return to_roost_error(failed.error, self.is_past(current().deadline - TIMER_TOLERANCE_S), may_be_stored)


class Keyspace:
    """One service's keyspace. Every method: UNAVAILABLE where the cluster cannot serve it, DEADLINE_EXCEEDED where the call's time ran
    out (after a write the outcome is unknown then), RESOURCE_EXHAUSTED where too much waits in this process.

    Values are bound to `?` in their order. Any other error is a defect of the statement, and comes out as the driver's.
    """

    def __init__(self, cassandra: Cassandra, name: str) -> None:
        self.name = name
        self.cassandra = cassandra
        self._statements = PreparedStatementCache(lambda cql: cassandra.prepare(qualified(cql, name)))

    @classmethod
    def of(cls, cassandra: Cassandra, service: str) -> Self:
        """A service's keyspace, as it stands: it may not exist yet."""
        return cls(cassandra, f"{cassandra.settings.keyspaces or cassandra.settings.namespace}_{service}")

    @classmethod
    async def open(cls, cassandra: Cassandra, service: str, migrations: Sequence[str]) -> Self:
        """A service's keyspace, made and brought up to date where the settings allow it.

        FAILED_PRECONDITION where a newer release wrote it, or where it is behind and `migrate_at_start` is off.
        """
        keyspace = cls.of(cassandra, service)
        await migrate(keyspace, migrations)
        await cassandra.learn_replicas(keyspace.name)
        return keyspace

    async def close(self) -> None:
        """Forgets its statements. The connections are the process's."""
        self._statements.clear()

    async def read(self, cql: str, *values: Any) -> list[Row]:
        """All rows, page by page, at LOCAL_QUORUM. RuntimeError beyond MAX_ROWS: no row is ever left out in silence."""
        return await self._read(await self._bind(cql, values), IDEMPOTENT)

    async def read_serial(self, cql: str, *values: Any) -> list[Row]:
        """As `read`, and a conditional write that was left half done is seen through first: for after an unknown `execute_lwt`."""
        return await self._read(await self._bind(cql, values), SERIAL)

    async def read_each(self, cql: str, keys: Iterable[tuple[Any, ...]]) -> list[list[Row]]:
        """The rows of each key, in the keys' order, read MAX_CONCURRENT_STATEMENTS at a time; one failure fails the lot."""
        statement = await self._statements.get(cql, self.cassandra.deadline())
        found = []
        for chunk in _chunks(statement.bind(key) for key in keys):
            deadline = self.cassandra.deadline()
            for bound, result in zip(chunk, await self.cassandra.run(chunk, IDEMPOTENT, deadline), strict=True):
                found.append(await self._pages(bound, result, IDEMPOTENT, deadline))
        return found

    async def write(self, cql: str, *values: Any) -> None:
        """An upsert or a deletion that is harmless to repeat. Where the outcome is unknown it is sent again, as the same write with
        the same timestamp, while there is time; then UNAVAILABLE, reason OUTCOME_UNKNOWN."""
        await self._write([await self._bind(cql, values)])

    async def write_each(self, statements: Iterable[Statement]) -> None:
        """Each as `write`, MAX_CONCURRENT_STATEMENTS at a time. After an error any of them may be stored: write all again."""
        for chunk in _chunks([await self._bind(cql, values) for cql, values in statements]):
            await self._write(chunk)

    async def batch(self, statements: Iterable[Statement]) -> None:
        """One logged batch (at most MAX_BATCH steps, else ValueError), sent again as `write` is: in the end all is stored, or nothing.

        Others may see a part of it first, and after OUTCOME_UNKNOWN it may come to be minutes later.
        """
        await self._batch(statements, BatchType.LOGGED)

    async def unlogged_batch(self, statements: Iterable[Statement]) -> None:
        """As `write_each`, in one request (at most MAX_BATCH steps, else ValueError) and at a third of a logged batch's cost.

        For what somebody else will write in whole where a part of it is missing, and for rows of one partition, which come to be at once.
        """
        await self._batch(statements, BatchType.UNLOGGED)

    async def execute_lwt(self, cql: str, *values: Any) -> tuple[bool, Row]:
        """A conditional write (… IF …): whether it was applied, and the columns that spoke against it where it was not.

        Never sent twice. UNAVAILABLE with reason OUTCOME_UNKNOWN, or DEADLINE_EXCEEDED: look with `read_serial` what came of it.
        """
        bound = await self._bind(cql, values)
        (result,) = await self.cassandra.run([bound], NON_IDEMPOTENT, self.cassandra.deadline())
        if result.error is not None:
            raise self.cassandra.error_of(result, may_be_stored=is_outcome_unknown(result))
        applied, *current_values = (result.rows or [(False,)])[0]
        return bool(applied), () if applied else tuple(current_values)

    async def _read(self, bound: Any, profile: Any) -> list[Row]:
        (result,) = await self.cassandra.run([bound], profile, deadline := self.cassandra.deadline())
        return await self._pages(bound, result, profile, deadline)

    async def _pages(self, bound: Any, result: StatementResult, profile: Any, deadline: float) -> list[Row]:
        rows: list[Row] = []
        while True:
            if result.error is not None:
                raise self.cassandra.error_of(result)
            rows = rows + result.rows if rows and result.rows else result.rows or rows
            if not result.future.has_more_pages:
                return rows
            if len(rows) >= MAX_ROWS:
                raise RuntimeError(
                    f"more than {MAX_ROWS} rows: read them in pages ({bound.prepared_statement.query_string})"
                )
            (result,) = await self.cassandra.run([bound], profile, deadline, ResultSet(result.future, []).paging_state)

    async def _batch(self, statements: Iterable[Statement], kind: Any) -> None:
        bound = [await self._bind(cql, values) for cql, values in statements]
        if len(bound) > MAX_BATCH:
            raise ValueError(f"{len(bound)} steps in a batch, at most {MAX_BATCH}")
        if len(bound) <= 1:
            await self._write(bound)
            return
        batch = BatchStatement(kind)
        for statement in bound:
            batch.add(statement)
        await self._write([batch])

    async def _write(self, statements: Sequence[Any]) -> None:
        timestamp = self.cassandra.timestamps.next_unique()
        write_deadline = self.cassandra.deadline(WRITE_BUDGET_S)
        for attempt in range(1, MAX_WRITE_ATTEMPTS + 1):
            results = await self.cassandra.run(statements, IDEMPOTENT, write_deadline, timestamp=timestamp)
            failed = [(s, a) for s, a in zip(statements, results, strict=True) if a.error is not None]
            if not failed:
                return
            definite = next((result for _, result in failed if not is_outcome_unknown(result)), None)
            pause_s = WRITE_RETRY_DELAY_S * 2 ** (attempt - 1)
            if definite or attempt == MAX_WRITE_ATTEMPTS or self.cassandra.is_past(write_deadline - pause_s):
                # Whatever the last try came to, an earlier one may have been stored.
                raise self.cassandra.error_of(definite or failed[0][1], may_be_stored=definite is None or attempt > 1)
            await asyncio.sleep(pause_s)
            statements = [statement for statement, _ in failed]
            _write_retries.inc(len(statements))

    async def _bind(self, cql: str, values: Sequence[Any]) -> Any:
        return await self._statements.bind(cql, values, self.cassandra.deadline())


def _chunks(statements: Iterable[Any]) -> Iterable[list[Any]]:
    iterator = iter(statements)
    while chunk := list(islice(iterator, MAX_CONCURRENT_STATEMENTS)):
        yield chunk
