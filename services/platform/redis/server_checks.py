"""Checks at the start of a process that a Redis server's version and settings allow correct results."""

from __future__ import annotations

import structlog

from services.platform.log_events import LogEvent
from services.platform.redis.connection import RedisConnection, ReplyError, command, field_of
from services.platform.rpc import errors

# The oldest Redis version (major, minor) with all features that Roost uses: LPUSHX of several values, SET with NX and
# PX, and EXEC that fails if a watched key expired.
MIN_VERSION = (6, 2)
# Eviction policies with which Roost refuses to start. They evict random keys, also keys that were just written: if a
# changed user reference were evicted, a fill that read the user before the change would store the old user reference.
# Other policies evict the least used keys, or the keys that expire next. They may evict a part of a home timeline,
# which is built again, but no user reference within the seconds that a fill takes.
UNSAFE_EVICTION_POLICIES = ("allkeys-random", "volatile-random")

log = structlog.get_logger(__name__)


async def check(connection: RedisConnection, name: str) -> None:
    """Raises FAILED_PRECONDITION, naming the setting to change, if the server could cause wrong results; logs settings
    that only cost speed."""
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
            f"Redis ({name}) evicts by {policy}, which may evict user references that were just written: "
            "set maxmemory-policy to allkeys-lru (or noeviction)"
        )
    # Hosted Redis servers often forbid CONFIG; the check is optional.
    snapshots = isinstance(save, list) and len(save) > 1 and bool(save[1])
    if field_of(info, "aof_enabled") == "1" or snapshots:
        log.warning(
            LogEvent.REDIS_PERSISTENCE_ENABLED,
            advice='set save "" and appendonly no: nothing here needs it',
            redis=name,
        )
    if field_of(info, "maxmemory") == "0":
        log.info(LogEvent.REDIS_MEMORY_UNLIMITED, advice="set maxmemory, and maxmemory-policy allkeys-lru", redis=name)


def _at_least(version: str, oldest: tuple[int, int]) -> bool:
    parts = version.split(".")[:2]
    return len(parts) == 2 and all(part.isdigit() for part in parts) and tuple(map(int, parts)) >= oldest
