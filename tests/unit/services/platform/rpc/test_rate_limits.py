"""A bucket lets its limit through at once, refills evenly, keeps people apart and stays bounded."""

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


def test_the_limit_passes_and_the_next_is_told_when_to_come_back() -> None:
    bucket = Bucket("read", 10)
    verdicts = [bucket.take("a", 100.0) for _ in range(11)]
    assert [one.allowed for one in verdicts] == [True] * 10 + [False]
    assert [one.remaining for one in verdicts] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert verdicts[-1].retry_after_s == pytest.approx(6.0)
    assert not bucket.take("a", 105.9).allowed
    assert bucket.take("a", 106.1).allowed
    assert bucket.take("b", 100.0).allowed


def test_a_refusal_costs_nothing() -> None:
    bucket = Bucket("read", 2)
    for _ in range(50):
        bucket.take("a", 0.0)
    assert bucket.take("a", 30.1).allowed


@given(st.integers(1, 50), st.lists(st.floats(0, 5), max_size=200))
def test_no_window_lets_more_through_than_limit_and_refill(limit: int, steps: list[float]) -> None:
    bucket, now, passed = Bucket("x", limit), 0.0, 0
    for step in steps:
        now += step
        passed += bucket.take("a", now).allowed
    assert passed <= limit + now * limit / 60 + 1


def test_buckets_are_bounded_and_full_ones_go_first() -> None:
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


