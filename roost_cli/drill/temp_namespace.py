"""Creates a temporary namespace on the servers of the cluster backend, so that a drill changes no other data."""

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

# The first and the last Redis database that a drill may use. A mesh uses database 0 by default, tests use 100 and
# above.
FIRST_DATABASE, LAST_DATABASE = 1, 99
# The key with which a drill reserves a database, and its TTL in seconds. If the drill is killed, other drills may use
# the database after the key has expired.
CLAIM, CLAIM_S = "roost:drill", 6 * 3600
# Timeout in seconds of each deletion. Deleting an index or a topic takes seconds on a busy server.
DELETE_TIMEOUT_S = 60.0


@asynccontextmanager
async def temp_namespace(settings: Settings) -> AsyncIterator[Mapping[str, str]]:
    """Yields the values of the settings that select a new namespace, by name. Deletes the data of the namespace at the
    end of the block.

    The namespace prefixes the names of keyspaces, topics, consumer groups and indexes; in Redis, the drill uses an
    empty database. Raises CommandError if a server cannot be reached, or if Redis has no empty database.
    """
    if silent := missing(settings):
        raise CommandError(f"{', '.join(silent)} cannot be reached: `scripts/backends up` starts the servers")
    database = await asyncio.to_thread(_claim, settings.redis_url)
    namespace = f"drill_{secrets.token_hex(4)}"
    try:
        yield {"backend": "cluster", "namespace": namespace, "keyspace_prefix": "", "redis_url": database}
    finally:
        await _delete_namespace(
            settings.model_copy(update={"namespace": namespace, "keyspace_prefix": "", "redis_url": database})
        )


def _claim(url: str) -> str:
    """Reserves an empty database of the Redis at `url` and returns the URL of the database."""
    for number in range(FIRST_DATABASE, LAST_DATABASE + 1):
        found = urlsplit(url)._replace(path=f"/{number}").geturl()
        with contextlib.closing(redis.Redis.from_url(found)) as client:
            try:
                if client.dbsize() == 0 and client.set(CLAIM, "taken", nx=True, ex=CLAIM_S):
                    return found
            except redis.ResponseError:
                # Redis has no database with this number, and so none with a higher one.
                break
    raise CommandError(
        "the databases 1 to 99 of Redis all contain data: name another Redis in the setting redis_url for the drill"
    )


async def _delete_namespace(settings: Settings) -> None:
    """Deletes the data of the namespace on each server. Skips a server that does not respond: the data that remains
    does no harm, because no later drill uses the same namespace."""
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
                if _in_namespace(row["index"], settings.namespace):
                    await search.call("DELETE", f"/{row['index']}", timeout_s=DELETE_TIMEOUT_S)
    finally:
        await search.close()
    await asyncio.to_thread(_delete_topics_and_groups, settings)
    with contextlib.closing(redis.Redis.from_url(settings.redis_url)) as client, contextlib.suppress(redis.RedisError):
        await asyncio.to_thread(client.flushdb)


def _delete_topics_and_groups(settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers, "log_level": 0})
    with contextlib.suppress(Exception):
        names = admin.list_topics(timeout=DELETE_TIMEOUT_S).topics
        if topics := [name for name in names if _in_namespace(name, settings.namespace)]:
            _wait(admin.delete_topics(topics).values())
        groups = [group.group_id for group in admin.list_consumer_groups().result(DELETE_TIMEOUT_S).valid]
        if mine := [group for group in groups if _in_namespace(group, settings.namespace)]:
            _wait(admin.delete_consumer_groups(mine).values())


def _wait(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        with contextlib.suppress(Exception):
            future.result(DELETE_TIMEOUT_S)


def _in_namespace(name: str, namespace: str) -> bool:
    return re.match(rf"\.?{namespace}(?![0-9a-z_])", name) is not None
