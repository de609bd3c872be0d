"""Defines the base class of clients of the keys that processes share in Redis. Every call has a time limit, and returns
a failure instead of raising it.

A node is one Redis server: the only one, the current master of a Sentinel group, or one master of a cluster. Keys end
in the run id of the node to which they were written. After a restart of the node from an old snapshot, or a fail-over
that lost writes, the run id is another one, so stale keys are not read. Failed writes are retried until they succeed;
otherwise readers would continue to use stale values.
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
"""Writes the keys of these ids to Redis; returns True if Redis accepted all of the writes."""

# Maximum number of keys in one command. A command of 500 keys takes a node about 0.2 ms, during which the node serves
# no other client.
KEYS_PER_COMMAND = 500
# Length of the part of the run id that is in a key: enough characters to distinguish the nodes.
RUN_ID_CHARS = 10
# Maximum number of ids per kind of key whose failed write is retried: some minutes of changes. Beyond it a failed write
# is not retried: other processes read the change only when the old key expires, or when a consumer of the change's
# event writes the key again.
MAX_PENDING = 100_000


class SharedKeyClient:
    """Reads and writes shared keys, and retries failed writes in the background. `name` is the name of the retry task
    in the log."""

    def __init__(self, redis: Redis, name: str) -> None:
        self._redis = redis
        # By publish function: the ids whose write failed, each with its number of failed attempts.
        self._pending: dict[Publish, dict[int, int]] = {}
        self._retry_loop = WorkerLoop(name, self._retry_pending)

    async def close(self) -> None:
        """Stops the background retries of writes that Redis did not accept. Other processes then read these changes
        only when the old keys expire, or when a consumer of the change's event writes the keys again."""
        await self._retry_loop.stop()

    def _queue_retry(self, publish: Publish, ids: Iterable[int]) -> None:
        """Queues these ids, for which `publish` failed: the background task calls `publish` for them again until
        `publish` succeeds."""
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
                raise errors.unavailable(
                    "Redis rejects changes that other processes must read", reason=Reason.CACHE_UNAVAILABLE
                )
            for i, times in some.items():
                # A higher count means that another write of the id failed while this attempt ran. The change of that
                # write may be newer than the value that this attempt wrote, so the id stays queued.
                if pending[i] == times:
                    del pending[i]
            return True
        return False

    async def _read_values(self, kind: str, ids: Sequence[int]) -> dict[int, Any]:
        """Returns the values of the keys `<kind>:{<id>}:<run id>` by id, None for a missing key. If Redis does not
        reply in time, the ids of the missing replies are absent."""
        found: dict[int, Any] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            found.update(zip(some, await self._values_on(await node.reads(), kind, some), strict=True))

        await self._for_each_node(ids, read)
        return found

    async def _values_on(self, connection: RedisConnection, kind: str, ids: Sequence[int]) -> list[Any]:
        """Returns the values of these ids' keys in the order of `ids`; None for a missing key. All keys must be on the
        node of `connection`. Raises UNAVAILABLE if the node does not answer or rejects a command."""
        return await self._values_of([key_of(kind, i, connection) for i in ids], connection)

    async def _values_of(self, keys: Sequence[str], connection: RedisConnection) -> list[Any]:
        """Returns the values of these keys in order, under the conditions and with the errors of `_values_on`."""
        if self._redis.clustered:
            # A command of a cluster cannot read keys of several slots, so each key needs its own command; all are sent
            # in one round trip.
            return await self._replies(connection, [command("GET", key) for key in keys])
        (values,) = await self._replies(connection, [command("MGET", *keys)])
        return list(values)

    async def _for_each_node(
        self,
        ids: Iterable[int],
        work: Callable[[Node, Sequence[int]], Awaitable[None]],
        hash_tag: Callable[[int], str] = str,
    ) -> bool:
        """Calls `work` with each node and the ids whose keys are on this node, at most KEYS_PER_COMMAND ids per call.
        `hash_tag` returns the hash tag of an id's key. Returns False, and makes no further call, if a call of `work`
        failed or `redis_timeout_s` seconds have passed."""

        async def run() -> bool:
            by_node: dict[Node, list[int]] = {}
            if self._redis.clustered:
                for i in ids:
                    by_node.setdefault(self._redis.node(hash_tag(i)), []).append(i)
            else:
                by_node[self._redis.node("")] = list(ids)
            for node, all_ids in by_node.items():
                left = iter(all_ids)
                while some := list(islice(left, KEYS_PER_COMMAND)):
                    await work(node, some)
            return True

        return await self._within_timeout(run, False)

    async def _replies(self, connection: RedisConnection, commands: Sequence[bytes]) -> list[Any]:
        """Executes commands that have one reply each and returns the replies in order. Raises UNAVAILABLE if the node
        does not answer or rejects a command."""
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
    """Returns the key of the item `item_id`, such as `<kind>:{42}:<run id of the node of connection>`."""
    # The id is the hash tag, from which a cluster computes the node of the key. The suffix is the run id of that node.
    return f"{kind}:{{{item_id}}}:{connection.run_id[:RUN_ID_CHARS]}"
