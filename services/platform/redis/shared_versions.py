"""Shares user references and versions between processes through Redis, so that the next read in any process returns a
change.

A user reference is stored as a version and bytes. Only a higher version replaces it. A writer stores the user reference
before it answers its caller. A reader that finds none calls the service that owns users (identity) and writes the
result with SET NX and a short TTL, so that a late reader overwrites no newer user reference; this is called a fill. A
version of relations, conversations, tweets or authors is a number that is new after every change. A reader uses a
cached value only if the value's version equals the version in Redis.

No method takes longer than `redis_timeout_s` seconds, and none raises an error of Redis. A failed read returns None,
and the caller then calls the service that owns the data. A failed write returns False. Writes of versions are then
retried in the background; the consumer of the change's event writes a user reference again.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from struct import Struct
from typing import NamedTuple

from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.redis.shared_keys import SharedKeyClient
from services.platform.redis.shared_keys import key_of as shared_key
from services.platform.shared_state import SharedUserRefs
from services.platform.versions import Kind, key_of, split_key

# The highest possible version. A user reference with this version (a tombstone) says that the user is deleted, and no
# later write replaces it.
TOMBSTONE = 2**63 - 1
# TTL of a user reference that `put_user` writes. It is far longer than a fill takes, so when the user reference
# expires, no fill with older data is in progress.
PUT_TTL_MS = 3_600_000
# TTL of a user reference that a fill writes. If a fill reads a user before a change but writes after the changed user
# reference has expired, readers get old data for up to this time.
FILL_TTL_MS = 60_000
# TTL of versions of relations and conversations. If a version expires, the next reader writes a new one and loads its
# cached values once more.
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
# The version of something that changes without notice, so that no value may be cached under it.
VOLATILE = 0
# The first part of the names of keys.
REDIS_KINDS: Mapping[Kind, str] = {
    Kind.TWEET: "tm",
    Kind.TWEET_STATE: "ts",
    Kind.REACTION_COUNTS: "cv",
    Kind.USER: "u",
    Kind.AUTHOR: "am",
    Kind.RELATIONS: "rv",
    Kind.REACTIONS: "xv",
    Kind.THREAD: "tv",
}
# The TTLs of versions that are numbers: a reader that finds none writes one.
VERSION_TTLS_MS: Mapping[Kind, int] = {
    kind: VERSION_TTL_MS if kind in (Kind.RELATIONS, Kind.THREAD) else SHORT_VERSION_TTL_MS
    for kind in Kind
    if kind is not Kind.USER
}


class SharedEntry(NamedTuple):
    """A user reference in Redis: its version, and `data` as the writer has encoded it, empty for a tombstone."""

    version: int
    data: bytes


class SharedVersions(SharedKeyClient, SharedUserRefs):
    """Reads and writes user references by user id, and versions by version key."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "shared-entries")

    async def users(self, ids: Sequence[int]) -> list[SharedEntry | None]:
        """Returns one item for each of `ids`, in order: the user reference, or None if Redis has none or does not
        answer. Then call the owning service (identity)."""
        found = await self._read_values(REDIS_KINDS[Kind.USER], ids)
        return [_decode_entry(found.get(i)) for i in ids]

    async def put_user(self, user_id: int, version: int, data: bytes) -> bool:
        """Writes the reference of a user, or nothing if the stored one has an equal or higher version. Returns False if
        Redis does not answer in time: readers may then still get an older user reference."""
        value = _VERSION.pack(version) + data

        async def put() -> bool:
            node = self._redis.node(str(user_id))
            for _ in range(PUT_TRIES):
                async with node.dedicated() as connection:
                    if await self._put_once(connection, redis_key(Kind.USER, user_id, connection), version, value):
                        return True
            return False

        return await self._within_timeout(put, False)

    async def fill_users(self, entries: Mapping[int, tuple[int, bytes]]) -> None:
        """Writes user references that the owning service returned, as {user id: (version, data)}, with the TTL
        FILL_TTL_MS. Leaves keys that exist unchanged, and ignores failures."""
        values = {i: _VERSION.pack(version) + data for i, (version, data) in entries.items()}

        async def fill(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            sets = [
                command("SET", redis_key(Kind.USER, i, connection), values[i], "NX", "PX", FILL_TTL_MS) for i in some
            ]
            await self._replies(connection, sets)

        await self._for_each_node(entries, fill)

    async def change(self, keys: Sequence[int], new_version: int) -> bool:
        """Publishes a new version of these version keys, after the change is stored and before the call returns.
        Returns False if Redis did not accept the new version of every key; a background task then writes the missing
        versions.

        `new_version` must never have been used before, such as a new Snowflake id; or VOLATILE.
        """
        if await self._write_versions(keys, new_version):
            return True
        self._queue_retry(self._republish, keys)
        return False

    async def change_relations(self, user_ids: Sequence[int], new_version: int) -> bool:
        """Publishes new versions of the users' relations, as `change`."""
        return await self.change([key_of(Kind.RELATIONS, i) for i in user_ids], new_version)

    async def relation_version(self, user_id: int) -> int | None:
        """Returns the user's relation version; None if Redis does not answer: then treat cached relations as outdated.
        Read the version before the relations, so that a change between the two reads is noticed."""
        return (await self._read_versions(Kind.RELATIONS, (user_id,)))[0]

    async def thread_version(self, root_id: int) -> int | None:
        """Returns the version of the conversation whose first tweet is `root_id`; None if Redis does not answer: then
        treat cached parts of the conversation as outdated. Read the version before the tweets of the conversation, so
        that a change between the two reads is noticed."""
        return (await self._read_versions(Kind.THREAD, (root_id,)))[0]

    async def tweet_versions(self, ids: Sequence[int]) -> list[int | None]:
        """Returns one item for each of `ids`, in order: the version of the tweet, or None if Redis does not answer. The
        version changes with the tweet and with its counts."""
        return await self._read_versions(Kind.TWEET, ids)

    async def author_versions(self, user_ids: Sequence[int]) -> list[int | None]:
        """Returns one item for each author, in order: the version of the author's tweets, or None if Redis does not
        answer."""
        return await self._read_versions(Kind.AUTHOR, user_ids)

    async def _put_once(self, connection: RedisConnection, key: str, version: int, value: bytes) -> bool:
        """Writes the user reference in a transaction, unless the stored version is equal or higher. Returns False, and
        has written nothing, if another process changed the user reference between WATCH and EXEC. Returns True
        otherwise, also if the stored version is equal or higher, or if Redis rejects the write; after a rejected write
        the stored user reference is deleted."""
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

    async def _read_versions(self, kind: Kind, of: Sequence[int]) -> list[int | None]:
        found: dict[int, bytes | None] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            found.update(zip(some, await self._versions_on(await node.reads(), some), strict=True))

        keys = [key_of(kind, i) for i in of]
        answered = await self._for_each_node(dict.fromkeys(keys), read, hash_tag_of)
        return [int(version) if answered and (version := found[key]) is not None else None for key in keys]

    async def read_known(self, keys: Collection[int]) -> dict[int, bytes]:
        """Returns the versions as they are stored, by version key. Leaves out versions that are VOLATILE, and versions
        that are unknown because Redis does not answer or, for users, has no user reference."""
        found: dict[int, bytes] = {}

        async def read(node: Node, some: Sequence[int]) -> None:
            values = await self._versions_on(await node.reads(), some)
            found.update((key, value) for key, value in zip(some, values, strict=True) if value and value != b"0")

        await self._for_each_node(keys, read, hash_tag_of)
        return found

    async def _versions_on(self, connection: RedisConnection, keys: Sequence[int]) -> list[bytes | None]:
        """Returns the values of version keys that are all on the node of `connection`. Writes new versions for those
        that are missing, except of users. Raises UNAVAILABLE if the node does not answer."""
        parts = [split_key(key) for key in keys]
        kinds = [kind for kind, _ in parts]
        names = [redis_key(*part, connection) for part in parts]
        values = await self._values_of(names, connection)
        missing = [at for at, value in enumerate(values) if value is None and kinds[at] in VERSION_TTLS_MS]
        if missing:
            # SET with NX, so that two readers that miss the same key use one version.
            version = random.getrandbits(VERSION_BITS) + 1
            makes = [command("SET", names[at], version, "NX", "PX", VERSION_TTLS_MS[kinds[at]]) for at in missing]
            made = await self._replies(connection, makes + [command("GET", names[at]) for at in missing])
            for at, value in zip(missing, made[len(missing) :], strict=True):
                values[at] = value
        return values

    async def _republish(self, keys: Sequence[int]) -> bool:
        # A retry writes another number than the failed attempt: a reader may have cached data under the first number
        # before the latest change.
        return await self._write_versions(keys, random.getrandbits(VERSION_BITS) + 1)

    async def _write_versions(self, keys: Sequence[int], new_version: int) -> bool:
        async def change(node: Node, some: Sequence[int]) -> None:
            connection = await node.reads()
            names = [redis_key(*split_key(key), connection) for key in some]
            sets = b"".join(
                command("SET", name, new_version, "PX", VERSION_TTLS_MS[split_key(key)[0]])
                for key, name in zip(some, names, strict=True)
            )
            if any(isinstance(reply, ReplyError) for reply in await connection.execute(sets, len(names))):
                # Redis rejected a write, for example because it is out of memory. Deletes the stale versions; readers
                # then write new ones.
                await self._replies(connection, [command("DEL", name) for name in names])

        return await self._for_each_node(keys, change, hash_tag_of)


def hash_tag_of(key: int) -> str:
    """Returns the hash tag in the Redis key of a version. A Redis cluster computes from the hash tag on which node the
    Redis key is."""
    return str(split_key(key)[1])


def redis_key(kind: Kind, item_id: int, connection: RedisConnection) -> str:
    """Returns the name of a version key on the node of `connection`."""
    return shared_key(REDIS_KINDS[kind], item_id, connection)


def _decode_entry(value: bytes | None) -> SharedEntry | None:
    return None if value is None else SharedEntry(_VERSION.unpack_from(value)[0], value[_VERSION.size :])
