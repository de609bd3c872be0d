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
KEYS_AT_ONCE = 500
# Enough of a run id to tell servers apart.
TAG_LETTERS = 10
# Ids of which something is still to be said: some minutes' changes. Those beyond are found out by time, or by the event's consumer.
MAX_UNSAID = 100_000


class SharedKeyClient:
    """What the kinds of shared keys have in common. `name` is for the log."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        # By what is to be said, the ids, each with how often it was said in vain.
        self._pending: dict[Publish, dict[int, int]] = {}
        self._repeating = WorkerLoop(name, self._repeat)

    async def close(self) -> None:
        """Says nothing more. What was not taken until then is found out by time."""
        await self._repeating.stop()

    def _say_again(self, say: Publish, ids: Iterable[int]) -> None:
        """Says it of these ids, too, as soon as Redis takes it."""
        waiting = self._pending.setdefault(say, {})
        for i in ids:
            if i in waiting or len(waiting) < MAX_UNSAID:
                waiting[i] = waiting.get(i, 0) + 1
        self._repeating.start()
        self._repeating.wake()

    async def _repeat(self) -> bool:
        for say, waiting in self._pending.items():
            some = dict(islice(waiting.items(), KEYS_AT_ONCE))
            if not some:
                continue
            if not await say(list(some)):
                raise errors.unavailable("Redis does not take what others must know", reason=Reason.CACHE_UNAVAILABLE)
            for i, times in some.items():
                # What changed again meanwhile may have come too late for this.
                if waiting[i] == times:
                    del waiting[i]
            return True
        return False

    async def _held(self, kind: str, ids: Sequence[int]) -> dict[int, Any]:
        """The values of these keys, None where there is none; fewer where Redis does not answer."""
        found: dict[int, Any] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            found.update(zip(some, await self._values(await node.reads(), kind, some), strict=True))

        await self._each(ids, read)
        return found

    async def _values(self, pipe: RedisConnection, kind: str, ids: Sequence[int]) -> list[Any]:
        """Of keys on one server, in their order."""
        keys = [key_of(kind, i, pipe) for i in ids]
        if self._redis.clustered:
            # Keys of several slots: a command each, still one round trip.
            return await self._answers(pipe, [command("GET", key) for key in keys])
        (values,) = await self._answers(pipe, [command("MGET", *keys)])
        return list(values)

    async def _each(self, ids: Iterable[int], work: Callable[[Node, Sequence[int]], Awaitable[None]]) -> bool:
        """Does the work for the ids of each server, KEYS_AT_ONCE at a time; False where some of it was not done."""

        async def run() -> bool:
            by_node: dict[Node, list[int]] = {}
            if self._redis.clustered:
                for i in ids:
                    by_node.setdefault(self._redis.node(str(i)), []).append(i)
            else:
                by_node[self._redis.node("")] = list(ids)
            for node, all_ids in by_node.items():
                left = iter(all_ids)
                while some := list(islice(left, KEYS_AT_ONCE)):
                    await work(node, some)
            return True

        return await self._within(run, False)

    async def _answers(self, pipe: RedisConnection, commands: Sequence[bytes]) -> list[Any]:
        """The replies; a refused command is Redis not answering."""
        replies = await pipe.ask(b"".join(commands), len(commands))
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise self._redis.refusal(reply)
        return replies

    async def _within(self, work: Callable[[], Awaitable[T]], unknown: T) -> T:
        try:
            async with asyncio.timeout(self._redis.timeout_s):
                return await work()
        except (TimeoutError, errors.RoostError):
            return unknown


def key_of(kind: str, of: int, pipe: RedisConnection) -> str:
    """How a key is spelt on that server."""
    # In braces what decides on which node of a cluster it lies: the tag is that node's.
    return f"{kind}:{{{of}}}:{pipe.run_id[:TAG_LETTERS]}"
