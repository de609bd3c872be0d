"""Asynchronous Cassandra client: one driver per process, one keyspace per service.

The driver completes requests on its own thread; `request_limiter` passes the results to the event loop. Each distinct
CQL text is prepared once and cached, so texts must be constants and values must be bound.
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
"""CQL text and the values for its placeholders."""

# Maximum number of rows of one read. Beyond it the read raises RuntimeError: callers must read longer lists in pages,
# by LIMIT and the key of the last row.
MAX_ROWS = 10_000
# Maximum number of statements that `read_each` and `write_each` send at once; the next ones are sent when these have
# completed. Sending a statement occupies the event loop for about 0.1 ms, so a larger number would delay other tasks.
MAX_CONCURRENT_STATEMENTS = 64
# Maximum number of attempts of a write whose outcome is unknown, including the first, within the caller's deadline. The
# delay in seconds before a retry starts at WRITE_RETRY_DELAY_S and doubles with each retry.
MAX_WRITE_ATTEMPTS = 3
WRITE_RETRY_DELAY_S = 0.05
# Maximum number of seconds of a write with all its retries, if the current call has no earlier deadline. It is needed
# for consumers, whose writes have no deadline.
WRITE_BUDGET_S = 6.0
# Maximum number of statements in one batch. Cassandra writes a logged batch three times, and one node coordinates the
# whole batch, so callers split more statements into several batches.
MAX_BATCH = 100

_write_retries = Counter(
    "roost_cassandra_write_retries", "Writes sent again, because the outcome of an earlier attempt was unknown."
)


class Cassandra:
    """The connections of one process to Cassandra. Limits the number and the duration of requests, and raises driver
    errors as RoostError."""

    def __init__(self, settings: Settings, driver: Driver, session: Session, timestamps: WriteTimestamps) -> None:
        self.settings = settings
        self.timestamps = timestamps
        self._loop = asyncio.get_running_loop()
        self._driver = driver
        self._session = session
        self._limiter = RequestLimiter()

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Connects to the cluster. Raises UNAVAILABLE if no node answers within seconds, FAILED_PRECONDITION if the
        credentials or the datacenter in the settings are wrong."""
        timestamps = WriteTimestamps()
        driver = new_driver(settings, timestamps)
        return cls(settings, driver, await asyncio.to_thread(connect, driver, settings), timestamps)

    @property
    def in_flight(self) -> int:
        """The number of requests that have been sent and have no result yet."""
        return self._limiter.in_flight

    async def close(self) -> None:
        """Fails pending and later requests with UNAVAILABLE, then closes the connections. A second call has no
        effect."""
        self._limiter.close()
        await asyncio.to_thread(self._driver.shutdown)

    async def prepare(self, cql: str) -> PreparedStatement:
        """Prepares a statement that names its tables with their keyspace. Raises UNAVAILABLE if Cassandra does not
        answer within STATEMENT_TIMEOUT_S seconds; an invalid statement raises the driver's error unchanged."""
        try:
            return await asyncio.to_thread(self._session.prepare, cql)
        except Exception as error:
            raise to_roost_error(error, False) from error

    async def change_schema(self, cql: str, keyspace: str | None = None) -> None:
        """Runs one schema statement and waits until all nodes agree on the schema. Raises UNAVAILABLE if the nodes do
        not agree within SCHEMA_AGREEMENT_S seconds."""

        def run() -> bool:
            self._session.execute(SimpleStatement(cql, keyspace=keyspace), execution_profile=SCHEMA)
            return bool(self._driver.control_connection.wait_for_schema_agreement(wait_time=SCHEMA_AGREEMENT_S))

        try:
            agreed = await asyncio.to_thread(run)
        except Exception as error:
            raise to_roost_error(error, False) from error
        if not agreed:
            raise errors.unavailable(
                "the Cassandra nodes do not agree on the schema yet: retry later", reason=Reason.STORE_UNAVAILABLE
            )

    async def learn_replicas(self, keyspace: str) -> None:
        """Loads the replication settings of a keyspace, which token-aware routing needs. Raises UNAVAILABLE if
        Cassandra does not return them."""
        try:
            # All nodes agree on the schema of the keyspace already, so this call need not wait for agreement.
            await asyncio.to_thread(self._driver.refresh_keyspace_metadata, keyspace, max_schema_agreement_wait=0)
        except DriverException as error:
            raise errors.unavailable(
                "the store is unavailable: retry later", reason=Reason.STORE_UNAVAILABLE
            ) from error
        except Exception as error:
            raise to_roost_error(error, False) from error

    def deadline(self, at_most_s: float | None = None) -> float:
        """Returns the earlier of two times, in seconds of the event loop's clock: the deadline of the current call, and
        `at_most_s` seconds from now (None: STATEMENT_TIMEOUT_S seconds)."""
        limit_s = STATEMENT_TIMEOUT_S if at_most_s is None else at_most_s
        return min(current().deadline, self._loop.time() + limit_s)

    def time_left(self, deadline: float) -> float:
        """Returns the number of seconds until `deadline` (event loop time), which is above 0. Raises DEADLINE_EXCEEDED
        if the deadline has passed."""
        left = deadline - self._loop.time()
        if left <= 0:
            raise errors.deadline_exceeded("the deadline passed before the store was contacted")
        return left

    def is_past(self, deadline: float) -> bool:
        """Returns True if the event loop's clock has reached `deadline`."""
        return self._loop.time() >= deadline

    async def run(
        self, statements: Sequence[Any], profile: Any, deadline: float, page: bytes | None = None, timestamp: int = 0
    ) -> list[StatementResult]:
        """Runs statements concurrently and returns their results in order; a failed statement has its error in its
        result.

        `profile` is an execution profile of `cassandra/driver.py`. `page` is the paging state of the page to read, None
        for the first page. `timestamp` is the write timestamp in microseconds; 0 generates one for each statement.
        Raises DEADLINE_EXCEEDED if no request slot is free by the deadline, RESOURCE_EXHAUSTED if too many requests are
        queued, and UNAVAILABLE after `close`.
        """

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
        """Maps a failed result to the error for the caller: DEADLINE_EXCEEDED only if the call's own deadline
        passed."""
        assert failed.error is not None
        # The tolerance is needed because the driver's timers use another clock than the event loop.
        return to_roost_error(failed.error, self.is_past(current().deadline - TIMER_TOLERANCE_S), may_be_stored)


