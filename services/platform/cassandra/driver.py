"""How Cassandra's driver is set up here, and what its errors mean to a caller."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import Any

from cassandra import (
    AuthenticationFailed,
    ConsistencyLevel,
    OperationTimedOut,
    ProtocolVersion,
    RequestExecutionException,
    Unavailable,
)
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, ExecutionProfile, NoHostAvailable, Session
from cassandra.cluster import Cluster as Driver
from cassandra.connection import ConnectionBusy, ConnectionException
from cassandra.policies import (
    ConstantReconnectionPolicy,
    DCAwareRoundRobinPolicy,
    FallthroughRetryPolicy,
    RetryPolicy,
    TokenAwarePolicy,
)
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import ErrorMessage
from cassandra.query import tuple_factory

from services.platform.cassandra.request_limiter import StatementResult
from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Per statement, whatever the caller's deadline: a healthy node answers in milliseconds, and who waits longer holds up others.
STATEMENT_TIMEOUT_S = 2.0
# Creating a table writes files and waits for every node to know.
SCHEMA_TIMEOUT_S = 30.0
SCHEMA_AGREEMENT_S = 20.0
NEVER = -1
# A node that starts, or has all its cores taken, is slow to say hello.
CONNECT_TIMEOUT_S = 5.0
# The end of an outage is noticed within this. (The driver's own rest between tries grows to ten minutes.)
RECONNECT_INTERVAL_S = 1.0
# A node that hangs is given up after twice this; until then each statement waits for its own time-out.
HEARTBEAT_INTERVAL_S = 5.0
# Rows a page: a thousand small rows are parsed in about a millisecond, on a thread that shares the GIL with the loop.
FETCH_SIZE = 1_000

IDEMPOTENT, NON_IDEMPOTENT, SERIAL, SCHEMA = EXEC_PROFILE_DEFAULT, "once", "serial", "schema"
"""Execution profiles: repeated on another node where one refuses; never repeated; a read that sees conditional writes through."""

_DEFAULT_PORT = 9042
# Error codes of the native protocol: overloaded, bootstrapping.
_REJECTED_UNEXECUTED = (0x1001, 0x1002)
# Codes below this tell of the cluster's state; those from it on, of a wrong statement.
_FIRST_STATEMENT_ERROR = 0x2000
_TRANSIENT_ERRORS = (RequestExecutionException, OperationTimedOut, NoHostAvailable, ConnectionException, ConnectionBusy)

# The timestamp of the write at hand, in microseconds, so that a repeat is the same write; 0: a fresh one.
write_timestamp: ContextVar[int] = ContextVar("roost_write_stamp", default=0)


class WriteTimestamps:
    """Write timestamps in microseconds, ever increasing within the process. The driver asks it on several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self) -> int:
        return write_timestamp.get() or self.next_unique()

    def next_unique(self) -> int:
        """One that no write of this process has."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000)
            return self._last


class RetryOnNextHost(RetryPolicy):  # type: ignore[misc]
    """A statement that is harmless to repeat goes to one other node, once, where the first refuses.

    Except after a write time-out: then it may be stored already, and whoever sent it repeats it as long as there is time.
    """

    def on_read_timeout(self, *_: Any, retry_num: int, **__: Any) -> tuple[int, None]:
        return self._next_host_once(retry_num)

    def on_write_timeout(self, *_: Any, **__: Any) -> tuple[int, None]:
        return self.RETHROW, None

    def on_unavailable(self, *_: Any, retry_num: int, **__: Any) -> tuple[int, None]:
        return self._next_host_once(retry_num)

    def on_request_error(self, *_: Any, retry_num: int, **__: Any) -> tuple[int, None]:
        return self._next_host_once(retry_num)

    def _next_host_once(self, retry_num: int) -> tuple[int, None]:
        return (self.RETHROW if retry_num else self.RETRY_NEXT_HOST), None


def new_driver(settings: Settings, timestamps: WriteTimestamps) -> Driver:
    """The driver, not connected yet: token-aware within the datacenter, LOCAL_QUORUM, tuples for rows, no speculation."""
    points = [_host_and_port(text) for text in settings.cassandra]
    # One balancing policy for all profiles: it follows the same nodes.
    balancing = TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.cassandra_datacenter))
    auth = None
    if settings.cassandra_username:
        auth = PlainTextAuthProvider(settings.cassandra_username, settings.cassandra_password)

    def profile(retry: RetryPolicy, consistency: int, timeout_s: float = STATEMENT_TIMEOUT_S) -> ExecutionProfile:
        return ExecutionProfile(
            balancing, retry, consistency, ConsistencyLevel.LOCAL_SERIAL, timeout_s, row_factory=tuple_factory
        )

    quorum = ConsistencyLevel.LOCAL_QUORUM
    return Driver(
        points,
        port=points[0][1],
        auth_provider=auth,
        protocol_version=ProtocolVersion.V5,
        # Rows are small, and stored compressed already.
        compression=False,
        execution_profiles={
            IDEMPOTENT: profile(RetryOnNextHost(), quorum),
            NON_IDEMPOTENT: profile(FallthroughRetryPolicy(), quorum),
            SERIAL: profile(RetryOnNextHost(), ConsistencyLevel.LOCAL_SERIAL),
            SCHEMA: profile(FallthroughRetryPolicy(), quorum, SCHEMA_TIMEOUT_S),
        },
        timestamp_generator=timestamps,
        reconnection_policy=ConstantReconnectionPolicy(RECONNECT_INTERVAL_S, max_attempts=None),
        idle_heartbeat_interval=HEARTBEAT_INTERVAL_S,
        idle_heartbeat_timeout=HEARTBEAT_INTERVAL_S,
        connect_timeout=CONNECT_TIMEOUT_S,
        control_connection_timeout=CONNECT_TIMEOUT_S,
        max_schema_agreement_wait=SCHEMA_AGREEMENT_S,
        # Of the schema only what leads a statement to its replicas is read, keyspace by keyspace as they are opened: to read all of it
        # takes longer than all else at a start, and after every change of anybody's table every process would ask for that table.
        schema_metadata_enabled=False,
        schema_event_refresh_window=NEVER,
        monitor_reporting_enabled=False,
    )


def connect(driver: Driver, settings: Settings) -> Session:
    """Connects, and blocks for it; the driver is shut down where it fails.

    UNAVAILABLE where no node answers; FAILED_PRECONDITION where one does and the settings do not fit.
    """
    try:
        return driver.connect()
    except NoHostAvailable as error:
        where = ", ".join(settings.cassandra)
        found = sorted({host.datacenter for host in driver.metadata.all_hosts()} - {None})
        driver.shutdown()
        # By host; a plain list of hosts where none was even tried.
        causes = error.errors.values() if isinstance(error.errors, dict) else ()
        if any(isinstance(cause, AuthenticationFailed) for cause in causes):
            raise errors.failed_precondition(
                f"Cassandra at {where} does not take the user name and password"
            ) from error
        if found and settings.cassandra_datacenter not in found:
            raise errors.failed_precondition(
                f"Cassandra at {where} has the datacenters {', '.join(found)}, and cassandra_datacenter is"
                f" {settings.cassandra_datacenter}"
            ) from error
        raise errors.unavailable(f"Cassandra cannot be reached at {where}", reason=Reason.STORE_UNAVAILABLE) from error
    except BaseException:
        driver.shutdown()
        raise


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else (text, _DEFAULT_PORT)


def is_transient(error: Exception) -> bool:
    """Whether it tells of the cluster's state, and not of a wrong statement."""
    if isinstance(error, ErrorMessage):
        return int(error.code) < _FIRST_STATEMENT_ERROR
    return isinstance(error, (*_TRANSIENT_ERRORS, NoConnectionsAvailable))


