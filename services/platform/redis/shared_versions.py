"""What replicas tell each other through Redis, so that a change acts on the next read, whichever replica answers it.

An entry is a version and bytes: only a higher version replaces it, and a tombstone is the highest. Whoever changes something puts the
entry before it answers; whoever reads and finds none asks the owner and fills it in, briefly, and only where there is none: a fill that
comes late overwrites nothing. A mark is a number that is fresh after every change, to be compared for equality.

Every method is bounded by `redis_timeout_s`, and none raises because of Redis: a read that gets no answer knows nothing, and the caller
asks the owner; a change that cannot be told answers False, is told again as soon as Redis takes it, and by the event's consumer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from struct import Struct
from typing import NamedTuple

from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.redis.shared_keys import SharedKeyClient, key_of

# Above any version: what it stands for is gone, and nothing comes after it.
TOMBSTONE = 2**63 - 1
# Longer than any fill takes by far; after it owners answer, and none has anything older by then.
PUT_TTL_MS = 3_600_000
# How long a fill may be wrong that was read before a change and written after the changer's entry had gone.
FILL_TTL_MS = 60_000
# A mark that goes is made afresh: readers then fetch once what they had.
VERSION_TTL_MS = 24 * 3_600_000
# Of what there are very many, and what is remembered for seconds only.
SHORT_VERSION_TTL_MS = 600_000
# Somebody else changes the same entry in each try: more than a few at the same moment are not people's.
PUT_TRIES = 8
# Random marks may not meet those of callers, nor each other.
VERSION_BITS = 62

_VERSION = Struct(">q")
_USER = "u"
_RELATIONS, _THREAD, _TWEET, _AUTHOR = "rv", "tv", "tm", "am"
_VERSION_TTLS_MS = {
    _RELATIONS: VERSION_TTL_MS,
    _THREAD: VERSION_TTL_MS,
    _TWEET: SHORT_VERSION_TTL_MS,
    _AUTHOR: SHORT_VERSION_TTL_MS,
}


class SharedEntry(NamedTuple):
    """What is shared of one user: `data` is the writer's own, and empty for a tombstone."""

    version: int
    data: bytes


