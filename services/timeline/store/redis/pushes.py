"""Adds new tweet ids to the lists of home timelines in Redis by LPUSHX, and trims or deletes lists that grow too
long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, ReplyError
from services.platform.redis.node_pool import Node
from services.timeline.store.redis.encoding import ListLimits, encode_deletes, encode_pushes
from services.timeline.store.redis.trimming import BATCH, trim

# LPUSHX commands per write to the socket: Redis applies them in some milliseconds. Two such writes are in flight: Redis
# applies one while the next is sent.
PUSH_BATCH = 1_000
# Errors of a server that is up but cannot apply the command now; the caller must retry.
_TRANSIENT_ERRORS = (
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


class HomePushes:
    """Pushes tweet ids onto the Redis lists of warm home timelines and of those being built; a user without a list gets
    nothing. Trims lists of more than `trim_above` elements. Deletes the list and marker of a home timeline, which makes
    it cold, if Redis rejected a push or if the list has more than `drop_above` elements because its trims failed."""

    def __init__(self, redis: Redis, limits: ListLimits) -> None:
        self._redis = redis
        self._limits = limits
        # User ids whose lists are to be trimmed, by server; at most BATCH each. Losing the queue is harmless: a later
        # append queues the lists again.
        self._trim_queue: dict[Node, set[int]] = {}

    async def push(self, node: Node, user_ids: Sequence[int], tweet_ids: Sequence[int]) -> int:
        """Pushes the tweet ids onto the lists of these users, which are all on one server. Returns how many of the
        lists exist and have the ids now. Raises UNAVAILABLE if the server does not answer or replies with a transient
        error."""
        connection = await node.writes()
        accepted = 0
        long: list[int] = []
        due = False
        too_long: list[int] = []
        soon = self._limits.trim_above - self._limits.soon
        refused: list[tuple[int, ReplyError]] = []
        chunks = [user_ids[start : start + PUSH_BATCH] for start in range(0, len(user_ids), PUSH_BATCH)]
        ahead = connection.execute(encode_pushes(chunks[0], tweet_ids), len(chunks[0]))
        for number, users in enumerate(chunks, 1):
            answer = ahead
            if number < len(chunks):
                ahead = connection.execute(encode_pushes(chunks[number], tweet_ids), len(chunks[number]))
            lengths = await answer
            accepted += len(users) - lengths.count(0)
            for user_id, length in zip(users, lengths, strict=True):
                if length.__class__ is not int:
                    refused.append((user_id, length))
                elif length > self._limits.drop_above:
                    too_long.append(user_id)
                elif length > soon:
                    long.append(user_id)
                    due = due or length > self._limits.trim_above
        if refused:
            accepted -= len(refused)
            await self._drop_refusing(connection, refused)
        if too_long:
            # Their trims failed repeatedly, because appends changed the lists between WATCH and EXEC. A DEL needs no
            # WATCH.
            await execute(self._redis, connection, encode_deletes(too_long), len(too_long))
        if long:
            await self._trim(node, long, due)
        return accepted

    async def _trim(self, node: Node, long: Sequence[int], due: bool) -> None:
        """Queues the lists for trimming and trims the queue if it is full or `due`."""
        queued = self._trim_queue.setdefault(node, set())
        queued.update(long)
        if due or len(queued) >= BATCH:
            del self._trim_queue[node]
            await trim(self._redis, node, list(queued), self._limits)

    async def _drop_refusing(self, connection: RedisConnection, refused: Sequence[tuple[int, ReplyError]]) -> None:
        """Deletes the home timelines whose push Redis rejected, for example because it is out of memory: they lack the
        ids, so they must become cold.

        Raises UNAVAILABLE if an error is transient.
        """
        for _, reply in refused:
            if str(reply).startswith(_TRANSIENT_ERRORS):
                raise self._redis.refusal(reply)
        await execute(self._redis, connection, encode_deletes([user_id for user_id, _ in refused]), len(refused))


async def execute(redis: Redis, connection: RedisConnection, payload: bytes, replies: int) -> list[Any]:
    """Sends the commands and returns their replies. Raises UNAVAILABLE if any of them is an error."""
    answers = await connection.execute(payload, replies)
    for reply in answers:
        if isinstance(reply, ReplyError):
            raise redis.refusal(reply)
    return answers
