"""Trims the lists of home timelines in Redis. Deletes a list if its trim would remove an id above the floor."""

from __future__ import annotations

from collections.abc import Sequence

from services.platform.redis.client import Redis
from services.platform.redis.connection import ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.rpc import errors
from services.timeline.store.redis.encoding import ListLimits, encode_deletes, list_key

# Number of lists trimmed per transaction, which takes two round trips: WATCH and LRANGE of each list, then MULTI …
# EXEC. If an append changes one of the lists between WATCH and EXEC, Redis executes none of the trims, and the next
# append to a list queues it again. With more lists this would happen more often.
BATCH = 32


async def trim(redis: Redis, node: Node, user_ids: Sequence[int], limits: ListLimits) -> None:
    """Trims each list of the users that has more than `limits.keep` elements. All lists are on the server `node`.
    Ignores errors of Redis, because the next append to a list queues it again."""
    # A transaction of Redis Cluster can change keys of one hash slot only.
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
    """Returns the LTRIM or DEL command for the user's list, b"" if the list is not too long. `tail` is the end of the
    list: the last `reserve` elements that a trim keeps, then the elements that it removes."""
    if isinstance(tail, ReplyError) or len(tail) <= limits.reserve:
        return b""
    # Big-endian bytes compare like the ids.
    if max(tail[limits.reserve :]) > max(tail[: limits.reserve]):
        # The list is in the order of the appends, so an id appended late can be among the last elements although it is
        # newer than ids that stay. LTRIM would remove this id, so the list is deleted, and the next read builds the
        # home timeline.
        return encode_deletes((user_id,))
    return command("LTRIM", list_key(user_id), 0, limits.keep - 1)
