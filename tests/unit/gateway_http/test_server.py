"""The gateway on a real socket, with malformed requests that no HTTP library would send."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from roost.identity.v1 import auth_service_pb2
from roost.tweet.v1 import tweet_pb2

from gateway_http import http_protocol, load
from gateway_http import request as request_module
from gateway_http import server as server_module
from gateway_http.connections import Connections, Stage
from gateway_http.server import HttpServer
from services.platform.rpc.errors import RoostError
from tests.unit.gateway_http.conftest import Client
from tests.waiting import forever, wait_until, wait_until_async

HOST = "127.0.0.1"
# Bounds each wait, so that a hang fails the test.
TEST_TIMEOUT_S = 30.0


@pytest.fixture
async def server(client: Client) -> AsyncIterator[HttpServer]:
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=5).SerializeToString())
    client.channel.answers["Logout"] = auth_service_pb2.LogoutResponse()
    running = HttpServer(client.gateway, HOST, 0, grace_s=2)
    await running.start()
    yield running
    await running.stop()


async def exchange(server: HttpServer, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Sends the pieces and returns all received bytes until the connection closes."""
    reader, writer = await asyncio.open_connection(HOST, server.port)
    try:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            return await reader.read(-1)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def get(path: str = "/livez", *headers: str, close: bool = True, version: str = "1.1", method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers, *(["Connection: close"] if close else [])]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def post(body: bytes, *headers: str, close: bool = True) -> bytes:
    return get("/v1/auth/logout", "Content-Type: application/json", *headers, close=close, method="POST") + body


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])


def body(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_response_has_no_server_header(server: HttpServer) -> None:
    answer = await exchange(server, get("/v1/tweets/5"))
    assert (status(answer), body(answer)["id"]) == (200, "5")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert b"\r\nserver:" not in head
    assert b"\r\ndate:" in head
    assert server.url == f"http://{HOST}:{server.port}"


MALFORMED_REQUESTS = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00",
    "no version": b"GET /livez\r\n\r\n",
    "http/2.0": get(version="2.0"),
    "two lengths": post(b"{}", "Content-Length: 2", "Content-Length: 3"),
    "one length twice": post(b"{}", "Content-Length: 2", "Content-Length: 2"),
    "length and chunks": post(b"2\r\n{}\r\n0\r\n\r\n", "Content-Length: 2", "Transfer-Encoding: chunked"),
    "unknown transfer coding": post(b"{}", "Transfer-Encoding: gzip"),
    "negative length": post(b"{}", "Content-Length: -1"),
    "signed length": post(b"{}", "Content-Length: +2"),
    "control in a value": get("/livez", "X-A: a\x00b"),
    "bare return in a value": get("/livez", "X-A: a\rb"),
    "space in a name": get("/livez", "X A: b"),
    "bare line feeds": b"GET /livez HTTP/1.1\nHost: x\n\n",
    "raw bytes in the path": get("/v1/tags/\xff/tweets"),
    "bad chunk size": post(b"zz\r\n{}\r\n", "Transfer-Encoding: chunked"),
    "connect": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "two tokens": get("/livez", "Authorization: Bearer a", "Authorization: Bearer b"),
    "nul in the path": get("/v1/tweets/%00"),
    "half an escape": get("/v1/tweets/%2"),
}


async def test_malformed_http_is_400_and_closed(server: HttpServer) -> None:
    for name, request_bytes in MALFORMED_REQUESTS.items():
        answer = await exchange(server, request_bytes)
        assert status(answer) == 400, (name, answer)
        assert b"application/problem+json" in answer
        assert status(await exchange(server, get())) == 200