def is_outcome_unknown(failed: StatementResult) -> bool:
    """Whether a write that ended so may be stored, or may yet come to be: unless it was refused by the first node that was asked,
    before it did anything."""
    error = failed.error
    if error is None or not is_transient(error):
        return False
    refused = isinstance(error, Unavailable) or (isinstance(error, ErrorMessage) and error.code in _REJECTED_UNEXECUTED)
    return not refused or (failed.future is not None and len(failed.future.attempted_hosts) > 1)


def to_roost_error(error: Exception, out_of_time: bool, may_be_stored: bool = False) -> Exception:
    """What the caller is told; an error that is no state of the cluster is returned as it is, a defect.

    DEADLINE_EXCEEDED where the caller's own time ran out, else UNAVAILABLE with reason STORE_UNAVAILABLE, or OUTCOME_UNKNOWN where a
    write may be stored all the same.
    """
    if not is_transient(error):
        return error
    told: errors.RoostError
    if out_of_time and isinstance(error, OperationTimedOut):
        told = errors.deadline_exceeded("the store did not answer in time")
    elif may_be_stored:
        told = errors.unavailable(
            "the store did not confirm it: unknown whether it is stored", reason=Reason.OUTCOME_UNKNOWN
        )
    else:
        told = errors.unavailable("the store cannot do it now", reason=Reason.STORE_UNAVAILABLE)
    told.__cause__ = error
    return told
