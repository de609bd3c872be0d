"""Tests the closed and the open loop of HTTP requests, against a server whose responses are delayed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from roost_cli.bench import http_load
from roost_cli.exit_codes import CommandError

Answer = Callable[[int], Awaitable[bytes]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Runs a server whose response to request n is `answer(n)`; an empty response closes the connection."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")), 0
                )
                await reader.readexactly(length)
                number, count = count, count + 1
                response = await answer(number)
                if not response:
                    return
                writer.write(response)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        host, port = listening.sockets[0].getsockname()
        yield f"{host}:{port}"


def response(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nX-One: 1\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


async def test_ask_returns_status_headers_and_body_of_each_request() -> None:
    async def answer(number: int) -> bytes:
        return response(b"body %d" % number, "201 Created")

    async with server(answer) as address, http_load.connections(address, 1) as (connection,):
        for number in range(3):
            found = await connection.ask(http_load.request("POST", "/x", address, "token", b"{}"))
            assert (found.status, found.body) == (201, b"body %d" % number)
            assert found.headers == [("x-one", "1"), ("content-length", "6")]


async def test_ask_opens_closed_connection_again() -> None:
    async def answer(number: int) -> bytes:
        return response(b"x") if number else b""

    async with server(answer) as address, http_load.connections(address, 1) as (connection,):
        with pytest.raises(ConnectionError, match="closed the connection"):
            await connection.ask(http_load.request("GET", "/x", address))
        assert (await connection.ask(http_load.request("GET", "/x", address))).body == b"x"


async def test_run_closed_loop_waits_for_each_response() -> None:
    under_way = most = 0

    async def answer(number: int) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return response(b"x" * 10)

    async with server(answer) as address, http_load.connections(address, 3) as opened:
        samples = await http_load.run(opened, lambda _: http_load.request("GET", "/x", address), 0.2)
    assert most == 3
    assert all(sample.latency_s >= 0.01 for sample in samples)
    assert {(sample.size, sample.body) for sample in samples} == {(10, b"")}


async def test_run_open_loop_counts_wait_for_slow_server() -> None:
    asked = asyncio.Event()

    async def answer(number: int) -> bytes:
        if not number:
            await asyncio.sleep(0.3)
        asked.set()
        return response(b"x")

    async with server(answer) as address, http_load.connections(address, 1) as opened:
        samples = await http_load.run(
            opened, lambda _: http_load.request("GET", "/x", address), 0.2, per_second=100, keep=True
        )
    # All 20 requests are sent, though the first response came after the last intended time.
    assert len(samples) == 20
    assert samples[0].latency_s >= 0.3
    # The second request was intended 10 ms after the first.
    assert samples[1].latency_s >= 0.28
    assert samples[1].body == b"x"


async def test_run_other_status_raises_command_error_with_body() -> None:
    async def answer(number: int) -> bytes:
        return response(b"no such thing", "404 Not Found")

    async with server(answer) as address, http_load.connections(address, 2) as opened:
        with pytest.raises(CommandError, match="status 404 instead of 200: no such thing"):
            await http_load.run(opened, lambda _: http_load.request("GET", "/x", address), 1.0)


async def test_run_closed_connection_raises_command_error() -> None:
    async def answer(number: int) -> bytes:
        return b""

    async with server(answer) as address, http_load.connections(address, 2) as opened:
        with pytest.raises(CommandError, match="got no response"):
            await http_load.run(opened, lambda _: http_load.request("GET", "/x", address), 1.0)


async def test_connections_without_server_raises_command_error() -> None:
    with pytest.raises(CommandError, match=r"no server answers at 127\.0\.0\.1:1"):
        async with http_load.connections("127.0.0.1:1", 1):
            pass
