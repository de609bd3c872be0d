"""Which requests count as active, and what is rejected above the bounds."""

from __future__ import annotations

import pytest

from gateway_http import load as load_module
from gateway_http.load import Load
from services.platform.rpc.errors import RoostError


def test_load_excludes_requests_waiting_for_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_ACTIVE", 1)
    load = Load()
    with load:
        with load.waiting_for_client, load:
            load.check()
        with load, pytest.raises(RoostError, match="too many requests"):
            load.check()
    assert load.active == 0


def test_load_after_exceptions_returns_to_zero() -> None:
    load = Load()
    with pytest.raises(ValueError, match="gone"), load, load.waiting_for_client:
        raise ValueError("gone")
    assert load.active == 0


def test_reserve_above_bound_raises_and_reserves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_LARGE_BYTES", 10)
    load = Load()
    load.reserve(8)
    with pytest.raises(RoostError, match="too many large requests"):
        load.reserve(3)
    assert load.large_bytes == 8
    load.release(8)
    load.reserve(10)
