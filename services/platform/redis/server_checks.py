"""What must hold of a Redis server for the protocols over it to be right, looked at when a process starts."""

from __future__ import annotations

import structlog

from services.platform.redis.connection import RedisConnection, ReplyError, command, field_of
from services.platform.rpc import errors

# LPUSHX of several ids, SET with NX and PX, and EXEC that fails on keys that expired under WATCH.
MIN_VERSION = (6, 2)
# These take any key, also one written a moment ago: a tombstone could go while an older fill of the same entry is still under way.
# The others take what is least used, or next to expire; a home that loses its list or its marker is cold, and no tombstone is among
# the least used within the seconds that a fill takes.
UNSAFE_EVICTION_POLICIES = ("allkeys-random", "volatile-random")

_log = structlog.get_logger(__name__)


async def check(connection: RedisConnection, name: str) -> None:
    """FAILED_PRECONDITION, saying what to set, where the server would make us wrong; a warning where it only makes us slow."""
    info, save = await connection.execute(command("INFO") + command("CONFIG", "GET", "save"), 2)
    if isinstance(info, ReplyError):
        raise errors.failed_precondition(f"Redis ({name}) does not answer INFO ({info}): allow the user +info")
    version = field_of(info, "redis_version")
    if not _at_least(version, MIN_VERSION):
        raise errors.failed_precondition(
            f"Redis ({name}) is version {version or 'unknown'}; Roost needs {'.'.join(map(str, MIN_VERSION))} or newer"
        )
    policy = field_of(info, "maxmemory_policy")
    if policy in UNSAFE_EVICTION_POLICIES:
        raise errors.failed_precondition(
            f"Redis ({name}) evicts by {policy}, so the note that a tweet is deleted may go first: "
            "set maxmemory-policy to allkeys-lru (or noeviction)"
        )
    # CONFIG is often forbidden where Redis is hosted; then it is not known, and not needed.
    snapshots = isinstance(save, list) and len(save) > 1 and bool(save[1])
    if field_of(info, "aof_enabled") == "1" or snapshots:
        _log.warning('redis writes to disk, which nothing here needs: set save "" and appendonly no', redis=name)
    if field_of(info, "maxmemory") == "0":
        _log.info("redis has no memory limit: set maxmemory, with allkeys-lru", redis=name)


def _at_least(version: str, oldest: tuple[int, int]) -> bool:
    parts = version.split(".")[:2]
    return len(parts) == 2 and all(part.isdigit() for part in parts) and tuple(map(int, parts)) >= oldest