class Keyspace:
    """One service's keyspace.

    Every method raises UNAVAILABLE if the cluster cannot serve it, DEADLINE_EXCEEDED if the call's deadline passed (a
    write may be stored then), and RESOURCE_EXHAUSTED if too many requests are queued in this process. Values are bound
    to `?` in order. An invalid statement raises the driver's error unchanged.
    """

    def __init__(self, cassandra: Cassandra, name: str) -> None:
        self.name = name
        self.cassandra = cassandra
        self._statements = PreparedStatementCache(lambda cql: cassandra.prepare(qualified(cql, name)))

    @classmethod
    def of(cls, cassandra: Cassandra, service: str) -> Self:
        """Returns a service's keyspace without creating or migrating it."""
        return cls(cassandra, f"{cassandra.settings.keyspace_prefix or cassandra.settings.namespace}_{service}")

    @classmethod
    async def open(cls, cassandra: Cassandra, service: str, migrations: Sequence[str]) -> Self:
        """Opens a service's keyspace; creates and migrates the keyspace if the setting `migrate_at_start` is on.

        Raises FAILED_PRECONDITION if a newer release migrated the keyspace, if an applied migration differs from the
        one in `migrations`, or if migrations are missing and `migrate_at_start` is off.
        """
        keyspace = cls.of(cassandra, service)
        await migrate(keyspace, migrations)
        await cassandra.learn_replicas(keyspace.name)
        return keyspace

    async def close(self) -> None:
        """Drops the cached prepared statements. The connections stay open until `Cassandra.close`."""
        self._statements.clear()

    async def read(self, cql: str, *values: Any) -> list[Row]:
        """Returns all rows, read page by page at LOCAL_QUORUM. Raises RuntimeError for more than MAX_ROWS rows, instead
        of truncating them."""
        return await self._read(await self._bind(cql, values), IDEMPOTENT)

    async def read_serial(self, cql: str, *values: Any) -> list[Row]:
        """Returns all rows, as `read` does, but reads at LOCAL_SERIAL, which first completes pending conditional writes
        of the partition. Use this method after an `execute_lwt` whose outcome is unknown. Raises RuntimeError for more
        than MAX_ROWS rows."""
        return await self._read(await self._bind(cql, values), SERIAL)

    async def read_each(self, cql: str, keys: Iterable[tuple[Any, ...]]) -> list[list[Row]]:
        """Returns one list of rows for each key, in the order of `keys`; runs MAX_CONCURRENT_STATEMENTS reads at a
        time. Raises the error of the first read that fails, and then returns no rows at all."""
        statement = await self._statements.get(cql, self.cassandra.deadline())
        found = []
        for chunk in _chunks(statement.bind(key) for key in keys):
            deadline = self.cassandra.deadline()
            for bound, result in zip(chunk, await self.cassandra.run(chunk, IDEMPOTENT, deadline), strict=True):
                found.append(await self._pages(bound, result, IDEMPOTENT, deadline))
        return found

    async def write(self, cql: str, *values: Any) -> None:
        """Executes an idempotent upsert or deletion.

        If the outcome is unknown, retries it with the same timestamp up to MAX_WRITE_ATTEMPTS times within the
        deadline; then raises UNAVAILABLE with reason OUTCOME_UNKNOWN.
        """
        await self._write([await self._bind(cql, values)])

    async def write_each(self, statements: Iterable[Statement]) -> None:
        """Executes idempotent upserts and deletions, MAX_CONCURRENT_STATEMENTS at a time, with the retries of `write`.

        Raises UNAVAILABLE or DEADLINE_EXCEEDED if a statement fails. Then some of the statements may be stored: the
        caller should execute all of them again.
        """
        for chunk in _chunks([await self._bind(cql, values) for cql, values in statements]):
            await self._write(chunk)

    async def batch(self, statements: Iterable[Statement]) -> None:
        """Executes one logged batch, with the retries of `write`: eventually all statements are applied, or none.

        Readers may see a part of the batch first. If the outcome is unknown, raises UNAVAILABLE with reason
        OUTCOME_UNKNOWN; Cassandra may then still apply the batch minutes later. Raises ValueError for more than
        MAX_BATCH statements.
        """
        await self._batch(statements, BatchType.LOGGED)

    async def unlogged_batch(self, statements: Iterable[Statement]) -> None:
        """Executes the statements in one request, with the retries of `write`, at a third of the cost of a logged
        batch.

        Use this method for rows of one partition, which Cassandra applies atomically, or if another writer repairs a
        partly applied batch. Raises ValueError for more than MAX_BATCH statements.
        """
        await self._batch(statements, BatchType.UNLOGGED)

    async def execute_lwt(self, cql: str, *values: Any) -> tuple[bool, Row]:
        """Executes a conditional write (… IF …). Returns whether it was applied, and if not, the current values of the
        columns in its condition.

        Never retries. After UNAVAILABLE with reason OUTCOME_UNKNOWN, or DEADLINE_EXCEEDED, read the row by
        `read_serial` to find out whether the write was applied.
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
            raise ValueError(f"{len(bound)} statements in a batch, at most {MAX_BATCH}")
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
                # An earlier attempt may be stored, even if the last one was rejected.
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
