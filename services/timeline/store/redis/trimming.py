"""Cutting lists back: only where the floor that the rest shows stays true, else the home is dropped."""

from __future__ import annotations

from collections.abc import Sequence

from services.platform.redis.client import Redis
from services.platform.redis.connection import ReplyError, command
from services.platform.redis.node_pool import Node
from services.platform.rpc import errors
from services.timeline.store.redis.encoding import Sizes, encode_deletes, list_key

# Lists cut in one transaction: two round trips for so many. More would fail more often, since an append to any of them undoes all.
BATCH = 32


async def trim(redis: Redis, node: Node, user_ids: Sequence[int], sizes: Sizes) -> None:
    """Cuts the lists that are too long. What cannot be done now is done at a next append: nothing here is owed to anybody."""
    # In a cluster a transaction spans no two slots.
    together = 1 if redis.clustered else BATCH
    try:
        async with node.dedicated() as pipe:
            for start in range(0, len(user_ids), together):
                some = user_ids[start : start + together]
                looking = [
                    command("WATCH", list_key(i)) + command("LRANGE", list_key(i), sizes.keep - sizes.reserve, -1)
                    for i in some
                ]
                tails = (await pipe.execute(b"".join(looking), 2 * len(some)))[1::2]
                steps = [step for i, tail in zip(some, tails, strict=True) if (step := _step(i, tail, sizes))]
                if steps:
                    await pipe.execute(command("MULTI") + b"".join(steps) + command("EXEC"), len(steps) + 2)
                else:
                    await pipe.execute(command("UNWATCH"), 1)
    except errors.RoostError:
        pass


def _step(user_id: int, tail: Sequence[bytes] | ReplyError, sizes: Sizes) -> bytes:
    """What to do with a list of which this is the end: its oldest positions that would stay, and all that would go."""
    if isinstance(tail, ReplyError) or len(tail) <= sizes.reserve:
        return b""
    # Big-endian: bytes compare as the ids do.
    if max(tail[sizes.reserve :]) > max(tail[: sizes.reserve]):
        # Something newer than the floor would be lost: it arrived before things that are older.
        return encode_deletes((user_id,))
    return command("LTRIM", list_key(user_id), 0, sizes.keep - 1)
