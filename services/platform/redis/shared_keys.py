"""Keys in Redis that processes share: read and written over the thin connections, bounded in time, and never a reason to fail.

Keys end in the run id of the server they were said to. After a restart from an old snapshot, or a fail-over that lost the last writes,
nothing that stands there is believed.

What must be said and was not taken is said again until it is: readers that still reach Redis would else go on believing what stands there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from services.platform.events.worker_loop import WorkerLoop
from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

T = TypeVar("T")
Publish = Callable[[Sequence[int]], Awaitable[bool]]
"""Says something of these ids; whether Redis took it all."""

# Keys in one command: about 0.2 ms of the server, which answers nobody else meanwhile.
KEYS_PER_COMMAND = 500
# Enough of a run id to tell servers apart.
RUN_ID_CHARS = 10
# Ids of which something is still to be said: some minutes' changes. Those beyond are found out by time, or by the event's consumer.
MAX_PENDING = 100_000


class SharedKeyClient:
    """What the kinds of shared keys have in common. `name` is for the log."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        # By what is to be said, the ids, each with how often it was said in vain.
        self._pending: dict[Publish, dict[int, int]] = {}
        self._retry_loop = WorkerLoop(name, self._retry_pending)

    async def close(self) -> None:
        """Says nothing more. What was not taken until then is found out by time."""
        await self._retry_loop.stop()

    def _queue_retry(self, publish: Publish, ids: Iterable[int]) -> None:
        """Says it of these ids, too, as soon as Redis takes it."""
        pending = self._pending.setdefault(publish, {})
        for i in ids:
            if i in pending or len(pending) < MAX_PENDING:
                pending[i] = pending.get(i, 0) + 1
        self._retry_loop.start()
        self._retry_loop.wake()

    async def _retry_pending(self) -> bool:
        for publish, pending in self._pending.items():
            some = dict(islice(pending.items(), KEYS_PER_COMMAND))
            if not some:
                continue
            if not await publish(list(some)):
                raise errors.unavailable("Redis does not take what others must know", reason=Reason.CACHE_UNAVAILABLE)
            for i, times in some.items():
                # What changed again meanwhile may have come too late for this.
                if pending[i] == times:
                    del pending[i]
            return True
        return False

    async def _read_values(self, kind: str, ids: Sequence[int]) -> dict[int, Any]:
        """The values of these keys, None where there is none; fewer where Redis does not answer."""
        found: dict[int, Any] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            found.update(zip(some, await self._values_on(await node.reads(), kind, some), strict=True))

        await self._for_each_node(ids, read)
        return found

    async def _values_on(self, connection: RedisConnection, kind: str, ids: Sequence[int]) -> list[Any]:
        """Of keys on one server, in their order."""
        keys = [key_of(kind, i, connection) for i in ids]
        if self._redis.clustered:
            # Keys of several slots: a command each, still one round trip.
            return await self._replies(connection, [command("GET", key) for key in keys])
        (values,) = await self._replies(connection, [command("MGET", *keys)])
        return list(values)

    async def _for_each_node(self, ids: Iterable[int], work: Callable[[Node, Sequence[int]], Awaitable[None]]) -> bool:
        """Does the work for the ids of each server, KEYS_PER_COMMAND at a time; False where some of it was not done."""

        async def run() -> bool:
            by_node: dict[Node, list[int]] = {}
            if self._redis.clustered:
                for i in ids:
                    by_node.setdefault(self._redis.node(str(i)), []).append(i)
            else:
                by_node[self._redis.node("")] = list(ids)
            for node, all_ids in by_node.items():
                left = iter(all_ids)
                while some := list(islice(left, KEYS_PER_COMMAND)):
                    await work(node, some)
            return True

        return await self._within_timeout(run, False)

    async def _replies(self, connection: RedisConnection, commands: Sequence[bytes]) -> list[Any]:
        """The replies; a refused command is Redis not answering."""
        replies = await connection.execute(b"".join(commands), len(commands))
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self._redis.refusal(reply)
        return replies

    async def _within_timeout(self, work: Callable[[], Awaitable[T]], unknown: T) -> T:
        try:
            async with asyncio.timeout(self._redis.timeout_s):
                return await work()
        except (TimeoutError, errors.RoostError):
            return unknown


def key_of(kind: str, item_id: int, connection: RedisConnection) -> str:
    """How a key is spelt on that server."""
    # In braces what decides on which node of a cluster it lies: the tag is that node's.
    return f"{kind}:{{{item_id}}}:{connection.run_id[:RUN_ID_CHARS]}"
