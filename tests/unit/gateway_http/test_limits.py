"""A bucket lets its limit through at once, refills evenly, keeps people apart and stays bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.options.v1 import options_pb2 as options

from gateway_http.limits import Bucket, buckets, client_key, headers
from services.common.config import Settings


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


def test_headers_say_limit_remaining_and_reset() -> None:
    bucket = Bucket("post", 6)
    assert headers(bucket, bucket.take("a", 0.0), 1000.5) == [
        (b"ratelimit", b'"post";r=5;t=10'),
        (b"ratelimit-policy", b'"post";q=6;w=60'),
        (b"x-rate-limit-limit", b"6"),
        (b"x-rate-limit-remaining", b"5"),
        (b"x-rate-limit-reset", b"1010"),
    ]
    for _ in range(5):
        bucket.take("a", 0.0)
    assert (b"retry-after", b"10") in headers(bucket, bucket.take("a", 0.0), 1000.0)


def test_every_class_of_the_contract_has_its_numbers_and_off_means_none() -> None:
    classes = set(options.RateLimit.values()) - {options.RATE_LIMIT_UNSPECIFIED}
    assert set(buckets(Settings())) == classes
    assert buckets(Settings(posts_per_minute=3))[options.RATE_LIMIT_POST].limit == 3
    assert buckets(Settings(rate_limits=False)) == {}


def test_an_ipv6_customer_is_one_client() -> None:
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff") != client_key("2001:db8:0:1::1")
    assert client_key("192.0.2.1") == "192.0.2.1"
    assert client_key("fe80::1%eth0") == "fe80::/64"
    assert client_key("not:an:address") == "not:an:address"