class Door:
    """Log-ins, and other methods, as both protocols count them."""

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
        """What one attempt comes to: "in", "wrong" or "limited"."""
        request = methods()[f"/roost.identity.v1.AuthService/{method}"].request(username=username)
        try:
            with self.limit(method).attempt(request, 0, address):
                if error is not None:
                    raise error
        except errors.RoostError as refusal:
            return "limited" if refusal.reason == "RATE_LIMITED" else "wrong"
        return "in"

    def besiege(self) -> None:
        """Guesses at the account from many addresses, until those are slowed."""
        for number in range(STRANGERS_FAILURES // FAILURES + 1):
            for _ in range(FAILURES):
                self.log_in(f"203.0.113.{number}")


def test_limit_of_login_class_counts_by_address_whatever_token_comes_along() -> None:
    limit = Door(logins_per_minute=2).limit("Login")
    assert [limit.take(user_id, HOME).allowed for user_id in (0, 1, 2, 3)] == [True, True, False, False]
    assert limit.take(1, ELSEWHERE).allowed


def test_limit_of_reads_counts_by_user_and_by_address_without_one() -> None:
    limit = Door(reads_per_minute=1).limit("ListSessions")
    assert [limit.take(7, HOME).allowed, limit.take(7, ELSEWHERE).allowed, limit.take(8, HOME).allowed] == [1, 0, 1]
    assert [limit.take(0, HOME).allowed, limit.take(0, HOME).allowed] == [True, False]


def test_attempts_at_one_account_from_one_address_are_limited_and_come_back() -> None:
    door = Door()
    assert [door.log_in(HOME) for _ in range(FAILURES + 2)] == ["wrong"] * FAILURES + ["limited"] * 2
    assert door.log_in(HOME, username="bob") == "wrong"
    with (
        pytest.raises(errors.RoostError) as caught,
        door.limit("Login").attempt(pb.LoginRequest(username="ada"), 0, HOME),
    ):
        pass
    assert caught.value.retry_after_s == pytest.approx(FAILURES_WINDOW_S / FAILURES)
    door.clock.now += FAILURES_WINDOW_S / FAILURES + 0.1
    assert [door.log_in(HOME) for _ in range(2)] == ["wrong", "limited"]


@pytest.mark.parametrize("spelling", ["ADA", " ada ", "@ada", "\uff21da"])
def test_attempts_with_another_spelling_of_the_account_count_for_the_same(spelling: str) -> None:
    door = Door()
    for _ in range(FAILURES):
        door.log_in(HOME, username=spelling)
    assert door.log_in(HOME) == "limited"


def test_attempts_that_succeed_give_back_what_they_took() -> None:
    door = Door()
    assert [door.log_in(HOME, None) for _ in range(5 * FAILURES)] == ["in"] * 5 * FAILURES


@pytest.mark.parametrize(
    "error",
    [errors.unavailable("down"), errors.resource_exhausted("queue"), errors.invalid_argument("a rule is broken")],
)
def test_attempts_that_nobody_looked_at_are_no_guesses(error: errors.RoostError) -> None:
    door = Door()
    assert {door.log_in(HOME, error) for _ in range(5 * FAILURES)} == {"wrong"}


def test_attempts_that_end_in_an_error_of_a_stub_count_alike() -> None:
    door = Door()
    for _ in range(FAILURES):
        with pytest.raises(grpc.aio.AioRpcError), door.limit("Login").attempt(pb.LoginRequest(username="ada"), 0, HOME):
            raise rpc_error(WRONG, ())
    assert door.log_in(HOME) == "limited"


def test_attackers_from_anywhere_do_not_lock_the_owner_out() -> None:
    door = Door()
    assert door.log_in(HOME, None) == "in"
    door.besiege()
    # Neither where the owner logged in before, nor on a new device; and mistakes are allowed for in both places.
    assert [door.log_in(HOME), door.log_in(HOME), door.log_in(HOME, None)] == ["wrong", "wrong", "in"]
    assert [door.log_in(ELSEWHERE), door.log_in(ELSEWHERE, None)] == ["wrong", "in"]


def test_attackers_from_many_addresses_are_slowed() -> None:
    door = Door()
    door.besiege()
    assert [door.log_in(ELSEWHERE) for _ in range(5)] == ["wrong"] * SLOWED_FAILURES + ["limited"] * 2
    assert door.log_in(ELSEWHERE, username="bob") == "wrong"


def test_answers_that_prove_nothing_make_no_address_the_owners() -> None:
    door = Door()
    for _ in range(FAILURES):
        assert door.log_in(ELSEWHERE, None, method="RequestPasswordReset") == "in"
    assert door.log_in(ELSEWHERE, None, method="RequestPasswordReset") == "limited"
    door.besiege()
    door.clock.now += FAILURES_WINDOW_S
    assert [door.log_in(ELSEWHERE) for _ in range(4)].count("wrong") <= SLOWED_FAILURES + 1


def test_change_of_password_counts_for_the_account_of_the_token() -> None:
    limit = Door().limit("ChangePassword")
    denied = errors.permission_denied("the current password is wrong", Reason.WRONG_CREDENTIALS)
    seen = []
    for user_id in (*[7] * (FAILURES + 1), 8):
        with pytest.raises(errors.RoostError) as caught, limit.attempt(pb.ChangePasswordRequest(), user_id, HOME):
            raise denied
        seen.append(caught.value.reason)
    assert seen == ["WRONG_CREDENTIALS"] * FAILURES + ["RATE_LIMITED", "WRONG_CREDENTIALS"]


def test_known_owners_are_bounded() -> None:
    attempts = Attempts(Clock(), max_owners=3)
    for number in range(10):
        with attempts.counted(["ada"], f"192.0.2.{number}", proves=True):
            pass
    assert len(attempts._owners) == 3


def test_every_class_of_the_contract_has_its_numbers_and_off_means_none() -> None:
    limited = [method for method in methods().values() if method.policy.rate_limit != options.RATE_LIMIT_UNSPECIFIED]
    assert all(RateLimits(Settings()).limit_of(method) for method in limited)
    assert not any(RateLimits(Settings(rate_limits=False)).limit_of(method) for method in limited)


def test_methods_that_name_an_account_say_so_in_the_contract() -> None:
    """Who is asked about in public, by name or address, is declared: a new method of the class cannot forget it."""
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
