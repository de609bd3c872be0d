"""Tests token buckets: burst, refill, separate keys, bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.platform.rpc import errors
from services.platform.rpc.token_buckets import Buckets, Limit


def test_take_above_limit_is_refused_with_retry_time() -> None:
    bucket = Buckets(Limit("read", 10))
    verdicts = [bucket.take("a", 100.0) for _ in range(11)]
    assert [one.allowed for one in verdicts] == [True] * 10 + [False]
    assert [one.remaining for one in verdicts] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert verdicts[-1].retry_after_s == pytest.approx(6.0)
    assert not bucket.take("a", 105.9).allowed
    assert bucket.take("a", 106.1).allowed
    assert bucket.take("b", 100.0).allowed


def test_take_refused_consumes_no_token() -> None:
    bucket = Buckets(Limit("read", 2))
    for _ in range(50):
        bucket.take("a", 0.0)
    assert bucket.take("a", 30.1).allowed


@given(st.integers(1, 50), st.lists(st.floats(0, 5), max_size=200))
def test_take_any_window_allows_at_most_limit_and_refill(limit: int, steps: list[float]) -> None:
    bucket, now, passed = Buckets(Limit("x", limit)), 0.0, 0
    for step in steps:
        now += step
        passed += bucket.take("a", now).allowed
    assert passed <= limit + now * limit / 60 + 1


def test_buckets_above_bound_evict_full_buckets_first() -> None:
    bucket = Buckets(Limit("x", 2), max_buckets=100)
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


def test_delay_makes_bucket_full_later_and_never_earlier() -> None:
    bucket = Buckets(Limit("x", 6))
    bucket.take("a", 0.0)
    bucket.delay("a", 50.0, 0.0)
    assert bucket.take("a", 0.0).allowed
    bucket.delay("a", 0.0, 0.0)
    refused = bucket.take("a", 0.0)
    assert (refused.allowed, refused.reset_s, refused.retry_after_s) == (False, 60.0, 10.0)


def test_enforce_refusal_says_when_next_request_is_allowed() -> None:
    bucket = Buckets(Limit("failed log-in", 10, 1_800.0))
    for _ in range(10):
        bucket.take("a", 100.0)
    with pytest.raises(errors.RoostError) as caught:
        bucket.take("a", 104.2).enforce()
    # The header `retry-after` is the delay of the error, rounded up.
    assert caught.value.retry_after_s == pytest.approx(175.8)
    assert caught.value.message == "more than 10 failed log-in requests in 30 minutes: the next one is allowed in 176 s"