class SharedVersions(SharedKeyClient):
    """Entries of users by id, and marks of relations, threads, tweets and authors."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "shared-entries")
        self._republishers = {kind: partial(self._republish, kind) for kind in _VERSION_TTLS_MS}

    async def users(self, ids: Sequence[int]) -> list[SharedEntry | None]:
        """What is known of each user, in order; None: ask the owner."""
        found = await self._read_values(_USER, ids)
        return [_decode_entry(found.get(i)) for i in ids]

    async def put_user(self, user_id: int, version: int, data: bytes) -> bool:
        """Says how a user stands now, unless something as new is known. False where Redis did not take it."""
        value = _VERSION.pack(version) + data

        async def put() -> bool:
            node = self._redis.node(str(user_id))
            for _ in range(PUT_TRIES):
                async with node.dedicated() as connection:
                    if await self._put_once(connection, key_of(_USER, user_id, connection), version, value):
                        return True
            return False

        return await self._within_timeout(put, False)

    async def fill_users(self, entries: Mapping[int, tuple[int, bytes]]) -> None:
        """What the owner answered, as {id: (version, data)}, where nothing is known."""
        values = {i: _VERSION.pack(version) + data for i, (version, data) in entries.items()}

        async def fill(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            sets = [command("SET", key_of(_USER, i, connection), values[i], "NX", "PX", FILL_TTL_MS) for i in some]
            await self._replies(connection, sets)

        await self._for_each_node(entries, fill)

    async def relation_version(self, user_id: int) -> int | None:
        """The mark of a user's relations, taken before they are read; None where Redis does not answer: they may have changed."""
        return await self._read_version(_RELATIONS, user_id)

    async def change_relations(self, user_ids: Sequence[int], new_version: int) -> bool:
        """Marks them changed, after the rows are written and before the answer. `new_version` was never given before: a new id."""
        return await self._change_versions(_RELATIONS, user_ids, new_version)

    async def thread_version(self, root_id: int) -> int | None:
        """As `relation_version`, of a thread."""
        return await self._read_version(_THREAD, root_id)

    async def change_threads(self, root_ids: Sequence[int], new_version: int) -> bool:
        """As `change_relations`, of threads."""
        return await self._change_versions(_THREAD, root_ids, new_version)

    async def tweet_versions(self, ids: Sequence[int]) -> list[int | None]:
        """As `relation_version`, of tweets with what is counted of them, in order: for what processes remember of each."""
        return await self._read_versions(_TWEET, ids)

    async def change_tweets(self, ids: Sequence[int], new_version: int) -> bool:
        """As `change_relations`, of tweets."""
        return await self._change_versions(_TWEET, ids, new_version)

    async def author_versions(self, user_ids: Sequence[int]) -> list[int | None]:
        """As `tweet_versions`, of what each user has posted."""
        return await self._read_versions(_AUTHOR, user_ids)

    async def change_authors(self, user_ids: Sequence[int], new_version: int) -> bool:
        """As `change_relations`, of what users have posted."""
        return await self._change_versions(_AUTHOR, user_ids, new_version)

    async def _put_once(self, connection: RedisConnection, key: str, version: int, value: bytes) -> bool:
        """False where somebody else changed it meanwhile."""
        _, stored = await self._replies(connection, [command("WATCH", key), command("GET", key)])
        current = _decode_entry(stored)
        if current is not None and current.version >= version:
            await self._replies(connection, [command("UNWATCH")])
            return True
        writing = command("MULTI") + command("SET", key, value, "PX", PUT_TTL_MS) + command("EXEC")
        _, queued, done = await connection.execute(writing, 3)
        if isinstance(queued, ReplyError) or isinstance(done, ReplyError):
            # Out of memory, say: then nothing at all is better than what stood before, and owners are asked.
            await self._replies(connection, [command("DEL", key)])
            return True
        return done is not None

    async def _read_version(self, kind: str, of: int) -> int | None:
        return (await self._read_versions(kind, (of,)))[0]

    async def _read_versions(self, kind: str, of: Sequence[int]) -> list[int | None]:
        found: dict[int, bytes | None] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            found.update(zip(some, await self._values_on(connection, kind, some), strict=True))
            if missing := [i for i in some if found[i] is None]:
                # Only where there is none still: two readers must not give each other's mark away.
                new_version = random.getrandbits(VERSION_BITS) + 1
                keys = [key_of(kind, i, connection) for i in missing]
                making = [command("SET", key, new_version, "NX", "PX", _VERSION_TTLS_MS[kind]) for key in keys]
                made = await self._replies(connection, making + [command("GET", key) for key in keys])
                found.update(zip(missing, made[len(keys) :], strict=True))

        answered = await self._for_each_node(dict.fromkeys(of), read)
        return [int(version) if answered and (version := found[i]) is not None else None for i in of]

    async def _change_versions(self, kind: str, of: Sequence[int], new_version: int) -> bool:
        if await self._write_versions(kind, of, new_version):
            return True
        self._queue_retry(self._republishers[kind], of)
        return False

    async def _republish(self, kind: str, of: Sequence[int]) -> bool:
        # Another number than at first: who read under that one may have read before what changed since.
        return await self._write_versions(kind, of, random.getrandbits(VERSION_BITS) + 1)

    async def _write_versions(self, kind: str, of: Sequence[int], new_version: int) -> bool:
        async def change(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            keys = [key_of(kind, i, connection) for i in some]
            sets = b"".join(command("SET", key, new_version, "PX", _VERSION_TTLS_MS[kind]) for key in keys)
            if any(isinstance(reply, ReplyError) for reply in await connection.execute(sets, len(keys))):
                # As in `_put_once`: readers make a fresh one, or know that they know nothing.
                await self._replies(connection, [command("DEL", key) for key in keys])

        return await self._for_each_node(of, change)


def _decode_entry(value: bytes | None) -> SharedEntry | None:
    return None if value is None else SharedEntry(_VERSION.unpack_from(value)[0], value[_VERSION.size :])
