"""Tests the bounds of concurrent calls, per key and in total."""

from __future__ import annotations

from contextlib import ExitStack

import grpc
import pytest

from services.platform.rpc.concurrency import ConcurrencyLimit
from services.platform.rpc.errors import RoostError


def test_hold_above_bound_per_key_is_resource_exhausted_until_release() -> None:
    limit = ConcurrencyLimit("calls", most=10, most_per_key=2)
    with limit.hold("a"):
        with limit.hold("a"), pytest.raises(RoostError, match="from one address") as caught, limit.hold("a"):
            pass
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.retry_after_s
        with limit.hold("a"), limit.hold("b"):
            assert limit.total == 3
    assert limit.total == 0


def test_hold_above_total_bound_is_unavailable_for_any_key() -> None:
    limit = ConcurrencyLimit("calls", most=3, most_per_key=2)
    with ExitStack() as held:
        for key in "aab":
            held.enter_context(limit.hold(key))
        with pytest.raises(RoostError, match="too many calls") as caught, limit.hold("c"):
            pass
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_hold_exception_releases_key() -> None:
    limit = ConcurrencyLimit("calls", most=3, most_per_key=2)
    with pytest.raises(ValueError, match="x"), limit.hold("a"):
        raise ValueError("x")
    assert (limit.total, limit._by_key) == (0, {})
