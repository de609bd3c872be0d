"""Driver errors: deadline exceeded, unknown outcome of a write, or an invalid statement."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from cassandra import (
    ConsistencyLevel,
    InvalidRequest,
    OperationTimedOut,
    ReadTimeout,
    Unavailable,
    WriteFailure,
    WriteTimeout,
)
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown
from cassandra.policies import FallthroughRetryPolicy, NoSpeculativeExecutionPolicy, RetryPolicy
from cassandra.protocol import ErrorMessage, OverloadedErrorMessage, ServerError, SyntaxException

from services.platform.cassandra.driver import (
    IDEMPOTENT,
    NON_IDEMPOTENT,
    RECONNECT_INTERVAL_S,
    SCHEMA,
    SERIAL,
    RetryOnNextHost,
    WriteTimestamps,
    is_outcome_unknown,
    new_driver,
    to_roost_error,
    write_timestamp,
)
from services.platform.cassandra.request_limiter import StatementResult
from services.platform.config import Settings
from services.platform.rpc.errors import RoostError

OVERLOADED = OverloadedErrorMessage(0x1001, "overloaded", None)
UNKNOWN = [
    OperationTimedOut(),
    WriteTimeout("w", write_type=0),
    WriteFailure("w"),
    ConnectionShutdown("gone"),
    NoHostAvailable("none", {}),
    ServerError(0x0000, "oops", None),
    # A conditional write of which the server itself does not know the outcome.
    ErrorMessage(0x1700, "cas", None),
]
REFUSED = [Unavailable("u"), OVERLOADED]
DEFECTS = [InvalidRequest("i"), SyntaxException(0x2000, "s", None), ValueError("v")]


def failed(error: Exception, hosts: int = 1) -> StatementResult:
    future: Any = SimpleNamespace(attempted_hosts=["host"] * hosts)
    return StatementResult(None, error, future)


@pytest.mark.parametrize("error", UNKNOWN, ids=lambda error: type(error).__name__)
def test_is_outcome_unknown_ambiguous_error_is_true(error: Exception) -> None:
    assert is_outcome_unknown(failed(error))
    told = to_roost_error(error, out_of_time=False, may_be_stored=True)
    assert isinstance(told, RoostError)
    assert (told.code.name, told.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")
    assert told.__cause__ is error
    assert told.retry_after_s


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_is_outcome_unknown_first_node_rejected_is_false(error: Exception) -> None:
    assert not is_outcome_unknown(failed(error))
    told = to_roost_error(error, out_of_time=False)
    assert isinstance(told, RoostError)
    assert (told.code.name, told.reason) == ("UNAVAILABLE", "STORE_UNAVAILABLE")
    # The node contacted before may have stored the write.
    assert is_outcome_unknown(failed(error, hosts=2))


@pytest.mark.parametrize("error", DEFECTS, ids=lambda error: type(error).__name__)
def test_to_roost_error_statement_error_is_unchanged(error: Exception) -> None:
    assert to_roost_error(error, out_of_time=True, may_be_stored=True) is error
    assert not is_outcome_unknown(failed(error))


def test_to_roost_error_deadline_exceeded_only_for_call_deadline() -> None:
    for out_of_time, code in ((True, "DEADLINE_EXCEEDED"), (False, "UNAVAILABLE")):
        told = to_roost_error(OperationTimedOut(), out_of_time)
        assert isinstance(told, RoostError)
        assert told.code.name == code
    told = to_roost_error(ReadTimeout("r"), out_of_time=True)
    assert isinstance(told, RoostError)
    assert told.code.name == "UNAVAILABLE"


def test_retry_policy_next_host_once_never_after_write_timeout() -> None:
    policy = RetryOnNextHost()
    remote_services, here = (RetryPolicy.RETRY_NEXT_HOST, None), (RetryPolicy.RETHROW, None)
    for ask in (policy.on_read_timeout, policy.on_unavailable, policy.on_request_error):
        assert ask(None, 6, retry_num=0) == remote_services
        assert ask(None, 6, retry_num=1) == here
    assert policy.on_write_timeout(None, 6, "SIMPLE", 1, 0, retry_num=0) == here


def test_write_timestamps_increase_and_retry_keeps_timestamp() -> None:
    timestamps = WriteTimestamps()
    found = [timestamps() for _ in range(1_000)]
    assert found == sorted(set(found))
    token = write_timestamp.set(17)
    assert (timestamps(), timestamps()) == (17, 17)
    write_timestamp.reset(token)
    assert timestamps() > found[-1]


def test_new_driver_profiles_and_reconnection() -> None:
    driver = new_driver(
        Settings(backend="cluster", cassandra_contact_points="10.0.0.1:9043,[::1]:9044,ten"), WriteTimestamps()
    )
    # The driver adds profiles of its own, for graphs.
    profiles = {name: driver.profile_manager.profiles[name] for name in (IDEMPOTENT, NON_IDEMPOTENT, SERIAL, SCHEMA)}
    quorum, serial = ConsistencyLevel.LOCAL_QUORUM, ConsistencyLevel.LOCAL_SERIAL
    assert {name: profile.consistency_level for name, profile in profiles.items()} == {
        IDEMPOTENT: quorum,
        NON_IDEMPOTENT: quorum,
        SERIAL: serial,
        SCHEMA: quorum,
    }
    assert isinstance(profiles[NON_IDEMPOTENT].retry_policy, FallthroughRetryPolicy)
    assert isinstance(profiles[SCHEMA].retry_policy, FallthroughRetryPolicy)
    assert isinstance(profiles[IDEMPOTENT].retry_policy, RetryOnNextHost)
    assert all(profile.serial_consistency_level == serial for profile in profiles.values())
    assert {type(profile.speculative_execution_policy) for profile in profiles.values()} == {
        NoSpeculativeExecutionPolicy
    }
    # Constant, however long the outage.
    rests = driver.reconnection_policy.new_schedule()
    assert {next(rests) for _ in range(10_000)} == {RECONNECT_INTERVAL_S}
    assert driver.contact_points == [("10.0.0.1", 9043), ("::1", 9044), ("ten", 9042)]
    driver.shutdown()
