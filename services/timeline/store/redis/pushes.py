"""Appends tweet ids to the home timelines that have a list in Redis, by LPUSHX. Trims a list that becomes too long, and
deletes it if its trims fail repeatedly (see `ListLimits`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection, ReplyError
from services.platform.redis.node_pool import Node
from services.timeline.store.redis.encoding import ListLimits, encode_deletes, encode_pushes
from services.timeline.store.redis.trimming import BATCH, trim

# Number of LPUSHX commands per write to the socket; Redis executes them in some milliseconds. Two writes are in flight,
# so that Redis executes the first while the second is sent.
PUSH_BATCH = 1_000
# Prefixes of errors with which a server that runs rejects a command for now. The caller must repeat the append.
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
    """Appends tweet ids to the lists of home timelines that are warm or being built. Cold home timelines have no list
    and do not change.

    Trims lists of more than `trim_above` elements. Deletes list and marker, which makes the home timeline cold, if
    Redis rejected the LPUSHX, or if the list has more than `drop_above` elements.
    """

    def __init__(self, redis: Redis, limits: ListLimits) -> None:
        self._redis = redis
        self._limits = limits
        # By server: the ids of users whose lists are to be trimmed, fewer than BATCH after each `push`. Losing them is
        # harmless: the next append to a list queues it again.
        self._trim_queue: dict[Node, set[int]] = {}

    async def push(self, node: Node, user_ids: Sequence[int], tweet_ids: Sequence[int]) -> int:
        """Appends the tweet ids to the lists of the users, all on the server `node`. Returns the number of lists that
        exist and contain the ids now. Raises UNAVAILABLE if the server does not answer or replies with one of
        `_TRANSIENT_ERRORS`; some lists may then lack the ids."""
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
            # The trims of these lists failed repeatedly, because appends changed the lists between WATCH and EXEC. DEL
            # needs no WATCH, so it cannot fail in this way.
            await execute(self._redis, connection, encode_deletes(too_long), len(too_long))
        if long:
            await self._trim(node, long, due)
        return accepted

    async def _trim(self, node: Node, long: Sequence[int], due: bool) -> None:
        """Queues the lists of the users `long`, which have more than `trim_above - soon` elements. Trims all queued
        lists of the server if at least BATCH are queued, or if `due` is true: a queued list has more than `trim_above`
        elements."""
        queued = self._trim_queue.setdefault(node, set())
        queued.update(long)
        if due or len(queued) >= BATCH:
            del self._trim_queue[node]
            await trim(self._redis, node, list(queued), self._limits)

    async def _drop_refusing(self, connection: RedisConnection, refused: Sequence[tuple[int, ReplyError]]) -> None:
        """Deletes the home timelines whose LPUSHX Redis rejected, for example because it is out of memory: they lack
        the ids, so they must become cold. `refused` contains the user id and the error of each.

        Raises UNAVAILABLE, and deletes nothing, if one of the errors is transient.
        """
        for _, reply in refused:
            if str(reply).startswith(_TRANSIENT_ERRORS):
                raise self._redis.refusal(reply)
        await execute(self._redis, connection, encode_deletes([user_id for user_id, _ in refused]), len(refused))


async def execute(redis: Redis, connection: RedisConnection, payload: bytes, replies: int) -> list[Any]:
    """Sends the encoded commands `payload` and returns their replies, `replies` in number. Raises UNAVAILABLE if a
    reply is an error."""
    answers = await connection.execute(payload, replies)
    for reply in answers:
        if isinstance(reply, ReplyError):
            raise redis.refusal(reply)
    return answers