UNUSUAL_REQUESTS = [
    (get("http://x/livez"), 200),
    (get("/livez", version="1.0"), 200),
    (get("/v1/%74weets/5"), 200),
    (get("/v1/tweets/%35"), 200),
    (get("/v1/tweets/%2535"), 400),
    (get("/v1/tweets/%2e%2e"), 400),
    (get("/../etc/passwd"), 404),
    (get("/%2e%2e/%2e%2e/etc"), 404),
    (get("/livez#fragment"), 200),
    (get(method="TRACE"), 405),
    (get(method="NONSENSE"), 405),
    (get("*", method="OPTIONS"), 404),
    (b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
    (b"GET http://x/livez HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
    (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    (b"GET /livez HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n", 200),
    (b"GET /livez HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n", 200),
    (b"GET /livez HTTP/1.1\r\nHost: a/b\r\nConnection: close\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: a:80a\r\nConnection: close\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
    (get("/livez", "Upgrade: h2c", "Connection: upgrade", close=False), 200),
    (post(b"{}", "Content-Length: 2", "Upgrade: h2c", "Connection: upgrade", close=False), 200),
    (post(b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), 200),
]


async def test_unusual_valid_requests_are_served(server: HttpServer) -> None:
    for request_bytes, expected in UNUSUAL_REQUESTS:
        answer = await exchange(server, request_bytes)
        assert status(answer) == expected, (request_bytes, answer)
        if expected == 405:
            assert b"\r\nallow:" in answer.lower()


async def test_head_response_has_no_body(server: HttpServer) -> None:
    answer = await exchange(server, get(method="HEAD"))
    assert status(answer) == 200
    assert answer.endswith(b"\r\n\r\n")


async def test_headers_above_bounds_are_431(server: HttpServer) -> None:
    for headers in (
        [f"X-A: {'a' * 20_000}"],
        [f"X-{number}: a" for number in range(http_protocol.MAX_HEADERS + 1)],
        [f"X-{number}: {'a' * 1000}" for number in range(20)],
    ):
        answer = await exchange(server, get("/livez", *headers))
        assert status(answer) == 431
        assert body(answer)["code"] == "headers_too_large"


async def test_long_target_is_431(server: HttpServer) -> None:
    assert status(await exchange(server, get("/" + "a" * 20_000))) == 431


async def test_endless_header_is_431(server: HttpServer) -> None:
    endless = [b"GET /livez HTTP/1.1\r\nX-A: ", *[b"a" * 4096] * 5]
    assert status(await exchange(server, *endless, pause=0.01)) == 431


async def test_headers_within_bounds_in_pieces_are_served(server: HttpServer) -> None:
    whole = get("/livez", *[f"X-{number}: {'a' * 100}" for number in range(http_protocol.MAX_HEADERS - 3)])
    pieces = [whole[start : start + 3000] for start in range(0, len(whole), 3000)]
    assert status(await exchange(server, *pieces, pause=0.005)) == 200


async def test_slow_headers_are_408_and_silent_connection_is_closed(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a busy machine takes to read the first bytes.
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.5)
    assert status(await exchange(server, b"GET /livez HTTP/1.1\r\nHost:")) == 408
    assert await exchange(server) == b""


async def test_slow_body_is_408(server: HttpServer, monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    monkeypatch.setattr(request_module, "BODY_TIMEOUT_S", 0.05)
    # The response ends the connection, not this timeout.
    monkeypatch.setattr(http_protocol, "MESSAGE_TIMEOUT_S", 2 * TEST_TIMEOUT_S)
    login = get("/v1/auth/login", "Content-Type: application/json", "Content-Length: 5", method="POST", close=False)
    answer = await exchange(server, login + b"{")
    assert (status(answer), answer.count(b"connection: close\r\n")) == (408, 1)
    chunked = get(
        "/v1/auth/login", "Content-Type: application/json", "Transfer-Encoding: chunked", method="POST", close=False
    )
    assert status(await exchange(server, chunked + b"1\r\n{\r\n")) == 408


async def test_unread_body_does_not_hold_connection(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MESSAGE_TIMEOUT_S", 0.05)
    # The 401 is sent before the body is read; the client never sends the rest.
    answer = await exchange(server, get("/v1/tweets", "Content-Length: 5", method="POST", close=False) + b"{")
    assert status(answer) == 401


async def test_large_body_is_413_before_reading(server: HttpServer) -> None:
    size = 10 * request_module.MAX_BODY_BYTES
    login = get(
        "/v1/auth/login", "Content-Type: application/json", f"Content-Length: {size}", method="POST", close=False
    )
    reader, writer = await asyncio.open_connection(HOST, server.port)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        writer.write(login)
        assert status(await reader.readuntil(b"\r\n\r\n")) == 413
        # The response is not lost although the client still sends its body.
        writer.write(b" " * size)
        await writer.drain()
        await reader.read(-1)
    writer.close()
    sent_at_once = await exchange(server, login + b" " * size)
    assert status(sent_at_once) == 413


async def test_expect_continue_is_sent_only_for_wanted_body(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect = ("Content-Type: application/json", "Expect: 100-continue")
    wanted = get("/v1/auth/login", *expect, "Content-Length: 2", method="POST")
    assert (await exchange(server, wanted, b"{}")).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 501")
    # The response ends the connection, because the refused body may follow or not.
    monkeypatch.setattr(http_protocol, "MESSAGE_TIMEOUT_S", 2 * TEST_TIMEOUT_S)
    refused = get("/v1/auth/login", *expect, "Content-Length: 999999", method="POST", close=False)
    answer = await exchange(server, refused)
    assert (status(answer), answer.count(b"connection: close\r\n")) == (413, 1)


async def test_pipelined_requests_are_served_in_order(server: HttpServer) -> None:
    answer = await exchange(server, get("/v1/tweets/5", close=False) + get("/nothing", close=False) + get())
    assert [int(one[:3]) for one in answer.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]


async def test_garbage_after_request_keeps_response(server: HttpServer) -> None:
    answer = await exchange(server, get("/v1/tweets/5", close=False) + b"\x00garbage\r\n\r\n")
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_endless_pipelining_is_bounded(server: HttpServer) -> None:
    answer = await exchange(server, get(close=False) * 3_000)
    assert 0 < answer.count(b"HTTP/1.1 200") <= 3_000
    assert status(await exchange(server, get())) == 200


async def test_client_abort_does_not_affect_others(server: HttpServer) -> None:
    for request_bytes in (get(close=False)[:10], post(b"{", "Content-Length: 5"), get("/v1/tweets/5")):
        _, writer = await asyncio.open_connection(HOST, server.port)
        writer.write(request_bytes)
        writer.transport.abort()
    await wait_until(lambda: not server.protocols)
    assert status(await exchange(server, get())) == 200


async def test_client_not_reading_response_is_disconnected(
    server: HttpServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.1)
    huge = tweet_pb2.Tweet(id=5, text="a" * 20_000_000).SerializeToString()
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=huge)
    reader, writer = await asyncio.open_connection(HOST, server.port, limit=1024)
    writer.write(get("/v1/tweets/5", close=False))
    async with asyncio.timeout(TEST_TIMEOUT_S):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1024)
            await wait_until(lambda: not server.protocols)
            await reader.readexactly(20_000_000)
    writer.close()


async def test_stalled_bodies_do_not_block_other_requests(
    server: HttpServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "MAX_ACTIVE", 2)
    login = ("Content-Type: application/json", "Expect: 100-continue", "Content-Length: 2")
    streams = [await asyncio.open_connection(HOST, server.port) for _ in range(4)]
    async with asyncio.timeout(TEST_TIMEOUT_S):
        for reader, writer in streams:
            writer.write(get("/v1/auth/login", *login, method="POST", close=False))
            # The server sent 100 Continue, so the application waits for the body.
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"{")
        for path in ("/livez", "/readyz", "/v1/tweets/5"):
            assert status(await exchange(server, get(path))) == 200
        for reader, writer in streams:
            writer.write(b"}")
            assert status(await reader.readuntil(b"\r\n\r\n")) == 501
            writer.close()


async def test_body_completed_under_overload_is_503(
    server: HttpServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "MAX_ACTIVE", 1)
    gate = asyncio.Event()

    async def wait() -> Any:
        await gate.wait()
        return tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=5).SerializeToString())

    client.channel.answers["GetTweet"] = lambda request: wait()
    expect = ("Content-Type: application/json", "Expect: 100-continue", "Content-Length: 2")
    reader, writer = await asyncio.open_connection(HOST, server.port)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        writer.write(get("/v1/auth/login", *expect, method="POST"))
        await reader.readuntil(b"\r\n\r\n")
        asking = asyncio.create_task(exchange(server, get("/v1/tweets/5")))
        await wait_until(lambda: client.channel.asked)
        writer.write(b"{}")
        refused = await reader.read(-1)
        assert (status(refused), body(refused)["code"]) == (503, "overloaded")
        assert status(await exchange(server, get("/livez"))) == 200
        gate.set()
        assert status(await asking) == 200
    writer.close()


class CrowdedServer:
    """A server with a low bound on connections, whose responses to GET /v1/tweets/5 wait for `gate`."""

    def __init__(self, client: Client, server: HttpServer) -> None:
        self.client = client
        self.server = server
        self.gate = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, address: str = HOST) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens a connection from the address, and waits until the server has admitted or rejected it."""
        reader, writer = await asyncio.open_connection(HOST, self.server.port, local_addr=(address, 0))
        self._writers.append(writer)
        port = writer.get_extra_info("sockname")[1]
        await wait_until(lambda: any(one.client == (address, port) for one in self.server.protocols))
        return reader, writer

    async def work(self, address: str = HOST) -> asyncio.StreamReader:
        """Opens a connection, and waits until its request is being processed."""
        asked = len(self.client.channel.asked)
        reader, writer = await self.connect(address)
        writer.write(get("/v1/tweets/5"))
        await wait_until(lambda: len(self.client.channel.asked) > asked)
        return reader

    def close(self) -> None:
        self.gate.set()
        for writer in self._writers:
            writer.close()


@pytest.fixture
async def crowded_server(client: Client) -> AsyncIterator[CrowdedServer]:
    async def wait() -> Any:
        await found.gate.wait()
        return tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=5).SerializeToString())

    client.channel.answers["GetTweet"] = lambda request: wait()
    running = HttpServer(client.gateway, HOST, 0, grace_s=2, connections=Connections(4, 3))
    await running.start()
    found = CrowdedServer(client, running)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        yield found
    found.close()
    await running.stop()


async def test_idle_connections_of_one_address_are_evicted(crowded_server: CrowdedServer) -> None:
    other_reader, other = await crowded_server.connect("127.0.0.2")
    streams = [await crowded_server.connect() for _ in range(6)]
    # The last three evicted the first three.
    assert [await reader.read() for reader, _ in streams[:3]] == [b"", b"", b""]
    other.write(get())
    assert status(await other_reader.read()) == 200
    reader, writer = streams[3]
    writer.write(get())
    assert status(await reader.read()) == 200


async def test_incomplete_request_is_evicted_with_503(crowded_server: CrowdedServer) -> None:
    streams = [await crowded_server.connect() for _ in range(3)]
    for (_, writer), piece in zip(
        streams, (b"GET /livez HT", get()[:-2], post(b"{", "Content-Length: 2")), strict=True
    ):
        writer.write(piece)
    await wait_until(lambda: all(one._stage is Stage.SENDING for one in crowded_server.server.protocols))
    for reader, _ in streams:
        await crowded_server.work()
        refused = await reader.read()
        assert (status(refused), body(refused)["code"]) == (503, "overloaded")


async def test_rejected_connection_serves_probes_only(crowded_server: CrowdedServer) -> None:
    working = [await crowded_server.work() for _ in range(3)]
    for path, expected in (("/v1/tweets/5", 503), ("/livez", 200), ("/readyz", 200)):
        reader, writer = await crowded_server.connect()
        writer.write(get(path, close=False))
        answer = await reader.read()
        assert status(answer) == expected
        assert b"connection: close" in answer
        if expected == 503:
            assert b"retry-after: 1" in answer
            assert body(answer)["code"] == "overloaded"
    assert len(crowded_server.client.channel.asked) == 3
    working.append(await crowded_server.work("127.0.0.2"))
    reader, writer = await crowded_server.connect("127.0.0.3")
    writer.write(get("/v1/tweets/5", close=False))
    assert status(await reader.read()) == 503
    crowded_server.gate.set()
    assert [status(await one.read()) for one in working] == [200] * 4
    assert status(await exchange(crowded_server.server, get())) == 200


async def test_rejected_silent_connection_is_closed(
    crowded_server: CrowdedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "REJECTED_HEADER_TIMEOUT_S", 0.05)
    for _ in range(3):
        await crowded_server.work()
    reader, _ = await crowded_server.connect()
    assert await reader.read() == b""


@pytest.mark.parametrize("first", [b"", get(close=False)], ids=["new", "kept"])
async def test_blank_lines_do_not_extend_timeout(client: Client, monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(server_module, "KEEP_ALIVE_S", 0.2)
    running = HttpServer(client.gateway, HOST, 0, grace_s=2)
    await running.start()
    reader, writer = await asyncio.open_connection(HOST, running.port)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        if first:
            writer.write(first)
            assert status(await reader.readuntil(b"}")) == 200
        writer.write(b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    await running.stop()


@pytest.mark.parametrize("close", [True, False], ids=["last", "kept"])
async def test_unread_written_response_does_not_hold_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch, close: bool
) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(server_module, "KEEP_ALIVE_S", 0.1)
    made = http_protocol.BoundedProtocol.connection_made

    def without_pauses(self: Any, transport: Any) -> None:
        # As with a response of a few kB that fits the server's buffer, but not the client's TCP window.
        transport.set_write_buffer_limits(high=1 << 30)
        made(self, transport)

    monkeypatch.setattr(http_protocol.BoundedProtocol, "connection_made", without_pauses)
    huge = tweet_pb2.Tweet(id=5, text="a" * 20_000_000).SerializeToString()
    client.channel.answers["GetTweet"] = tweet_pb2.SerializedTweet(tweet=huge)
    running = HttpServer(client.gateway, HOST, 0, grace_s=2)
    await running.start()
    reader, writer = await asyncio.open_connection(HOST, running.port, limit=1024)
    writer.write(get("/v1/tweets/5", close=close))
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await reader.readexactly(1024)
        await wait_until(lambda: not running.protocols)
    writer.close()
    await running.stop()


async def test_start_on_taken_port_raises_with_reason(server: HttpServer, client: Client) -> None:
    with pytest.raises(RoostError, match=f"cannot serve HTTP on {HOST}:{server.port}: another program listens there"):
        await HttpServer(client.gateway, HOST, server.port).start()


async def refuses_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except ConnectionError:
        return True
    writer.close()
    return False


async def test_stop_finishes_active_requests_and_accepts_none(client: Client) -> None:
    gate = asyncio.Event()

    async def wait() -> Any:
        await gate.wait()
        return tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=5).SerializeToString())

    client.channel.answers["GetTweet"] = lambda request: wait()
    running = HttpServer(client.gateway, HOST, 0)
    port = await running.start()
    asking = asyncio.create_task(exchange(running, get("/v1/tweets/5", close=False)))
    await wait_until(lambda: client.channel.asked)
    stopping = asyncio.create_task(running.stop())
    await wait_until_async(lambda: refuses_connections(port))
    gate.set()
    assert status(await asking) == 200
    await stopping
    await running.stop()


async def test_shared_listener_passes_queued_connections_to_the_server_that_still_accepts(client: Client) -> None:
    with socket.create_server((HOST, 0)) as listener:
        # Each process has a descriptor of its own for the one socket.
        first, second = (HttpServer(client.gateway, HOST, 0, listener_fd=os.dup(listener.fileno())) for _ in range(2))
        assert await first.start() == await second.start() == listener.getsockname()[1]
        reader, writer = await asyncio.open_connection(HOST, first.port)
        await wait_until(lambda: len(first.protocols) + len(second.protocols) == 1)
        draining, other = (first, second) if first.protocols else (second, first)
        draining.stop_accepting()
        for _ in range(20):
            assert status(await exchange(other, get())) == 200
        # The connection that is open is served on.
        assert draining.protocols
        writer.write(get())
        assert status(await reader.read()) == 200
        writer.close()
        # With no process that accepts, connections queue, and the next process serves them.
        await other.stop()
        queued = asyncio.create_task(exchange(other, get()))
        successor = HttpServer(client.gateway, HOST, 0, listener_fd=os.dup(listener.fileno()))
        await successor.start()
        assert status(await queued) == 200
        await successor.stop()
        await draining.stop()


@pytest.mark.parametrize("kind", ["closed", "pipe", "connected"])
async def test_start_on_descriptor_that_does_not_listen_says_what_to_do(client: Client, kind: str) -> None:
    one, two = socket.socketpair()
    read, write = os.pipe()
    fd = {"closed": os.dup(read), "pipe": read, "connected": one.fileno()}[kind]
    if kind == "closed":
        os.close(fd)
    with pytest.raises(
        RoostError, match=f"inherited_listener_fd {fd} is not a listening socket: leave the setting out"
    ):
        await HttpServer(client.gateway, HOST, 0, listener_fd=fd).start()
    # The descriptor of somebody else stays open.
    one.send(b"x")
    os.close(read)
    os.close(write)
    one.close()
    two.close()


async def test_stop_ignores_idle_connections_and_is_bounded(client: Client) -> None:
    async def wait() -> Any:
        await forever()

    client.channel.answers["GetTweet"] = lambda request: wait()
    running = HttpServer(client.gateway, HOST, 0, grace_s=1)
    await running.start()
    _, idle = await asyncio.open_connection(HOST, running.port)
    asking = asyncio.create_task(exchange(running, get("/v1/tweets/5", close=False)))
    await wait_until(lambda: client.channel.asked)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await running.stop()
        assert status(await asking) == 503
    idle.close()


async def test_requests_leave_nothing_to_the_garbage_collector(server: HttpServer) -> None:
    requests = 60
    one = get("/v1/tweets/5", close=False)
    await exchange(server, one, get("/livez"))
    gc.collect()
    gc.disable()
    try:
        answers = await exchange(server, one * (requests - 1), get("/livez"))
        # The connection leaves some objects, a request none: 50,000 objects stop the process for 0.1 s.
        assert gc.collect() < requests
    finally:
        gc.enable()
    assert answers.count(b"HTTP/1.1 200") == requests
