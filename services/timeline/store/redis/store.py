"""Stores home timelines in Redis. Redis may lose any of them at any moment, but `read` never returns one that lacks
ids.

Before it pulls, a build creates a list without ids, and a marker with a token of its own. An append adds to a list only
if the list exists (LPUSHX). So a tweet appended before the list was created is in the tweet store and is pulled, and
one appended later is in the list.

`close_build` adds the pulled ids only if marker and list are still those of this build, the list was not trimmed, and
the server process is the same. The marker contains the run id of the server process, because a restart or a fail-over
can lose acknowledged appends: after it every home timeline is cold.

A trim must not remove an id above the floor: if it would, the list is deleted instead (see `trimming`).

Each await is for a reply of Redis, so tests can run other commands between any two commands of this module.
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

# Expiry of the marker and the list of an open build, in milliseconds. A build that takes longer cannot be closed.
# Readers wait 2 s for a build; a minute lets it end on a loaded mesh.
BUILDING_MS = 60_000
# Maximum age, in milliseconds, up to which an open build of another process is not superseded. An older one may belong
# to a process that died, so the next read opens a new build.
OTHERS_BUILD_MS = 5_000
# Expiry of a warm home timeline, in milliseconds: the age from which `FanoutRules.usable` rejects it.
WARM_MS = 30 * 24 * 3_600_000
# Maximum number of attempts to close a build. An attempt fails if an append arrives between WATCH and EXEC. After the
# last one the home timeline stays cold.
CLOSE_TRIES = 3
# Number of keys that Redis looks at per SCAN. It serves no other command meanwhile.
SCAN_COUNT = 1_000


@dataclass(frozen=True, slots=True)
class BuildMarker:
    """An open build, and its marker `B <token> <run id> <opened_ms>`.

    `token` begins with the random name of the store object that opened the build. `run_id` identifies the Redis server
    process. `opened_ms` is in Unix milliseconds.
    """

    user_id: int
    token: str
    run_id: str
    opened_ms: int
    mode: str

    def text(self) -> str:
        """Returns the marker as it is stored."""
        return f"B {self.token} {self.run_id} {self.opened_ms}"


class RedisHomeTimelines(HomeTimelineStore):
    """A HomeTimelineStore in Redis. If Redis does not answer, every home timeline counts as cold, and `append` raises
    UNAVAILABLE."""

    def __init__(self, redis: Redis, limits: ListLimits | None = None) -> None:
        self._redis = redis
        self._limits = limits or ListLimits()
        # The first part of the tokens of this process's builds. This process may supersede its own builds at once,
        # builds of other processes only after OTHERS_BUILD_MS milliseconds.
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
        # If only the list is missing, Redis evicted it, and ids appended since are lost.
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
        # A connection of its own, because WATCH holds for all commands of a connection.
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
        # If Redis cannot be reached, the error is ignored: marker and list expire after BUILDING_MS milliseconds.
        with contextlib.suppress(errors.RoostError):
            async with self._node(build.user_id).dedicated() as connection:
                _, stored = await self._execute(connection, command("WATCH", marker) + command("GET", marker), 2)
                if stored == build.text().encode():
                    # EXEC changes nothing if another build was opened after the WATCH: the marker is then not ours.
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
        # If Redis cannot be reached, the error is ignored: every home timeline counts as cold now, and the next read
        # that reaches Redis checks whether the home timeline is usable.
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
        """Does nothing: the connections belong to the process's backends, which close them."""

    async def _still_open(self, connection: RedisConnection, build: BuildMarker) -> bool:
        """Watches the marker and the list. Returns whether both still belong to the build and the list was not
        trimmed."""
        marker, homes = marker_key(build.user_id), list_key(build.user_id)
        looking = command("WATCH", marker, homes) + command("GET", marker) + command("LINDEX", homes, -1)
        _, stored, last = await self._execute(connection, looking, 3)
        return stored == build.text().encode() and connection.run_id == build.run_id and last == ZERO_ID

    async def _install(
        self, connection: RedisConnection, build: BuildMarker, ids: Sequence[int], floor: int
    ) -> HomeList | None:
        """Adds the pulled ids to the list, makes the home timeline warm and returns it. Returns None, and changes
        nothing, if marker or list changed since the WATCH of `_still_open`."""
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
        """Returns whether the marker belongs to an open build of another process."""
        return marker is not None and marker.startswith(b"B ") and not marker.startswith(f"B {self._name}.".encode())

    def _node(self, user_id: int) -> Node:
        return self._redis.node(str(user_id))

    def _by_node(self, user_ids: Sequence[int]) -> Sequence[tuple[Node, Sequence[int]]]:
        """Returns the users of each server."""
        if not self._redis.clustered:
            return ((self._redis.node(""), user_ids),)
        found: dict[Node, list[int]] = {}
        for user_id in user_ids:
            found.setdefault(self._node(user_id), []).append(user_id)
        return list(found.items())

    async def _execute(self, connection: RedisConnection, payload: bytes, replies: int) -> list[Any]:
        return await execute(self._redis, connection, payload, replies)

    async def _execute_transaction(self, connection: RedisConnection, payload: bytes, replies: int) -> Any:
        """Sends MULTI … EXEC, with `replies` replies in all. Returns the replies of the commands between them, None if
        a watched key changed."""
        return (await self._execute(connection, payload, replies))[-1]
