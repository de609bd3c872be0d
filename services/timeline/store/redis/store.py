"""Home timelines in Redis, which may lose them, in whole or in part, at any moment. Why none is ever read that is incomplete:

A build opens an empty list and a marker with its own token before it pulls. An append goes to any list that is there (LPUSHX): one before
the opening belongs to rows that the pull sees, one after it is in the list. The close adds what was pulled, provided that marker and
list are still the ones opened, that nothing was trimmed, and that the server is the same process: its run id stands in the marker, so a
restart or a fail-over, which loses pushes that were acknowledged, makes every home cold. A list is trimmed only where the largest id of
its oldest positions is above all that goes; where it is not, the home is dropped.

No step waits for anything but Redis's replies, so tests can put anything between any two commands.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.rpc import errors
from services.timeline.store import HomeList, HomeTimelineStore, OpenBuild
from services.timeline.store.redis.encoding import (
    ZERO_ID,
    Sizes,
    Warm,
    decode_home,
    encode_deletes,
    encode_pushes,
    group_by_entries,
    list_key,
    marker_key,
    packed,
)
from services.timeline.store.redis.trimming import BATCH, trim

# A pull takes 2 s, or is one that nobody waits for any more.
BUILDING_MS = 60_000
# As long as a reader lets another process build, and pulls; then it opens anew.
OTHERS_BUILD_MS = 5_000
# The age at which a home may not be used any more.
WARM_MS = 30 * 24 * 3_600_000
# Appends that come just between WATCH and EXEC: after so many the home is too lively to be closed now.
CLOSE_TRIES = 3
# Lists pushed to in one write: some milliseconds of the server. Two are in flight: one on its way, one being applied.
PUSHES_AT_ONCE = 1_000
# Keys that one SCAN looks at.
SCAN_COUNT = 1_000

# Where a command did not land although the server is up and has the key: the next try will not do better.
_PASSING = (
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "READONLY",
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "NOREPLICAS",
    "MISCONF",
)


@dataclass(frozen=True, slots=True)
class BuildMarker:
    """A build: its marker is `B <token> <run id> <opened at>`. The token begins with its store's."""

    user_id: int
    token: str
    run_id: str
    opened_ms: int
    mode: str

    def text(self) -> str:
        """The marker, as it is stored."""
        return f"B {self.token} {self.run_id} {self.opened_ms}"


