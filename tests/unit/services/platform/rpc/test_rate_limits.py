"""Tests token buckets (burst, refill, separate keys, bounded memory) and the limits of failed log-ins."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.identity.v1 import auth_service_pb2 as pb
from roost.options.v1 import options_pb2 as options

from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.contract import methods
from services.platform.rpc.rate_limits import (
    FAILURES,
    FAILURES_WINDOW_S,
    SLOWED_FAILURES,
    STRANGERS_FAILURES,
    Attempts,
    Bucket,
    MethodLimit,
    RateLimits,
)
from services.platform.rpc.reasons import Reason
from services.platform.transport.inprocess_calls import rpc_error


def test_take_above_limit_is_refused_with_retry_time() -> None:
    bucket = Bucket("read", 10)
    verdicts = [bucket.take("a", 100.0) for _ in range(11)]
    assert [one.allowed for one in verdicts] == [True] * 10 + [False]
    assert [one.remaining for one in verdicts] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert verdicts[-1].retry_after_s == pytest.approx(6.0)
    assert not bucket.take("a", 105.9).allowed
    assert bucket.take("a", 106.1).allowed
    assert bucket.take("b", 100.0).allowed


def test_take_refused_consumes_no_token() -> None:
    bucket = Bucket("read", 2)
    for _ in range(50):
        bucket.take("a", 0.0)
    assert bucket.take("a", 30.1).allowed


@given(st.integers(1, 50), st.lists(st.floats(0, 5), max_size=200))
def test_take_any_window_allows_at_most_limit_and_refill(limit: int, steps: list[float]) -> None:
    bucket, now, passed = Bucket("x", limit), 0.0, 0
    for step in steps:
        now += step
        passed += bucket.take("a", now).allowed
    assert passed <= limit + now * limit / 60 + 1


def test_buckets_above_bound_evict_full_buckets_first() -> None:
    bucket = Bucket("x", 2, max_buckets=100)
    for number in range(99):
        bucket.take(number, 0.0)
    for _ in range(2):
        bucket.take("busy", 59.0)
    for number in range(1000, 1050):
        bucket.take(number, 61.0)
    assert not bucket.take("busy", 61.0).allowed
    for number in range(5_000):
        bucket.take(number, 61.0)
    assert len(bucket._full_at) <= 100


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
WRONG = errors.unauthenticated("the username or the password is wrong", Reason.WRONG_CREDENTIALS)


class LimitedApi:
    """Applies the rate limits as both protocols do, on a fake clock."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.limits = RateLimits(Settings(**settings), self.clock)

    def limit(self, method: str) -> MethodLimit:
        found = self.limits.limit_of(methods()[f"/roost.identity.v1.AuthService/{method}"])
        assert found is not None
        return found

    def log_in(
        self, address: str, error: Exception | None = WRONG, username: str = "ada", method: str = "Login"
    ) -> str:
        """Returns the result of one attempt: "in", "wrong" or "limited"."""
        request = methods()[f"/roost.identity.v1.AuthService/{method}"].request(username=username)
        try:
            with self.limit(method).attempt(request, 0, address):
                if error is not None:
                    raise error
        except errors.RoostError as refusal:
            return "limited" if refusal.reason == "RATE_LIMITED" else "wrong"
        return "in"

    def besiege(self) -> None:
        """Guesses the password from many addresses until unknown addresses are slowed."""
        for number in range(STRANGERS_FAILURES // FAILURES + 1):
            for _ in range(FAILURES):
                self.log_in(f"203.0.113.{number}")


def test_limit_of_login_class_counts_by_address_despite_token() -> None:
    limit = LimitedApi(logins_per_minute=2).limit("Login")
    assert [limit.take(user_id, HOME).allowed for user_id in (0, 1, 2, 3)] == [True, True, False, False]
    assert limit.take(1, ELSEWHERE).allowed


def test_limit_of_reads_counts_by_user_and_anonymous_by_address() -> None:
    limit = LimitedApi(reads_per_minute=1).limit("ListSessions")
    assert [limit.take(7, HOME).allowed, limit.take(7, ELSEWHERE).allowed, limit.take(8, HOME).allowed] == [1, 0, 1]
    assert [limit.take(0, HOME).allowed, limit.take(0, HOME).allowed] == [True, False]


def test_attempts_of_one_address_at_one_account_are_limited_until_refill() -> None:
    api = LimitedApi()
    assert [api.log_in(HOME) for _ in range(FAILURES + 2)] == ["wrong"] * FAILURES + ["limited"] * 2
    assert api.log_in(HOME, username="bob") == "wrong"
    with (
        pytest.raises(errors.RoostError) as caught,
        api.limit("Login").attempt(pb.LoginRequest(username="ada"), 0, HOME),
    ):
        pass
    assert caught.value.retry_after_s == pytest.approx(FAILURES_WINDOW_S / FAILURES)
    api.clock.now += FAILURES_WINDOW_S / FAILURES + 0.1
    assert [api.log_in(HOME) for _ in range(2)] == ["wrong", "limited"]


@pytest.mark.parametrize("spelling", ["ADA", " ada ", "@ada", "\uff21da"])
def test_attempts_with_another_spelling_count_for_same_account(spelling: str) -> None:
    api = LimitedApi()
    for _ in range(FAILURES):
        api.log_in(HOME, username=spelling)
    assert api.log_in(HOME) == "limited"


def test_attempts_successful_consume_no_token() -> None:
    api = LimitedApi()
    assert [api.log_in(HOME, None) for _ in range(5 * FAILURES)] == ["in"] * 5 * FAILURES


@pytest.mark.parametrize(
    "error",
    [errors.unavailable("down"), errors.resource_exhausted("queue"), errors.invalid_argument("a rule is broken")],
)
def test_attempts_failed_before_password_check_consume_no_token(error: errors.RoostError) -> None:
    api = LimitedApi()
    assert {api.log_in(HOME, error) for _ in range(5 * FAILURES)} == {"wrong"}


def test_attempts_wrong_credentials_from_stub_are_counted() -> None:
    api = LimitedApi()
    for _ in range(FAILURES):
        with pytest.raises(grpc.aio.AioRpcError), api.limit("Login").attempt(pb.LoginRequest(username="ada"), 0, HOME):
            raise rpc_error(WRONG, ())
    assert api.log_in(HOME) == "limited"


def test_attempts_of_attackers_do_not_lock_out_owner() -> None:
    api = LimitedApi()
    assert api.log_in(HOME, None) == "in"
    api.besiege()
    # The owner may log in at the known address and at a new one, and may mistype the password at both.
    assert [api.log_in(HOME), api.log_in(HOME), api.log_in(HOME, None)] == ["wrong", "wrong", "in"]
    assert [api.log_in(ELSEWHERE), api.log_in(ELSEWHERE, None)] == ["wrong", "in"]


def test_attempts_from_many_addresses_are_slowed() -> None:
    api = LimitedApi()
    api.besiege()
    assert [api.log_in(ELSEWHERE) for _ in range(5)] == ["wrong"] * SLOWED_FAILURES + ["limited"] * 2
    assert api.log_in(ELSEWHERE, username="bob") == "wrong"


def test_attempts_without_proof_do_not_register_owner_address() -> None:
    api = LimitedApi()
    for _ in range(FAILURES):
        assert api.log_in(ELSEWHERE, None, method="RequestPasswordReset") == "in"
    assert api.log_in(ELSEWHERE, None, method="RequestPasswordReset") == "limited"
    api.besiege()
    api.clock.now += FAILURES_WINDOW_S
    assert [api.log_in(ELSEWHERE) for _ in range(4)].count("wrong") <= SLOWED_FAILURES + 1


def test_attempts_change_password_counts_for_account_of_token() -> None:
    limit = LimitedApi().limit("ChangePassword")
    denied = errors.permission_denied("the current password is wrong", Reason.WRONG_CREDENTIALS)
    seen = []
    for user_id in (*[7] * (FAILURES + 1), 8):
        with pytest.raises(errors.RoostError) as caught, limit.attempt(pb.ChangePasswordRequest(), user_id, HOME):
            raise denied
        seen.append(caught.value.reason)
    assert seen == ["WRONG_CREDENTIALS"] * FAILURES + ["RATE_LIMITED", "WRONG_CREDENTIALS"]


def test_attempts_known_owner_addresses_are_bounded() -> None:
    attempts = Attempts(Clock(), max_owners=3)
    for number in range(10):
        with attempts.counted(["ada"], f"192.0.2.{number}", proves=True):
            pass
    assert len(attempts._owners) == 3


def test_limit_of_every_declared_class_exists_unless_disabled() -> None:
    limited = [method for method in methods().values() if method.policy.rate_limit != options.RATE_LIMIT_UNSPECIFIED]
    assert all(RateLimits(Settings()).limit_of(method) for method in limited)
    assert not any(RateLimits(Settings(rate_limits=False)).limit_of(method) for method in limited)


def test_limit_of_methods_with_account_field_names_account() -> None:
    """Every method of the class RATE_LIMIT_AUTH with a username or email field must declare which account it names."""
    limits = RateLimits(Settings())
    named = set()
    for method in methods().values():
        if method.policy.rate_limit == options.RATE_LIMIT_AUTH:
            limit = limits.limit_of(method)
            assert limit is not None
            fields = {field.name for field in method.descriptor.input_type.fields}
            if fields & {"username", "email"}:
                assert limit.names_account, method.path
            named |= {method.name} if limit.names_account else set()
    assert named == {"Login", "VerifyOtp", "ResendOtp", "RequestPasswordReset", "ChangePassword"}
