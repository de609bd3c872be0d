"""Posts tweets over HTTP while `roost bench` measures reads: at a constant rate, or one after each so many reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from roost_cli.bench import http_load
from roost_cli.exit_codes import FAULTS, CommandError

# Number of connections for posts, each with one post at a time. If the mesh cannot keep the requested rate, further
# posts wait for a connection, and the wait is part of their latency.
CONNECTIONS = 32

Write = Callable[[http_load.Connection], Awaitable[None]]


class BackgroundPoster:
    """Sends posts over `opened` connections. `write` sends one post over a connection and waits for its response."""

    def __init__(self, opened: Sequence[http_load.Connection], write: Write) -> None:
        self._idle: asyncio.Queue[http_load.Connection] = asyncio.Queue()
        for one in opened:
            self._idle.put_nowait(one)
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        # The time from each call of `post` to the response, in seconds, since the last `finish`.
        self._latencies_s: list[float] = []

    def post(self) -> None:
        """Starts to send a post, without waiting for earlier ones."""
        task = asyncio.create_task(self._one(self._loop.time()))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def finish(self) -> list[float]:
        """Waits for the responses to all posts. Returns their latencies in seconds since the last call of this method.
        Raises CommandError if a post failed."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if isinstance(self._failure, CommandError):
            raise self._failure
        if self._failure is not None:
            raise CommandError(f"a post got no response: {self._failure}", FAULTS) from self._failure
        latencies, self._latencies_s = self._latencies_s, []
        return latencies

    async def _one(self, begun: float) -> None:
        connection = await self._idle.get()
        try:
            await self._write(connection)
        finally:
            self._idle.put_nowait(connection)
        self._latencies_s.append(self._loop.time() - begun)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error


@asynccontextmanager
async def poster(address: str, write: Write) -> AsyncIterator[BackgroundPoster]:
    """Opens connections to the gateway at `address` and yields a BackgroundPoster, until the block ends."""
    async with http_load.connections(address, CONNECTIONS) as opened:
        yield BackgroundPoster(opened, write)


@asynccontextmanager
async def posting(writer: BackgroundPoster | None, per_second: float) -> AsyncIterator[None]:
    """Posts `per_second` tweets per second until the block ends; none if that is 0 or if `writer` is None."""
    if writer is None or not per_second:
        yield
        return
    task = asyncio.create_task(_post_at(writer, per_second))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _post_at(writer: BackgroundPoster, per_second: float) -> None:
    loop = asyncio.get_running_loop()
    begun, number = loop.time(), 0
    while True:
        number += 1
        await asyncio.sleep(max(begun + number / per_second - loop.time(), 0))
        writer.post()
