"""The connections to one Redis server: two that everybody shares, and a few that are lent for transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.platform.redis.connection import RedisConnection, unreachable
from services.platform.rpc import errors

# A server that could not be reached, or fell silent, is tried again only after this, and by one connection that nobody waits for:
# an outage costs each caller one time-out at most, and then nothing.
BREAK_S = 0.5
# Transactions under WATCH at the same time: builds (64 at most, of which few close at once), trims, changes of shared entries.
LENT_AT_ONCE = 32
# Kept open between two of them.
IDLE_KEPT = 8

Connect = Callable[[], Awaitable[RedisConnection]]


class SharedConnection:
    """One shared connection, made when it is needed and again when it was lost."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._pipe: RedisConnection | None = None
        self._connecting: asyncio.Task[RedisConnection] | None = None

    @property
    def live(self) -> RedisConnection | None:
        """The connection, where it stands: a call saved."""
        pipe = self._pipe
        return None if pipe is None or pipe.lost else pipe

    async def pipe(self) -> RedisConnection:
        """The connection. UNAVAILABLE where none can be had."""
        if (pipe := self.live) is not None:
            return pipe
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
        if self._pipe is not None:
            self._pipe.abort()

    async def _open(self) -> RedisConnection:
        self._pipe = await self._connect()
        return self._pipe

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
        self._slots = asyncio.Semaphore(LENT_AT_ONCE)

    async def reads(self) -> RedisConnection:
        """The shared connection of short commands. UNAVAILABLE where none can be had."""
        return self._reads.live or await self._reads.pipe()

    async def writes(self) -> RedisConnection:
        """The shared connection of long rows of commands. UNAVAILABLE where none can be had."""
        return self._writes.live or await self._writes.pipe()

    @asynccontextmanager
    async def own(self) -> AsyncIterator[RedisConnection]:
        """A connection that nobody else uses meanwhile. Leave it with no key watched; where the body raises, it is given up."""
        async with self._slots:
            pipe = await self._lent()
            try:
                yield pipe
            except BaseException:
                # Cancelled between WATCH and EXEC, say: what the connection is in the middle of is unknown.
                pipe.abort()
                raise
            if len(self._idle) < IDLE_KEPT and not pipe.lost:
                self._idle.append(pipe)
            else:
                pipe.abort()

    def drop(self) -> None:
        """Ends all connections that are not lent; those come from new ones. Also what closing is."""
        self._reads.drop()
        self._writes.drop()
        while self._idle:
            self._idle.pop().abort()
        if self._probe is not None:
            self._probe.cancel()

    async def _lent(self) -> RedisConnection:
        while self._idle:
            pipe = self._idle.pop()
            if not pipe.lost:
                return pipe
        return await self._connect()

    async def _connect(self) -> RedisConnection:
        if self._broken_until is None:
            try:
                return await self._dialled()
            except errors.RoostError:
                self._broken_until = self._clock() + BREAK_S
                raise
        if self._probe is None and self._clock() >= self._broken_until:
            self._probe = asyncio.create_task(self._probed(), name="redis-probe")
            self._probe.add_done_callback(self._probe_ended)
        raise unreachable()

    async def _dialled(self) -> RedisConnection:
        pipe = await self._dial()
        if pipe.role != "master":
            # It was one a moment ago: the new one will be found.
            pipe.abort()
            raise unreachable()
        pipe.on_silence = self._fell_silent
        return pipe

    def _fell_silent(self) -> None:
        self._broken_until = self._clock() + BREAK_S
        # Whoever waits on another connection would wait as long.
        self.drop()

    async def _probed(self) -> None:
        try:
            self._idle.append(await self._dialled())
            self._broken_until = None
        except errors.RoostError:
            self._broken_until = self._clock() + BREAK_S

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._probe = None
        if not task.cancelled():
            # Fetched here: nobody waits for it.
            task.exception()
