"""Shares user references and versions between processes through Redis, so that the next read in any process returns a
change.

A user reference is stored as a version and bytes. Only a higher version replaces it. A writer stores the user reference
before it answers its caller. A reader that finds none calls the service that owns users (identity) and writes the
result with SET NX and a short TTL, so that a late reader overwrites no newer user reference; this is called a fill. A
version of relations, threads, tweets or authors is a number that is new after every change. A reader uses a cached
value only if the value's version equals the version in Redis.

No method takes longer than `redis_timeout_s` seconds, and none raises an error of Redis. A failed read returns None,
and the caller then calls the service that owns the data. A failed write returns False. Writes of versions are then
retried in the background; the consumer of the change's event writes a user reference again.
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
from services.platform.shared_state import AuthorVersions, SharedUserRefs

# The highest possible version. A user reference with this version (a tombstone) says that the user is deleted, and no
# later write replaces it.
TOMBSTONE = 2**63 - 1
# TTL of a user reference that `put_user` writes. It is far longer than a fill takes, so when the user reference
# expires, no fill with older data is in progress.
PUT_TTL_MS = 3_600_000
# TTL of a user reference that a fill writes. If a fill reads a user before a change but writes after the changed user
# reference has expired, readers get old data for up to this time.
FILL_TTL_MS = 60_000
# TTL of versions of relations and threads. If a version expires, the next reader writes a new one and loads its cached
# values once more.
VERSION_TTL_MS = 24 * 3_600_000
# TTL of versions of tweets and authors. It is short because these versions are many; readers cache data under such a
# version for at most ten minutes.
SHORT_VERSION_TTL_MS = 600_000
# Maximum number of attempts of one `put_user`. An attempt fails only if another process changes the same user reference
# between WATCH and EXEC, which is rare. After the last one `put_user` returns False.
PUT_TRIES = 8
# Number of bits of a random version: so many that it equals neither another random version nor a Snowflake id that a
# caller passes as a version.
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
    """A user reference in Redis: its version, and `data` as the writer has encoded it, empty for a tombstone."""

    version: int
    data: bytes


class SharedVersions(SharedKeyClient, SharedUserRefs, AuthorVersions):
    """Reads and writes user references by user id, and versions of relations, threads, tweets and authors."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "shared-entries")
        self._republishers = {kind: partial(self._republish, kind) for kind in _VERSION_TTLS_MS}

    async def users(self, ids: Sequence[int]) -> list[SharedEntry | None]:
        """Returns the user references in the order of `ids`; None if Redis has none or does not answer: then call the
        owning service (identity)."""
        found = await self._read_values(_USER, ids)
        return [_decode_entry(found.get(i)) for i in ids]

    async def put_user(self, user_id: int, version: int, data: bytes) -> bool:
        """Writes the reference of a user, or nothing if the stored one has an equal or higher version. Returns False if
        Redis does not answer in time: readers may then still get an older user reference."""
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
        """Writes user references that the owning service returned, as {user id: (version, data)}, with the TTL
        FILL_TTL_MS. Leaves keys that exist unchanged, and ignores failures."""
        values = {i: _VERSION.pack(version) + data for i, (version, data) in entries.items()}

        async def fill(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            sets = [command("SET", key_of(_USER, i, connection), values[i], "NX", "PX", FILL_TTL_MS) for i in some]
            await self._replies(connection, sets)

        await self._for_each_node(entries, fill)

    async def relation_version(self, user_id: int) -> int | None:
        """Returns the user's relation version; None if Redis does not answer: then treat cached relations as outdated.
        Read the version before the relations, so that a change between the two reads is noticed."""
        return await self._read_version(_RELATIONS, user_id)

    async def change_relations(self, user_ids: Sequence[int], new_version: int) -> bool:
        """Writes `new_version` as the relation version of each of these users. Call it after the rows are written and
        before the writer's call returns. Returns False if Redis did not accept all writes; then a background task
        writes other new versions until Redis accepts them.

        `new_version` must never have been used before, such as a new Snowflake id.
        """
        return await self._change_versions(_RELATIONS, user_ids, new_version)

    async def thread_version(self, root_id: int) -> int | None:
        """Returns the version of a thread; None if Redis does not answer: then treat the cached thread as outdated.
        Read the version before the thread, so that a change between the two reads is noticed."""
        return await self._read_version(_THREAD, root_id)

    async def change_threads(self, root_ids: Sequence[int], new_version: int) -> bool:
        """Writes `new_version` as the version of the threads with these root tweets; conditions and result are those of
        `change_relations`."""
        return await self._change_versions(_THREAD, root_ids, new_version)

    async def tweet_versions(self, ids: Sequence[int]) -> list[int | None]:
        """Returns the version of each tweet, which changes with the tweet and with its counts, in the order of `ids`;
        None if Redis does not answer."""
        return await self._read_versions(_TWEET, ids)

    async def change_tweets(self, ids: Sequence[int], new_version: int) -> bool:
        """Writes `new_version` as the version of these tweets; conditions and result are those of
        `change_relations`."""
        return await self._change_versions(_TWEET, ids, new_version)

    async def author_versions(self, user_ids: Sequence[int]) -> list[int | None]:
        """Returns for each author, in order, the version of the author's tweets; None if Redis does not answer."""
        return await self._read_versions(_AUTHOR, user_ids)

    async def change_authors(self, user_ids: Sequence[int], new_version: int) -> bool:
        """Writes `new_version` as the version of these authors' tweets; conditions and result are those of
        `change_relations`."""
        return await self._change_versions(_AUTHOR, user_ids, new_version)

    async def _put_once(self, connection: RedisConnection, key: str, version: int, value: bytes) -> bool:
        """Writes the user reference in a transaction, unless the stored version is equal or higher. Returns False, and
        has written nothing, if another process changed the user reference between WATCH and EXEC."""
        _, stored = await self._replies(connection, [command("WATCH", key), command("GET", key)])
        current = _decode_entry(stored)
        if current is not None and current.version >= version:
            await self._replies(connection, [command("UNWATCH")])
            return True
        writing = command("MULTI") + command("SET", key, value, "PX", PUT_TTL_MS) + command("EXEC")
        _, queued, done = await connection.execute(writing, 3)
        if isinstance(queued, ReplyError) or isinstance(done, ReplyError):
            # Redis rejected the write, for example because it is out of memory. Deletes the stale user reference, so
            # that readers call the owning service.
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
                # SET with NX, so that two readers that miss the same key use one version.
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
        # A retry writes another number than the failed attempt: a reader may have cached data under the first number
        # before the latest change.
        return await self._write_versions(kind, of, random.getrandbits(VERSION_BITS) + 1)

    async def _write_versions(self, kind: str, of: Sequence[int], new_version: int) -> bool:
        async def change(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            keys = [key_of(kind, i, connection) for i in some]
            sets = b"".join(command("SET", key, new_version, "PX", _VERSION_TTLS_MS[kind]) for key in keys)
            if any(isinstance(reply, ReplyError) for reply in await connection.execute(sets, len(keys))):
                # Redis rejected a write, for example because it is out of memory. Deletes the stale versions; readers
                # then write new ones.
                await self._replies(connection, [command("DEL", key) for key in keys])

        return await self._for_each_node(of, change)


def _decode_entry(value: bytes | None) -> SharedEntry | None:
    return None if value is None else SharedEntry(_VERSION.unpack_from(value)[0], value[_VERSION.size :])
