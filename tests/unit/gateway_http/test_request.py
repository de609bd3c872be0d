"""Bounds while a request body is read."""

from __future__ import annotations

from typing import Any

import pytest

from gateway_http import load as load_module
from gateway_http.load import Load
from gateway_http.request import MAX_BODY_BYTES, Request
from services.platform.rpc.client_address import NO_PROXIES
from services.platform.rpc.errors import RoostError

LARGE = 2 * MAX_BODY_BYTES


def request_of(load: Load, *pieces: bytes) -> Request:
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    events.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        assert load.active == 0
        return events.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"transfer-encoding", b"chunked")]}
    return Request(scope, receive, load, NO_PROXIES)


async def test_read_body_large_reserves_memory_only_while_reading() -> None:
    load = Load()
    with load:
        body = await request_of(load, b"a" * LARGE, b"b").read_body(4 * LARGE)
    assert len(body) == LARGE + 1
    assert load.large_bytes == 0


async def test_read_body_above_memory_bound_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "MAX_LARGE_BYTES", LARGE - 1)
    load = Load()
    with load, pytest.raises(RoostError, match="too many large requests"):
        await request_of(load, b"a" * LARGE).read_body(4 * LARGE)
    assert load.large_bytes == 0
    with load:
        small = await request_of(load, b"a" * MAX_BODY_BYTES).read_body(4 * LARGE)
    assert len(small) == MAX_BODY_BYTES
