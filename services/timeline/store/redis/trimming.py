"""Trims the lists of home timelines in Redis. Deletes a list if a trim would remove an id above its floor."""

from __future__ import annotations

from collections.abc import Sequence

from services.platform.redis.client import Redis
from services.platform.redis.connection import ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.rpc import errors
from services.timeline.store.redis.encoding import ListLimits, encode_deletes, list_key

# Lists trimmed in one MULTI … EXEC, whose keys are watched: two round trips. If an append changes one of these lists
# between WATCH and EXEC, Redis executes none of the trims, and a later append queues the lists again. With more lists
# this conflict would be more frequent.
BATCH = 32


async def trim(redis: Redis, node: Node, user_ids: Sequence[int], limits: ListLimits) -> None:
    """Trims the lists of these users that have more than `limits.keep` elements. Ignores errors of Redis: a later
    append trims the lists again."""
    # Redis Cluster allows no transaction across hash slots.
    batch_size = 1 if redis.clustered else BATCH
    try:
        async with node.dedicated() as connection:
            for start in range(0, len(user_ids), batch_size):
                batch = user_ids[start : start + batch_size]
                looking = [
                    command("WATCH", list_key(i)) + command("LRANGE", list_key(i), limits.keep - limits.reserve, -1)
                    for i in batch
                ]
                tails = (await connection.execute(b"".join(looking), 2 * len(batch)))[1::2]
                trims = [
                    trim_command
                    for i, tail in zip(batch, tails, strict=True)
                    if (trim_command := _trim_command(i, tail, limits))
                ]
                if trims:
                    await connection.execute(command("MULTI") + b"".join(trims) + command("EXEC"), len(trims) + 2)
                else:
                    await connection.execute(command("UNWATCH"), 1)
    except errors.RoostError:
        pass


def _trim_command(user_id: int, tail: Sequence[bytes] | ReplyError, limits: ListLimits) -> bytes:
    """Returns the LTRIM or DEL command for a list, or b"" if the list needs no trim. `tail` is the end of the list: the
    `reserve` oldest elements that a trim leaves, then all elements that it removes."""
    if isinstance(tail, ReplyError) or len(tail) <= limits.reserve:
        return b""
    # Big-endian bytes compare like the ids.
    if max(tail[limits.reserve :]) > max(tail[: limits.reserve]):
        # The list is in order of arrival. LTRIM would also remove an id that is newer than some that stay, so the list
        # is deleted; the next read builds it again.
        return encode_deletes((user_id,))
    return command("LTRIM", list_key(user_id), 0, limits.keep - 1)
