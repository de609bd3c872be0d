"""The circuit breaker of a Redis server: during an outage callers do not wait, and one probe reconnects."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

from services.platform.redis.connection import RedisConnection, unreachable
from services.platform.redis.node_pool import BREAKER_OPEN_S, Node, SharedConnection
from services.platform.rpc.errors import RoostError
from tests.waiting import WITHIN_S, forever, run_ready_tasks

CALLERS = 50


class Server:
    """A server that accepts connections, rejects them, or leaves them hanging."""

    def __init__(self) -> None:
        self.dials = 0
        self.now = 1_000.0
        self.refuses = False
        self.hangs: asyncio.Event | None = None
        self.node = Node("test", self.dial, lambda: self.now)

    async def dial(self) -> RedisConnection:
        self.dials += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.refuses:
            raise unreachable()
        pipe = RedisConnection(0.05)
        pipe.role = "master"
        pipe.connection_made(_Transport())
        return pipe


class _Transport(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass


async def refused(server: Server) -> int:
    """Returns how many of CALLERS concurrent calls were rejected; none may wait."""
    async with asyncio.timeout(WITHIN_S):
        found = await asyncio.gather(*(server.node.reads() for _ in range(CALLERS)), return_exceptions=True)
    assert all(isinstance(one, RedisConnection | RoostError) for one in found)
    return sum(isinstance(one, RoostError) for one in found)


async def test_unreachable_server_rejects_at_once_and_probes_once() -> None:
    server = Server()
    server.refuses = True
    assert await refused(server) == CALLERS
    assert server.dials == 1
    # The breaker is still open.
    assert await refused(server) == CALLERS
    assert server.dials == 1
    server.now += BREAKER_OPEN_S
    server.hangs = asyncio.Event()
    assert await refused(server) == CALLERS
    assert await refused(server) == CALLERS
    assert server.dials == 2
    server.hangs.set()
    await run_ready_tasks()
    # The probe failed, so the breaker opens again.
    assert await refused(server) == CALLERS
    assert server.dials == 2
    server.refuses, server.hangs = False, None
    server.now += BREAKER_OPEN_S
    assert await refused(server) == CALLERS
    await run_ready_tasks()
    assert server.dials == 3
    assert await refused(server) == 0


async def test_read_timeout_drops_other_connections() -> None:
    server = Server()
    reads, writes = await server.node.reads(), await server.node.writes()
    replies = [reads.execute(b"", 1), writes.execute(b"", 1)]
    async with asyncio.timeout(WITHIN_S):
        found = await asyncio.gather(*replies, return_exceptions=True)
    assert all(isinstance(one, RoostError) for one in found)
    assert reads.lost
    assert writes.lost
    assert await refused(server) == CALLERS
    assert server.dials == 2


async def test_suspended_process_does_not_time_out_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answered = threading.Event()
        answering = threading.Thread(target=_answer_once, args=(listening, answered))
        answering.start()
        port = listening.getsockname()[1]
        _, pipe = await asyncio.get_running_loop().create_connection(lambda: RedisConnection(0.05), "127.0.0.1", port)
        replies = pipe.execute(b"PING\r\n", 1)
        await asyncio.sleep(0)
        # The reply arrives while the process is suspended for longer than the timeout.
        assert answered.wait(WITHIN_S)
        time.sleep(0.1)  # noqa: ASYNC251
        assert await replies == [b"PONG"]
        pipe.abort()
        # The connection closes in the next iteration of the event loop.
        await asyncio.to_thread(answering.join)


def _answer_once(listening: socket.socket, answered: threading.Event) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(64)
        connection.sendall(b"+PONG\r\n")
        answered.set()
        # Until the other side has read it.
        connection.recv(64)


async def test_get_dropped_while_connecting_raises_unavailable() -> None:
    lane = SharedConnection(_never)
    waiting = asyncio.ensure_future(lane.get())
    await asyncio.sleep(0)
    lane.drop()
    with pytest.raises(RoostError):
        await waiting


async def _never() -> RedisConnection:
    await forever()
    raise AssertionError("unreachable")
