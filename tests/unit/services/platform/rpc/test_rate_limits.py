"""Tests the limits of classes and of failed log-ins, counted in memory."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from roost.identity.v1 import auth_service_pb2 as pb
from roost.options.v1 import options_pb2 as options

from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.contract import methods
from services.platform.rpc.rate_limit_counts import FAILURES, SLOWED_FAILURES, STRANGERS_FAILURES, MemoryCounts
from services.platform.rpc.rate_limits import MethodLimit, RateLimits, counted_attempt
from services.platform.rpc.reasons import Reason
from services.platform.rpc.token_buckets import Verdict
from services.platform.transport.inprocess_calls import rpc_error


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
        self.limits = RateLimits(Settings(**settings), MemoryCounts(self.clock))

    def limit(self, method: str) -> MethodLimit:
        found = self.limits.limit_of(methods()[f"/roost.identity.v1.AuthService/{method}"])
        assert found is not None
        return found

    async def log_in(
        self, address: str, error: Exception | None = WRONG, username: str = "ada", method: str = "Login"
    ) -> str:
        """Returns the result of one attempt: "in", "wrong" or "limited"."""
        request = methods()[f"/roost.identity.v1.AuthService/{method}"].request(username=username)
        try:
            async with self.limit(method).attempt(request, 0, address):
                if error is not None:
                    raise error
        except errors.RoostError as refusal:
            return "limited" if refusal.reason == "RATE_LIMITED" else "wrong"
        return "in"

    async def besiege(self) -> None:
        """Guesses the password from many addresses until unknown addresses are slowed."""
        for number in range(STRANGERS_FAILURES.calls // FAILURES.calls + 1):
            for _ in range(FAILURES.calls):
                await self.log_in(f"203.0.113.{number}")


async def test_limit_of_login_class_counts_by_address_despite_token() -> None:
    limit = LimitedApi(logins_per_minute=2).limit("Login")
    assert [(await limit.take(user_id, HOME)).allowed for user_id in (0, 1, 2, 3)] == [True, True, False, False]
    assert (await limit.take(1, ELSEWHERE)).allowed


async def test_limit_of_reads_counts_by_user_and_anonymous_by_address() -> None:
    limit = LimitedApi(reads_per_minute=1).limit("ListSessions")
    assert [
        (await limit.take(7, HOME)).allowed,
        (await limit.take(7, ELSEWHERE)).allowed,
        (await limit.take(8, HOME)).allowed,
    ] == [1, 0, 1]
    assert [(await limit.take(0, HOME)).allowed, (await limit.take(0, HOME)).allowed] == [True, False]


async def test_attempts_of_one_address_at_one_account_are_limited_until_refill() -> None:
    api = LimitedApi()
    assert [await api.log_in(HOME) for _ in range(FAILURES.calls + 2)] == ["wrong"] * FAILURES.calls + ["limited"] * 2
    assert await api.log_in(HOME, username="bob") == "wrong"
    with pytest.raises(errors.RoostError) as caught:
        async with api.limit("Login").attempt(pb.LoginRequest(username="ada"), 0, HOME):
            pass
    assert caught.value.retry_after_s == pytest.approx(FAILURES.window_s / FAILURES.calls)
    api.clock.now += FAILURES.window_s / FAILURES.calls + 0.1
    assert [await api.log_in(HOME) for _ in range(2)] == ["wrong", "limited"]


@pytest.mark.parametrize("spelling", ["ADA", " ada ", "@ada", "\uff21da"])
async def test_attempts_with_another_spelling_count_for_same_account(spelling: str) -> None:
    api = LimitedApi()
    for _ in range(FAILURES.calls):
        await api.log_in(HOME, username=spelling)
    assert await api.log_in(HOME) == "limited"


async def test_attempts_successful_consume_no_token() -> None:
    api = LimitedApi()
    assert [await api.log_in(HOME, None) for _ in range(5 * FAILURES.calls)] == ["in"] * 5 * FAILURES.calls


@pytest.mark.parametrize(
    "error",
    [errors.unavailable("down"), errors.resource_exhausted("queue"), errors.invalid_argument("a rule is broken")],
)
async def test_attempts_failed_before_password_check_consume_no_token(error: errors.RoostError) -> None:
    api = LimitedApi()
    assert {await api.log_in(HOME, error) for _ in range(5 * FAILURES.calls)} == {"wrong"}


async def test_attempts_wrong_credentials_from_stub_are_counted() -> None:
    api = LimitedApi()
    for _ in range(FAILURES.calls):
        with pytest.raises(grpc.aio.AioRpcError):
            async with api.limit("Login").attempt(pb.LoginRequest(username="ada"), 0, HOME):
                raise rpc_error(WRONG, ())
    assert await api.log_in(HOME) == "limited"


async def test_attempts_of_attackers_do_not_lock_out_owner() -> None:
    api = LimitedApi()
    assert await api.log_in(HOME, None) == "in"
    await api.besiege()
    # The owner may log in at the known address and at a new one, and may mistype the password at both.
    assert [await api.log_in(HOME), await api.log_in(HOME), await api.log_in(HOME, None)] == ["wrong", "wrong", "in"]
    assert [await api.log_in(ELSEWHERE), await api.log_in(ELSEWHERE, None)] == ["wrong", "in"]


async def test_attempts_from_many_addresses_are_slowed() -> None:
    api = LimitedApi()
    await api.besiege()
    assert [await api.log_in(ELSEWHERE) for _ in range(5)] == ["wrong"] * SLOWED_FAILURES.calls + ["limited"] * 2
    assert await api.log_in(ELSEWHERE, username="bob") == "wrong"


async def test_attempts_without_proof_do_not_register_owner_address() -> None:
    api = LimitedApi()
    for _ in range(FAILURES.calls):
        assert await api.log_in(ELSEWHERE, None, method="RequestPasswordReset") == "in"
    assert await api.log_in(ELSEWHERE, None, method="RequestPasswordReset") == "limited"
    await api.besiege()
    api.clock.now += FAILURES.window_s
    assert [await api.log_in(ELSEWHERE) for _ in range(4)].count("wrong") <= SLOWED_FAILURES.calls + 1


async def test_attempts_change_password_counts_for_account_of_token() -> None:
    limit = LimitedApi().limit("ChangePassword")
    denied = errors.permission_denied("the current password is wrong", Reason.WRONG_CREDENTIALS)
    seen = []
    for user_id in (*[7] * (FAILURES.calls + 1), 8):
        with pytest.raises(errors.RoostError) as caught:
            async with limit.attempt(pb.ChangePasswordRequest(), user_id, HOME):
                raise denied
        seen.append(caught.value.reason)
    assert seen == ["WRONG_CREDENTIALS"] * FAILURES.calls + ["RATE_LIMITED", "WRONG_CREDENTIALS"]


async def test_attempts_known_owner_addresses_are_bounded() -> None:
    counts = MemoryCounts(Clock(), max_owners=3)
    for number in range(10):
        async with counted_attempt(counts, ["ada"], f"192.0.2.{number}", proves=True):
            pass
    assert len(counts._owners) == 3


async def test_attempts_rejected_by_second_account_do_not_count_for_first() -> None:
    counts = MemoryCounts(Clock())
    for _ in range(FAILURES.calls):
        await counts.attempt("bob", HOME)
    for _ in range(FAILURES.calls + 1):
        with pytest.raises(errors.RoostError):
            async with counted_attempt(counts, ["ada", "bob"], HOME, proves=True):
                pass
    assert not isinstance(await counts.attempt("ada", HOME), Verdict)


def test_limit_of_every_declared_class_exists_unless_disabled() -> None:
    limited = [method for method in methods().values() if method.policy.rate_limit != options.RATE_LIMIT_UNSPECIFIED]
    assert all(RateLimits(Settings(), MemoryCounts(Clock())).limit_of(method) for method in limited)
    assert not any(
        RateLimits(Settings(rate_limits=False), MemoryCounts(Clock())).limit_of(method) for method in limited
    )


def test_limit_of_methods_with_account_field_names_account() -> None:
    """Every method of the class RATE_LIMIT_AUTH with a username or email field must declare which account it names."""
    limits = RateLimits(Settings(), MemoryCounts(Clock()))
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
