"""Sends HTTP requests to a server in a closed or in an open loop, and returns when each began and ended.

`roost bench` uses it for writes and other requests whose responses it must read; unchanged reads are measured with wrk,
which costs less CPU time.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httptools

from roost_cli.exit_codes import FAULTS, CommandError

# Timeout of a request in seconds. It is longer than the deadline of every method that is measured, so that the server
# decides when a request fails.
TIMEOUT_S = 30.0
# Maximum number of bytes of a response that an error message shows.
SHOWN_BYTES = 300


@dataclass(frozen=True, slots=True)
class Response:
    """A response: its status, its headers in lower case, and its body."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and the body of its response (b"" if `run` was told not to keep it). `latency_s` is the time until
    the response was complete: from the send in a closed loop, from the intended send in an open loop. `ended_at` is the
    Unix time at which the response was complete. `size` is the size of the body in bytes."""

    latency_s: float
    ended_at: float
    size: int
    body: bytes


class Connection(asyncio.Protocol):
    """A persistent connection to an HTTP server at `address` (HOST:PORT), which carries one request at a time. If the
    server has closed it, such as after some idle seconds, the next request opens it again."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Response] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []

    async def ask(self, request: bytes) -> Response:
        """Sends a request, which must be complete, and returns the response. Raises OSError if the server accepts no
        connection or closes it before the response is complete, TimeoutError if that takes longer than TIMEOUT_S
        seconds."""
        if self._transport is None or self._transport.is_closing():
            await self.open()
        assert self._transport is not None, "made by `open`"
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(TIMEOUT_S):
            return await self._waiting

    async def open(self) -> None:
        """Opens the connection. Raises OSError if the server does not accept it."""
        self._parser = httptools.HttpResponseParser(self)
        host, _, port = self._address.rpartition(":")
        await asyncio.get_running_loop().create_connection(lambda: self, host.strip("[]"), int(port))

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.close()

    # The methods below are called by asyncio and by httptools.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError(f"the server closed the connection: {exc or 'no error'}"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"the response is not HTTP: {error}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        done = Response(self._parser.get_status_code(), self._headers, b"".join(self._body))
        self._headers, self._body = [], []
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(done)

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)


def request(method: str, path: str, address: str, token: str = "", body: bytes = b"") -> bytes:
    """Returns a complete HTTP/1.1 request. `address` is HOST:PORT, `token` an access token ("" sends none), and `body`
    JSON."""
    head = [f"{method} {path} HTTP/1.1", f"Host: {address}"]
    if token:
        head.append(f"Authorization: Bearer {token}")
    if method != "GET":
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def connections(address: str, count: int) -> AsyncIterator[Sequence[Connection]]:
    """Opens `count` connections to the server at `address` (HOST:PORT), and closes them at the end of the block. Raises
    CommandError if the server does not accept them."""
    async with AsyncExitStack() as stack:
        opened = [Connection(address) for _ in range(count)]
        for one in opened:
            stack.callback(one.close)
            try:
                await one.open()
            except OSError as error:
                raise CommandError(f"no server answers at {address}: {error}") from error
        yield opened


def check(response: Response, expected: int) -> None:
    """Raises CommandError with the beginning of the response if its status is not `expected`."""
    if response.status != expected:
        raise CommandError(
            f"a request returned status {response.status} instead of {expected}: "
            f"{response.body[:SHOWN_BYTES].decode(errors='replace')}",
            FAULTS,
        )


async def run(
    opened: Sequence[Connection],
    make: Callable[[int], bytes],
    seconds: float,
    *,
    per_second: float = 0,
    expected: int = 200,
    keep: bool = False,
) -> list[Sample]:
    """Sends requests over the connections for `seconds` seconds, one at a time over each, and returns their samples by
    the end of the responses. `make` returns the request with a number; the numbers count from 0.

    If `per_second` is 0, the loop is closed: a connection sends its next request after the response to the previous
    one. Otherwise it is open: request n is intended for n / `per_second` seconds after the start. If all connections
    are busy then, the request waits, and the wait is part of its latency. Bodies are kept if `keep` is true.

    Raises CommandError if a response is incomplete or has another status than `expected`.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    numbers = itertools.count()
    samples: list[Sample] = []

    async def worker(connection: Connection) -> None:
        while True:
            number = next(numbers)
            if per_second:
                intended = begun + number / per_second
                if intended >= begun + seconds:
                    return
                await asyncio.sleep(max(intended - loop.time(), 0))
            else:
                intended = loop.time()
                if intended >= begun + seconds:
                    return
            response = await connection.ask(make(number))
            ended = loop.time() - intended
            check(response, expected)
            samples.append(Sample(ended, time.time(), len(response.body), response.body if keep else b""))

    try:
        async with asyncio.TaskGroup() as group:
            for one in opened:
                group.create_task(worker(one))
    except* CommandError as failures:
        raise failures.exceptions[0] from None
    except* (OSError, TimeoutError) as failures:
        raise CommandError(f"a request got no response: {failures.exceptions[0]}", FAULTS) from failures
    if not samples:
        raise CommandError("no request was sent: the round is too short for this rate", FAULTS)
    return samples
