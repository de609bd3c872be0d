"""Stores home timelines in Redis. Redis may lose any of them at any moment, but `read` never returns one that lacks
ids.

A build creates an empty list, and a marker with its own token, before it pulls. An append pushes to any existing list
(LPUSHX): an append before the creation belongs to rows that the pull sees, one after it is in the list. Closing adds
the pulled ids if marker and list are still the created ones, nothing was trimmed, and the server process is the same.
The server's run id is part of the marker, so a restart or fail-over, which loses acknowledged pushes, makes every home
timeline cold. A list is trimmed only if the largest id of its `reserve` oldest remaining elements is above all removed
ids; otherwise it is dropped.

Every await is for a reply of Redis, so tests can run other commands between any two commands of this module.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, command
from services.platform.redis.node_pool import Node
from services.platform.rpc import errors
from services.timeline.store import HomeList, HomeTimelineStore, OpenBuild
from services.timeline.store.redis.encoding import (
    ZERO_ID,
    ListLimits,
    WarmMarker,
    decode_home,
    encode_deletes,
    encode_ids,
    group_by_entries,
    list_key,
    marker_key,
)
from services.timeline.store.redis.pushes import HomePushes, execute

# The expiry of the marker of a build. Readers wait 2 s for a pull; after this time nobody waits for the build.
BUILDING_MS = 60_000
# The age up to which the build of another process is not superseded. After it a reader opens a new build.
OTHERS_BUILD_MS = 5_000
# The age from which a home timeline must not be used.
WARM_MS = 30 * 24 * 3_600_000
# Attempts to close a build while appends arrive between WATCH and EXEC; after that the home timeline stays cold.
CLOSE_TRIES = 3
# COUNT of one SCAN.
SCAN_COUNT = 1_000


@dataclass(frozen=True, slots=True)
class BuildMarker:
    """An open build. Its marker is `B <token> <run id> <opened at>`, with the time in Unix milliseconds; the token
    begins with the random name of the store object that opened it."""

    user_id: int
    token: str
    run_id: str
    opened_ms: int
    mode: str

    def text(self) -> str:
        """Returns the marker as it is stored."""
        return f"B {self.token} {self.run_id} {self.opened_ms}"


class RedisHomeTimelines(HomeTimelineStore):
    """HomeTimelineStore on Redis. If Redis does not answer, every home timeline is cold, and appends raise
    UNAVAILABLE."""

    def __init__(self, redis: Redis, limits: ListLimits | None = None) -> None:
        self._redis = redis
        self._limits = limits or ListLimits()
        # Distinguishes the builds of this process, which it may supersede at once, from those of other processes.
        self._name = secrets.token_hex(8)
        self._serial = count(1)
        self._pushes = HomePushes(redis, self._limits)

    async def read(self, user_id: int) -> HomeList | None:
        reading = (
            command("MULTI")
            + command("GET", marker_key(user_id))
            + command("LRANGE", list_key(user_id), 0, -1)
            + command("EXEC")
        )
        try:
            connection = await self._node(user_id).reads()
            marker, stored_ids = await self._execute_transaction(connection, reading, 4)
        except errors.RoostError:
            return None
        warm = WarmMarker.parse(marker)
        # A missing list was evicted, and later appends were not stored.
        if warm is None or warm.run_id != connection.run_id or not stored_ids:
            return None
        return decode_home(warm, stored_ids, self._limits)

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        marker, homes = marker_key(user_id), list_key(user_id)
        try:
            connection = await self._node(user_id).reads()
            stored, left_ms = await execute(
                self._redis, connection, command("GET", marker) + command("PTTL", marker), 2
            )
            if self._is_of_other_process(stored) and left_ms > BUILDING_MS - OTHERS_BUILD_MS:
                return None
            build = BuildMarker(user_id, f"{self._name}.{next(self._serial)}", connection.run_id, opened_ms, mode)
            opening = (
                command("MULTI")
                + command("SET", marker, build.text(), "PX", BUILDING_MS)
                + command("DEL", homes)
                + command("RPUSH", homes, ZERO_ID)
                + command("PEXPIRE", homes, BUILDING_MS)
                + command("EXEC")
            )
            await self._execute_transaction(connection, opening, 6)
        except errors.RoostError:
            return None
        return build

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, BuildMarker), "a build is closed in the store that opened it"
        # A dedicated connection, because WATCH belongs to a connection.
        with contextlib.suppress(errors.RoostError):
            async with self._node(build.user_id).dedicated() as connection:
                for _ in range(CLOSE_TRIES):
                    if not await self._still_open(connection, build):
                        await self._execute(connection, command("UNWATCH"), 1)
                        return None
                    if (home := await self._install(connection, build, ids, floor)) is not None:
                        return home
        return None

    async def abandon_build(self, build: OpenBuild) -> None:
        assert isinstance(build, BuildMarker), "a build is abandoned in the store that opened it"
        marker = marker_key(build.user_id)
        # If Redis cannot be reached, the marker expires after BUILDING_MS.
        with contextlib.suppress(errors.RoostError):
            async with self._node(build.user_id).dedicated() as connection:
                _, stored = await self._execute(connection, command("WATCH", marker) + command("GET", marker), 2)
                if stored == build.text().encode():
                    # EXEC changes nothing if the build was superseded after the WATCH; then the marker belongs to
                    # another build.
                    await self._execute_transaction(
                        connection, command("MULTI") + encode_deletes((build.user_id,)) + command("EXEC"), 3
                    )
                else:
                    await self._execute(connection, command("UNWATCH"), 1)

    async def append(self, entries: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        counts = [0] * len(entries)
        if not entries:
            return counts
        for indexes, user_ids in group_by_entries(entries).items():
            tweet_ids = [entries[index][0] for index in indexes]
            for node, users in self._by_node(user_ids):
                accepted = await self._pushes.push(node, users, tweet_ids)
                for index in indexes:
                    counts[index] += accepted
        return counts

    async def drop(self, user_id: int) -> None:
        # If Redis cannot be reached the home timeline is cold anyway, and it is checked or rebuilt before its next use.
        with contextlib.suppress(errors.RoostError):
            await self._execute(await self._node(user_id).reads(), encode_deletes((user_id,)), 1)

    async def clear(self) -> None:
        for node in self._redis.nodes():
            connection = await node.writes()
            cursor = b"0"
            while True:
                scan = command("SCAN", cursor, "MATCH", "{*}:[hm]", "COUNT", SCAN_COUNT)
                ((cursor, keys),) = await self._execute(connection, scan, 1)
                if keys:
                    await self._execute(connection, b"".join(command("DEL", key) for key in keys), len(keys))
                if cursor == b"0":
                    break

    async def close(self) -> None:
        """Does nothing: the process owns the connections."""

    async def _still_open(self, connection: RedisConnection, build: BuildMarker) -> bool:
        marker, homes = marker_key(build.user_id), list_key(build.user_id)
        looking = command("WATCH", marker, homes) + command("GET", marker) + command("LINDEX", homes, -1)
        _, stored, last = await self._execute(connection, looking, 3)
        return stored == build.text().encode() and connection.run_id == build.run_id and last == ZERO_ID

    async def _install(
        self, connection: RedisConnection, build: BuildMarker, ids: Sequence[int], floor: int
    ) -> HomeList | None:
        """Makes the home timeline warm and returns it. Returns None, and changes nothing, if an append arrived between
        WATCH and EXEC."""
        marker, homes = marker_key(build.user_id), list_key(build.user_id)
        warm = WarmMarker(build.run_id, build.opened_ms, build.mode, floor)
        pulled = command("RPUSHX", homes, *encode_ids(sorted(ids, reverse=True))) if ids else b""
        installing = (
            command("MULTI")
            + pulled
            + command("SET", marker, warm.text(), "PX", WARM_MS)
            + command("PEXPIRE", homes, WARM_MS)
            + command("LRANGE", homes, 0, -1)
            + command("EXEC")
        )
        done = await self._execute_transaction(connection, installing, 6 if ids else 5)
        return None if done is None else decode_home(warm, done[-1], self._limits)

    def _is_of_other_process(self, marker: bytes | None) -> bool:
        """Returns whether the marker is that of a build by another process."""
        return marker is not None and marker.startswith(b"B ") and not marker.startswith(f"B {self._name}.".encode())

    def _node(self, user_id: int) -> Node:
        return self._redis.node(str(user_id))

    def _by_node(self, user_ids: Sequence[int]) -> Sequence[tuple[Node, Sequence[int]]]:
        if not self._redis.clustered:
            return ((self._redis.node(""), user_ids),)
        found: dict[Node, list[int]] = {}
        for user_id in user_ids:
            found.setdefault(self._node(user_id), []).append(user_id)
        return list(found.items())

    async def _execute(self, connection: RedisConnection, payload: bytes, replies: int) -> list[Any]:
        return await execute(self._redis, connection, payload, replies)

    async def _execute_transaction(self, connection: RedisConnection, payload: bytes, replies: int) -> Any:
        """Sends a MULTI … EXEC and returns the reply of EXEC; None if a watched key changed."""
        return (await self._execute(connection, payload, replies))[-1]
