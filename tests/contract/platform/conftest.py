"""Fixtures for tests of the Cassandra modules: a clean namespace, and a TCP proxy that can interrupt the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.config import Settings
from tests.cluster import KIT, TABLES, Namespace
from tests.ports import free_port
from tests.waiting import POLL_S, WITHIN_S, wait_until


@pytest.fixture
def settings(namespace: Namespace) -> Settings:
    return Settings(**namespace.settings)


@pytest.fixture
async def cassandra(settings: Settings) -> AsyncIterator[Cassandra]:
    opened = await Cassandra.open(settings)
    yield opened
    await opened.close()


@pytest.fixture
async def keyspace(cassandra: Cassandra) -> Keyspace:
    return await Keyspace.open(cassandra, KIT, TABLES)


class Proxy:
    """A TCP proxy to Cassandra that can delay answers, stop forwarding, or drop connections. Runs on the test's event
    loop."""

    def __init__(self, host: str, port: int) -> None:
        # The port stays the same when the proxy is cut and starts again.
        self.port = free_port()
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._forth, self._back = asyncio.Event(), asyncio.Event()
        self.heal()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def silence(self) -> None:
        """Stops forwarding in both directions; connections stay open."""
        self._forth.clear()
        self._back.clear()

    def hold_answers(self) -> None:
        """Forwards requests but holds back answers."""
        self._back.clear()

    def heal(self) -> None:
        """Forwards everything again, including what was held back."""
        self._forth.set()
        self._back.set()

    async def cut(self) -> None:
        """Drops all connections and accepts no new ones until `start`."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self.heal()
        # The forwarding tasks notice the closed connections.
        await wait_until(lambda: not self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, there_writer}
        try:
            await asyncio.gather(
                self._pass(reader, there_writer, self._forth), self._pass(there_reader, writer, self._back)
            )
        finally:
            for side in (writer, there_writer):
                self._writers.discard(side)
                side.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
async def proxy(settings: Settings) -> AsyncIterator[Proxy]:
    host, _, port = settings.cassandra_contact_points[0].rpartition(":")
    made = Proxy(host, int(port))
    await made.start()
    yield made
    await made.cut()


@pytest.fixture
async def over_proxy(keyspace: Keyspace, settings: Settings, proxy: Proxy) -> AsyncIterator[Keyspace]:
    """The same keyspace, connected through the proxy."""
    changed = settings.model_copy(update={"cassandra_contact_points": (f"127.0.0.1:{proxy.port}",)})
    opened = await Cassandra.open(changed)
    yield await Keyspace.open(opened, KIT, TABLES)
    proxy.heal()
    await opened.close()


async def until(condition: Callable[[], Any], within_s: float = WITHIN_S) -> None:
    """Waits until the condition is true; awaits the result if it is a coroutine."""
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(POLL_S)
