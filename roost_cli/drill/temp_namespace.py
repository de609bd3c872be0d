"""A place of its own on the servers of the cluster backend, for a drill: whatever else they hold is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
from confluent_kafka.admin import AdminClient

from roost_cli.backends.addresses import missing
from roost_cli.exit_codes import CommandError
from services import catalog
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.config import Settings
from services.platform.opensearch.client import OpenSearch
from services.platform.rpc.errors import RoostError

# Redis databases from here on are looked through for an empty one; 0 is what a mesh takes by default, and tests take those from 100 on.
FIRST_DATABASE, LAST_DATABASE = 1, 99
# Says that a database is taken. It goes by itself where a drill was killed.
CLAIM, CLAIM_S = "roost:drill", 6 * 3600
# Deleting a keyspace or a topic takes a busy server seconds.
TIDY_WITHIN_S = 60.0


@asynccontextmanager
async def scratch(settings: Settings) -> AsyncIterator[Mapping[str, str]]:
    """Settings, as text by name, of a namespace that nobody else has; what was put there goes at the end.

    CommandError where a server cannot be reached, or Redis has no empty database.
    """
    if silent := missing(settings):
        raise CommandError(f"{', '.join(silent)} cannot be reached: `scripts/backends up` starts the servers")
    database = await asyncio.to_thread(_claim, settings.redis)
    namespace = f"drill_{secrets.token_hex(4)}"
    try:
        yield {"backend": "cluster", "namespace": namespace, "keyspaces": "", "redis": database}
    finally:
        await _tidy(settings.model_copy(update={"namespace": namespace, "keyspaces": "", "redis": database}))


def _claim(url: str) -> str:
    """The URL of a database that was empty, and is claimed now."""
    for number in range(FIRST_DATABASE, LAST_DATABASE + 1):
        found = urlsplit(url)._replace(path=f"/{number}").geturl()
        with contextlib.closing(redis.Redis.from_url(found)) as client:
            try:
                if client.dbsize() == 0 and client.set(CLAIM, "taken", nx=True, ex=CLAIM_S):
                    return found
            except redis.ResponseError:
                # There are no more.
                break
    raise CommandError("Redis has no empty database for a drill")


async def _tidy(settings: Settings) -> None:
    """Each server by itself: one that does not answer keeps its leftovers, whose names nobody takes again."""
    with contextlib.suppress(RoostError):
        cassandra = await Cassandra.open(settings)
        try:
            for service in catalog.migrations():
                name = Keyspace.of(cassandra, service).name
                with contextlib.suppress(RoostError):
                    await cassandra.change_schema(f"DROP KEYSPACE IF EXISTS {name}")
        finally:
            await cassandra.close()
    search = OpenSearch.from_settings(settings)
    try:
        with contextlib.suppress(Exception):
            for row in await search.call(
                "GET", "/_cat/indices", parameters={"format": "json", "expand_wildcards": "all"}
            ):
                if _within(row["index"], settings.namespace):
                    await search.call("DELETE", f"/{row['index']}", timeout_s=TIDY_WITHIN_S)
    finally:
        await search.close()
    await asyncio.to_thread(_tidy_log, settings)
    with contextlib.closing(redis.Redis.from_url(settings.redis)) as client, contextlib.suppress(redis.RedisError):
        await asyncio.to_thread(client.flushdb)


def _tidy_log(settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka, "log_level": 0})
    with contextlib.suppress(Exception):
        names = admin.list_topics(timeout=TIDY_WITHIN_S).topics
        if topics := [name for name in names if _within(name, settings.namespace)]:
            _wait(admin.delete_topics(topics).values())
        groups = [group.group_id for group in admin.list_consumer_groups().result(TIDY_WITHIN_S).valid]
        if mine := [group for group in groups if _within(group, settings.namespace)]:
            _wait(admin.delete_consumer_groups(mine).values())


def _wait(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        with contextlib.suppress(Exception):
            future.result(TIDY_WITHIN_S)


def _within(name: str, namespace: str) -> bool:
    return re.match(rf"\.?{namespace}(?![0-9a-z_])", name) is not None