class RedisHomeTimelines(HomeTimelineStore):
    """The port over Redis. Where Redis does not answer every home is cold, and appends are refused, to come again."""

    def __init__(self, redis: Redis, sizes: Sizes | None = None) -> None:
        self._redis = redis
        self._sizes = sizes or Sizes()
        # Tells builds of this process from others': its own it may overtake at once.
        self._name = secrets.token_hex(8)
        self._serial = count(1)
        # Lists to be cut soon, by server: BATCH of them at most, and it hurts nobody if they are forgotten.
        self._soon: dict[Node, set[int]] = {}

    async def read(self, user_id: int) -> HomeList | None:
        reading = (
            command("MULTI")
            + command("GET", marker_key(user_id))
            + command("LRANGE", list_key(user_id), 0, -1)
            + command("EXEC")
        )
        try:
            pipe = await self._node(user_id).reads()
            marker, stored = await self._done(pipe, reading, 4)
        except errors.RoostError:
            return None
        warm = Warm.parse(marker)
        # An empty list is none: it was evicted, and what came since went nowhere.
        if warm is None or warm.run_id != pipe.run_id or not stored:
            return None
        return decode_home(warm, stored, self._sizes)

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        marker, homes = marker_key(user_id), list_key(user_id)
        try:
            pipe = await self._node(user_id).reads()
            held, left_ms = await self._answers(pipe, command("GET", marker) + command("PTTL", marker), 2)
            if self._others(held) and left_ms > BUILDING_MS - OTHERS_BUILD_MS:
                return None
            build = BuildMarker(user_id, f"{self._name}.{next(self._serial)}", pipe.run_id, opened_ms, mode)
            opening = (
                command("MULTI")
                + command("SET", marker, build.text(), "PX", BUILDING_MS)
                + command("DEL", homes)
                + command("RPUSH", homes, ZERO_ID)
                + command("PEXPIRE", homes, BUILDING_MS)
                + command("EXEC")
            )
            await self._done(pipe, opening, 6)
        except errors.RoostError:
            return None
        return build

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, BuildMarker), "a build is closed in the store that opened it"
        # A connection of its own: what is watched belongs to the connection.
        with contextlib.suppress(errors.RoostError):
            async with self._node(build.user_id).dedicated() as pipe:
                for _ in range(CLOSE_TRIES):
                    if not await self._still_open(pipe, build):
                        await self._answers(pipe, command("UNWATCH"), 1)
                        return None
                    if (home := await self._install(pipe, build, ids, floor)) is not None:
                        return home
        return None

    async def abandon_build(self, build: OpenBuild) -> None:
        assert isinstance(build, BuildMarker), "a build is abandoned in the store that opened it"
        marker = marker_key(build.user_id)
        # Out of reach it ends by itself, after BUILDING_MS.
        with contextlib.suppress(errors.RoostError):
            async with self._node(build.user_id).dedicated() as pipe:
                _, held = await self._answers(pipe, command("WATCH", marker) + command("GET", marker), 2)
                if held == build.text().encode():
                    # Not done where it was overtaken just now: then it is another's, and to be left alone.
                    await self._done(pipe, command("MULTI") + encode_deletes((build.user_id,)) + command("EXEC"), 3)
                else:
                    await self._answers(pipe, command("UNWATCH"), 1)

    async def append(self, entries: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        counts = [0] * len(entries)
        if not entries:
            return counts
        for indexes, user_ids in group_by_entries(entries).items():
            tweet_ids = [entries[index][0] for index in indexes]
            for node, users in self._by_node(user_ids):
                taken = await self._push(node, users, tweet_ids)
                for index in indexes:
                    counts[index] += taken
        return counts

    async def drop(self, user_id: int) -> None:
        # Out of reach it is cold, and before it is used again it is looked at again, or opened anew.
        with contextlib.suppress(errors.RoostError):
            await self._answers(await self._node(user_id).reads(), encode_deletes((user_id,)), 1)

    async def clear(self) -> None:
        for node in self._redis.nodes():
            pipe = await node.writes()
            cursor = b"0"
            while True:
                scan = command("SCAN", cursor, "MATCH", "{*}:[hm]", "COUNT", SCAN_COUNT)
                ((cursor, keys),) = await self._answers(pipe, scan, 1)
                if keys:
                    await self._answers(pipe, b"".join(command("DEL", key) for key in keys), len(keys))
                if cursor == b"0":
                    break

    async def close(self) -> None:
        """Nothing to release: the connections are the process's."""

    async def _still_open(self, pipe: RedisConnection, build: BuildMarker) -> bool:
        marker, homes = marker_key(build.user_id), list_key(build.user_id)
        looking = command("WATCH", marker, homes) + command("GET", marker) + command("LINDEX", homes, -1)
        _, held, last = await self._answers(pipe, looking, 3)
        return held == build.text().encode() and pipe.run_id == build.run_id and last == ZERO_ID

    async def _install(
        self, pipe: RedisConnection, build: BuildMarker, ids: Sequence[int], floor: int
    ) -> HomeList | None:
        """Makes the home warm; None where an append came between."""
        marker, homes = marker_key(build.user_id), list_key(build.user_id)
        warm = Warm(build.run_id, build.opened_ms, build.mode, floor)
        pulled = command("RPUSHX", homes, *packed(sorted(ids, reverse=True))) if ids else b""
        installing = (
            command("MULTI")
            + pulled
            + command("SET", marker, warm.text(), "PX", WARM_MS)
            + command("PEXPIRE", homes, WARM_MS)
            + command("LRANGE", homes, 0, -1)
            + command("EXEC")
        )
        done = await self._done(pipe, installing, 6 if ids else 5)
        return None if done is None else decode_home(warm, done[-1], self._sizes)

    async def _push(self, node: Node, user_ids: Sequence[int], tweet_ids: Sequence[int]) -> int:
        """Puts the ids into the lists of one server; how many lists there were."""
        pipe = await node.writes()
        taken = 0
        long: list[int] = []
        due = False
        too_long: list[int] = []
        soon = self._sizes.trim_above - self._sizes.soon
        refused: list[tuple[int, ReplyError]] = []
        chunks = [user_ids[start : start + PUSHES_AT_ONCE] for start in range(0, len(user_ids), PUSHES_AT_ONCE)]
        ahead = pipe.execute(encode_pushes(chunks[0], tweet_ids), len(chunks[0]))
        for number, users in enumerate(chunks, 1):
            answer = ahead
            if number < len(chunks):
                ahead = pipe.execute(encode_pushes(chunks[number], tweet_ids), len(chunks[number]))
            lengths = await answer
            taken += len(users) - lengths.count(0)
            for user_id, length in zip(users, lengths, strict=True):
                if length.__class__ is not int:
                    refused.append((user_id, length))
                elif length > self._sizes.drop_above:
                    too_long.append(user_id)
                elif length > soon:
                    long.append(user_id)
                    due = due or length > self._sizes.trim_above
        if refused:
            taken -= len(refused)
            await self._give_up(pipe, refused)
        if too_long:
            # Trims kept failing. This one cannot: it looks at nothing.
            await self._answers(pipe, encode_deletes(too_long), len(too_long))
        if long:
            await self._trim(node, long, due)
        return taken

    async def _trim(self, node: Node, long: Sequence[int], due: bool) -> None:
        """Cuts the lists, with others that wait for company; `due`: now."""
        waiting = self._soon.setdefault(node, set())
        waiting.update(long)
        if due or len(waiting) >= BATCH:
            del self._soon[node]
            await trim(self._redis, node, list(waiting), self._sizes)

    async def _give_up(self, pipe: RedisConnection, refused: Sequence[tuple[int, ReplyError]]) -> None:
        """Homes that take nothing, in a server that has no memory left say, are dropped: a home is whole or it is cold."""
        for _, reply in refused:
            if str(reply).startswith(_PASSING):
                raise self._redis.refusal(reply)
        await self._answers(pipe, encode_deletes([user_id for user_id, _ in refused]), len(refused))

    def _others(self, marker: bytes | None) -> bool:
        """Whether it is a build of another process."""
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

    async def _answers(self, pipe: RedisConnection, payload: bytes, replies: int) -> list[Any]:
        answers = await pipe.execute(payload, replies)
        for reply in answers:
            if isinstance(reply, ReplyError):
                raise self._redis.refusal(reply)
        return answers

    async def _done(self, pipe: RedisConnection, payload: bytes, replies: int) -> Any:
        """What a transaction gave; None where a watched key changed."""
        return (await self._answers(pipe, payload, replies))[-1]
