"""Configures the Cassandra driver and maps its errors to RoostError."""

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

# Maximum number of seconds of one statement, even if the caller's deadline is later. A healthy node answers in
# milliseconds; a longer wait would only occupy a request slot that other calls need.
STATEMENT_TIMEOUT_S = 2.0
# Maximum number of seconds of one schema statement, and of the wait after it until all nodes agree on the schema.
# Creating a table writes files on each node.
SCHEMA_TIMEOUT_S = 30.0
SCHEMA_AGREEMENT_S = 20.0
# The driver's value for "never": schema events of the cluster cause no refresh of metadata.
NEVER = -1
# Maximum number of seconds to connect to a node. A node that is starting, or whose cores are all busy, completes the
# handshake slowly.
CONNECT_TIMEOUT_S = 5.0
# Seconds between two attempts to reconnect to a node, so the driver notices the end of an outage within this time. With
# the driver's default the interval grows to ten minutes.
RECONNECT_INTERVAL_S = 1.0
# Seconds between two heartbeats, and timeout of a heartbeat. The driver marks a node that hangs as down after twice
# this time; until then each statement on this node fails by its own timeout.
HEARTBEAT_INTERVAL_S = 5.0
# Maximum number of rows per page of a read. Parsing 1,000 small rows takes about 1 ms, on a thread that shares the GIL
# with the event loop.
FETCH_SIZE = 1_000

IDEMPOTENT, NON_IDEMPOTENT, SERIAL, SCHEMA = EXEC_PROFILE_DEFAULT, "once", "serial", "schema"
"""Execution profiles: IDEMPOTENT retries once on another node, NON_IDEMPOTENT never retries, SERIAL reads at
LOCAL_SERIAL (which completes pending conditional writes), SCHEMA allows SCHEMA_TIMEOUT_S."""

_DEFAULT_PORT = 9042
# Native protocol error codes OVERLOADED and IS_BOOTSTRAPPING: the node did not execute the statement.
_REJECTED_UNEXECUTED = (0x1001, 0x1002)
# Native protocol error codes from this one on mean an invalid statement; lower codes describe the cluster's state.
_FIRST_STATEMENT_ERROR = 0x2000
_TRANSIENT_ERRORS = (RequestExecutionException, OperationTimedOut, NoHostAvailable, ConnectionException, ConnectionBusy)

# Timestamp of the current write in microseconds, so that a retry has the timestamp of the first attempt. If 0, the
# driver generates one.
write_timestamp: ContextVar[int] = ContextVar("roost_write_stamp", default=0)


class WriteTimestamps:
    """Generates write timestamps in microseconds, strictly increasing within the process. Thread-safe: the driver calls
    it on several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def __call__(self) -> int:
        return write_timestamp.get() or self.next_unique()

    def next_unique(self) -> int:
        """Returns a timestamp greater than any that this generator returned before."""
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000)
            return self._last


class RetryOnNextHost(RetryPolicy):  # type: ignore[misc]
    """Retries an idempotent statement once, on the next host.

    Does not retry after a write timeout: the write may be stored already, and the caller retries it with the same
    timestamp.
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
    """Returns an unconnected driver: token-aware within the datacenter, LOCAL_QUORUM, rows as tuples, no speculative
    execution."""
    points = [_host_and_port(text) for text in settings.cassandra_contact_points]
    # One load-balancing policy for all profiles, because each instance tracks the nodes separately.
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
        # No compression: rows are small, and large values are compressed already.
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
        # Schema metadata is off: reading all of it dominates the start-up time, and each schema change would make every
        # process read it again. `Cassandra.learn_replicas` loads only the replication settings, which token-aware
        # routing needs.
        schema_metadata_enabled=False,
        schema_event_refresh_window=NEVER,
        monitor_reporting_enabled=False,
    )


def connect(driver: Driver, settings: Settings) -> Session:
    """Connects the driver and returns its session; blocks the calling thread. Shuts the driver down if the connection
    fails.

    Raises UNAVAILABLE if no node answers, FAILED_PRECONDITION if the credentials or the datacenter in the settings are
    wrong.
    """
    try:
        session = driver.connect()
        # The timeout of `Session.prepare`, which runs in a thread: with the driver's 10 s, a process that stops while a
        # node hangs would wait so long for the thread. The driver has no public setting for it beside profiles.
        session._default_timeout = STATEMENT_TIMEOUT_S
        return session
    except NoHostAvailable as error:
        contact_points = ", ".join(settings.cassandra_contact_points)
        found = sorted({host.datacenter for host in driver.metadata.all_hosts()} - {None})
        driver.shutdown()
        # `errors` is a dict by host, or an empty list if no host was tried.
        causes = error.errors.values() if isinstance(error.errors, dict) else ()
        if any(isinstance(cause, AuthenticationFailed) for cause in causes):
            raise errors.failed_precondition(
                f"Cassandra at {contact_points} rejects cassandra_username and cassandra_password: correct the settings"
            ) from error
        if found and settings.cassandra_datacenter not in found:
            raise errors.failed_precondition(
                f"Cassandra at {contact_points} has the datacenters {', '.join(found)}, but cassandra_datacenter is"
                f" {settings.cassandra_datacenter}: set it to one of them"
            ) from error
        raise errors.unavailable(
            f"Cassandra cannot be reached at {contact_points}", reason=Reason.STORE_UNAVAILABLE
        ) from error
    except BaseException:
        driver.shutdown()
        raise


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else (text, _DEFAULT_PORT)


def is_transient(error: Exception) -> bool:
    """Returns True if the error describes the state of the cluster (overloaded, unreachable, too slow) rather than an
    invalid statement."""
    if isinstance(error, ErrorMessage):
        return int(error.code) < _FIRST_STATEMENT_ERROR
    return isinstance(error, (*_TRANSIENT_ERRORS, NoConnectionsAvailable))


def is_outcome_unknown(failed: StatementResult) -> bool:
    """Returns True if the write with this failed result may have been stored, or may still be stored later.

    Returns False only for an invalid statement, or if the only node that was contacted rejected the write without
    executing it.
    """
    error = failed.error
    if error is None or not is_transient(error):
        return False
    refused = isinstance(error, Unavailable) or (isinstance(error, ErrorMessage) and error.code in _REJECTED_UNEXECUTED)
    return not refused or (failed.future is not None and len(failed.future.attempted_hosts) > 1)


def to_roost_error(error: Exception, out_of_time: bool, may_be_stored: bool = False) -> Exception:
    """Maps a driver error to the RoostError for the caller; returns an error that `is_transient` excludes unchanged.

    DEADLINE_EXCEEDED if the statement timed out because the call's deadline passed (`out_of_time`); otherwise
    UNAVAILABLE with reason OUTCOME_UNKNOWN if `may_be_stored`, else with reason STORE_UNAVAILABLE.
    """
    if not is_transient(error):
        return error
    mapped: errors.RoostError
    if out_of_time and isinstance(error, OperationTimedOut):
        mapped = errors.deadline_exceeded("the store did not answer in time")
    elif may_be_stored:
        mapped = errors.unavailable(
            "the store did not confirm the write, which may or may not be stored: read before you retry",
            reason=Reason.OUTCOME_UNKNOWN,
        )
    else:
        mapped = errors.unavailable("the store is unavailable: retry later", reason=Reason.STORE_UNAVAILABLE)
    mapped.__cause__ = error
    return mapped
