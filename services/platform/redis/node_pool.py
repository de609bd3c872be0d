"""Manages the connections to one Redis server: two that all callers share, and a pool of connections that serve one
caller at a time, for transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.platform.redis.connection import RedisConnection, unreachable
from services.platform.rpc import errors

# Circuit breaker: seconds from a failed connection attempt or a read timeout to the next attempt, which a background
# task makes. Until it succeeds, callers get UNAVAILABLE at once, so an outage delays each caller by at most one
# timeout.
BREAKER_OPEN_S = 0.5
# Maximum number of dedicated connections in use, that is, of concurrent transactions with WATCH. Beyond it callers
# wait. Up to 64 builds of home timelines run at once, of which few write at the same moment; trims of home timelines
# and changes of user references need few more.
MAX_DEDICATED = 32
# Maximum number of unused dedicated connections that stay open. Beyond it a connection is closed after its use.
MAX_IDLE = 8

Connect = Callable[[], Awaitable[RedisConnection]]


class SharedConnection:
    """A connection that many callers share. The first call opens the connection; after a loss the next call opens a new
    one."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[RedisConnection] | None = None

    @property
    def live(self) -> RedisConnection | None:
        """The connection if it is open, else None. Callers check this property first, because awaiting `get` takes
        longer."""
        connection = self._connection
        return None if connection is None or connection.lost else connection

    async def get(self) -> RedisConnection:
        """Returns the open connection, or opens a new one. Raises UNAVAILABLE if no connection can be opened."""
        if (connection := self.live) is not None:
            return connection
        if self._connecting is None:
            # The connection is opened in its own task, because other callers wait for it even if the first caller is
            # cancelled.
            self._connecting = asyncio.create_task(self._open(), name="redis-connect")
            self._connecting.add_done_callback(self._connected)
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if not connecting.cancelled():
                raise
            # The connection attempt was cancelled by `drop`, not the caller.
            raise unreachable() from None

    def drop(self) -> None:
        """Closes the connection; the next caller opens a new one."""
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
            # Marks the exception as retrieved, in case all callers stopped waiting.
            task.exception()


class Node:
    """One Redis server, or the current master of a Sentinel group. Reads and bulk writes have separate connections, so
    that a bulk of 10,000 writes does not delay a read."""

    def __init__(self, name: str, connect: Connect, clock: Callable[[], float]) -> None:
        """`name` names the server in error texts, such as its host:port. `connect` opens a connection to the server;
        `clock` returns monotonic seconds."""
        self.name = name
        self._dial = connect
        self._clock = clock
        # State of the circuit breaker: None while it is closed. Otherwise callers are rejected, and the value is the
        # monotonic time in seconds from which on a probe may start.
        self._broken_until: float | None = None
        self._probe: asyncio.Task[None] | None = None
        self._reads, self._writes = SharedConnection(self._connect), SharedConnection(self._connect)
        self._idle: list[RedisConnection] = []
        self._slots = asyncio.Semaphore(MAX_DEDICATED)

    async def reads(self) -> RedisConnection:
        """Returns the shared connection for short commands. Raises UNAVAILABLE if it cannot be opened."""
        return self._reads.live or await self._reads.get()

    async def writes(self) -> RedisConnection:
        """Returns the shared connection for long pipelines. Raises UNAVAILABLE if it cannot be opened."""
        return self._writes.live or await self._writes.get()

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[RedisConnection]:
        """Reserves a connection for the `with` block of one caller, who must end each WATCH with EXEC or UNWATCH. Waits
        while MAX_DEDICATED connections are in use. Closes the connection if the block raises. Raises UNAVAILABLE if no
        connection can be opened."""
        async with self._slots:
            connection = await self._take_idle_or_connect()
            try:
                yield connection
            except BaseException:
                # The state of a transaction is unknown, for example after a cancellation between WATCH and EXEC.
                connection.abort()
                raise
            if len(self._idle) < MAX_IDLE and not connection.lost:
                self._idle.append(connection)
            else:
                connection.abort()

    def drop(self) -> None:
        """Closes all connections except the dedicated ones in use. The next call opens new ones."""
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
            # The server is a replica, which accepts no writes: a later attempt connects to the new master.
            connection.abort()
            raise unreachable()
        connection.on_timeout = self._on_read_timeout
        return connection

    def _on_read_timeout(self) -> None:
        self._broken_until = self._clock() + BREAKER_OPEN_S
        # Commands on the other connections would run into the same timeout.
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
            # Marks the exception as retrieved: no caller waits for a probe.
            task.exception()
