"""The connections to one Redis server: two that everybody shares, and a few that are lent for transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.platform.redis.connection import RedisConnection, unreachable
from services.platform.rpc import errors

# A server that could not be reached, or fell silent, is tried again only after this, and by one connection that nobody waits for:
# an outage costs each caller one time-out at most, and then nothing.
BREAKER_OPEN_S = 0.5
# Transactions under WATCH at the same time: builds (64 at most, of which few close at once), trims, changes of shared entries.
MAX_DEDICATED = 32
# Kept open between two of them.
MAX_IDLE = 8

Connect = Callable[[], Awaitable[RedisConnection]]


class SharedConnection:
    """One shared connection, made when it is needed and again when it was lost."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[RedisConnection] | None = None

    @property
    def live(self) -> RedisConnection | None:
        """The connection, where it stands: a call saved."""
        connection = self._connection
        return None if connection is None or connection.lost else connection

    async def get(self) -> RedisConnection:
        """The connection. UNAVAILABLE where none can be had."""
        if (connection := self.live) is not None:
            return connection
        if self._connecting is None:
            # A task of its own: whoever asked first may be cancelled, and the others wait for the same connection.
            self._connecting = asyncio.create_task(self._open(), name="redis-connect")
            self._connecting.add_done_callback(self._connected)
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if not connecting.cancelled():
                raise
            # Dropped meanwhile: that is no wish of whoever waits here.
            raise unreachable() from None

    def drop(self) -> None:
        """Ends the connection; the next caller gets a new one."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()

    async def _open(self) -> RedisConnection:
        self._connection = await self._connect()
        return self._connection

    def _connected(self, task: asyncio.Task[RedisConnection]) -> None:
        self._connecting = None
        if not task.cancelled():
            # Fetched here: all who waited may have gone.
            task.exception()


class Node:
    """One server (or whoever is master now). Reads and bulk writes have a connection each: 10,000 appends hold up no page."""

    def __init__(self, name: str, connect: Connect, clock: Callable[[], float]) -> None:
        """`connect` opens a connection to it; `clock` gives monotonic seconds."""
        self.name = name
        self._dial = connect
        self._clock = clock
        # Closed while this is None; then everybody is refused, until a probe gets through.
        self._broken_until: float | None = None
        self._probe: asyncio.Task[None] | None = None
        self._reads, self._writes = SharedConnection(self._connect), SharedConnection(self._connect)
        self._idle: list[RedisConnection] = []
        self._slots = asyncio.Semaphore(MAX_DEDICATED)

    async def reads(self) -> RedisConnection:
        """The shared connection of short commands. UNAVAILABLE where none can be had."""
        return self._reads.live or await self._reads.get()

    async def writes(self) -> RedisConnection:
        """The shared connection of long rows of commands. UNAVAILABLE where none can be had."""
        return self._writes.live or await self._writes.get()

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[RedisConnection]:
        """A connection that nobody else uses meanwhile. Leave it with no key watched; where the body raises, it is given up."""
        async with self._slots:
            connection = await self._take_idle_or_connect()
            try:
                yield connection
            except BaseException:
                # Cancelled between WATCH and EXEC, say: what the connection is in the middle of is unknown.
                connection.abort()
                raise
            if len(self._idle) < MAX_IDLE and not connection.lost:
                self._idle.append(connection)
            else:
                connection.abort()

    def drop(self) -> None:
        """Ends all connections that are not lent; those come from new ones. Also what closing is."""
        self._reads.drop()
        self._writes.drop()
        while self._idle:
            self._idle.pop().abort()
        if self._probe is not None:
            self._probe.cancel()

    async def _take_idle_or_connect(self) -> RedisConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost:
                return connection
        return await self._connect()

    async def _connect(self) -> RedisConnection:
        if self._broken_until is None:
            try:
                return await self._connect_to_master()
            except errors.RoostError:
                self._broken_until = self._clock() + BREAKER_OPEN_S
                raise
        if self._probe is None and self._clock() >= self._broken_until:
            self._probe = asyncio.create_task(self._run_probe(), name="redis-probe")
            self._probe.add_done_callback(self._probe_ended)
        raise unreachable()

    async def _connect_to_master(self) -> RedisConnection:
        connection = await self._dial()
        if connection.role != "master":
            # It was one a moment ago: the new one will be found.
            connection.abort()
            raise unreachable()
        connection.on_timeout = self._on_read_timeout
        return connection

    def _on_read_timeout(self) -> None:
        self._broken_until = self._clock() + BREAKER_OPEN_S
        # Whoever waits on another connection would wait as long.
        self.drop()

    async def _run_probe(self) -> None:
        try:
            self._idle.append(await self._connect_to_master())
            self._broken_until = None
        except errors.RoostError:
            self._broken_until = self._clock() + BREAKER_OPEN_S

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._probe = None
        if not task.cancelled():
            # Fetched here: nobody waits for it.
            task.exception()
