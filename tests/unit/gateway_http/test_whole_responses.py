"""Responses that are sent with one write."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway_http import whole_responses
from gateway_http.request import SEND_WHOLE


class Cycle(SimpleNamespace):
    """What `send_whole` uses of uvicorn's RequestResponseCycle."""

    def __init__(self, **fields: Any) -> None:
        self.written: list[bytes] = []
        self.ended: list[str] = []

        async def drain() -> None:
            self.ended.append("drained")

        super().__init__(
            scope={},
            flow=SimpleNamespace(write_paused=False, drain=drain),
            disconnected=False,
            keep_alive=True,
            default_headers=[(b"date", b"today")],
            transport=SimpleNamespace(
                write=self.written.append, close=lambda: self.ended.append("closed"), is_closing=lambda: False
            ),
            message_event=SimpleNamespace(set=lambda: self.ended.append("message")),
            on_response=lambda: self.ended.append("response"),
            response_started=False,
            response_complete=False,
            waiting_for_100_continue=True,
            written=self.written,
            ended=self.ended,
        )
        self.__dict__.update(fields)


async def send(cycle: Cycle, headers: list[tuple[bytes, bytes]], body: bytes = b"{}") -> None:
    whole_responses.offer(cycle)  # type: ignore[arg-type]
    await cycle.scope[SEND_WHOLE](200, headers, body)


async def test_send_whole_writes_once_and_ends_the_response() -> None:
    cycle = Cycle()
    await send(cycle, [(b"etag", b'"1"'), (b"content-length", b"2")])
    assert cycle.written == [b'HTTP/1.1 200 OK\r\ndate: today\r\netag: "1"\r\ncontent-length: 2\r\n\r\n{}']
    assert cycle.ended == ["message", "response"]
    assert (cycle.response_started, cycle.response_complete, cycle.waiting_for_100_continue) == (True, True, False)


async def test_send_whole_closes_connection_without_keep_alive() -> None:
    cycle = Cycle(keep_alive=False)
    await send(cycle, [])
    assert b"\r\nconnection: close\r\n\r\n" in cycle.written[0]
    assert cycle.ended == ["message", "closed", "response"]


async def test_send_whole_waits_for_slow_client_and_writes_nothing_to_one_that_is_gone() -> None:
    cycle = Cycle()
    cycle.flow.write_paused = True
    await send(cycle, [])
    assert cycle.ended[0] == "drained"
    gone = Cycle(disconnected=True)
    await send(gone, [])
    assert gone.written == []
    # An earlier one of pipelined requests is not marked as disconnected.
    pipelined = Cycle()
    pipelined.transport.is_closing = lambda: True
    await send(pipelined, [])
    assert pipelined.written == []
    assert pipelined.disconnected, "uvicorn logs an error if a connected client gets no response"


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb"])
async def test_send_whole_header_with_line_break_is_refused(value: bytes) -> None:
    cycle = Cycle()
    with pytest.raises(ValueError, match="line break"):
        await send(cycle, [(b"x-request-id", value)])
    assert cycle.written == []
