"""What counts as work under way, and what is refused beyond its bounds."""

from __future__ import annotations

import pytest

from gateway_http import load as load_module
from gateway_http.load import Load
from services.platform.rpc.errors import RoostError


def test_load_counts_work_but_not_the_wait_for_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_ACTIVE", 1)
    load = Load()
    with load:
        with load.waiting_for_client, load:
            load.check()
        with load, pytest.raises(RoostError, match="too many requests"):
            load.check()
    assert load.active == 0


def test_load_counts_right_after_exceptions() -> None:
    load = Load()
    with pytest.raises(ValueError, match="gone"), load, load.waiting_for_client:
        raise ValueError("gone")
    assert load.active == 0


def test_hold_refuses_beyond_its_bound_and_counts_nothing_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_LARGE_BYTES", 10)
    load = Load()
    load.reserve(8)
    with pytest.raises(RoostError, match="too many large requests"):
        load.reserve(3)
    assert load.large_bytes == 8
    load.release(8)
    load.reserve(10)
