"""Opens the cluster backend of one process: Cassandra, Redis, Kafka and a worker id."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import structlog

from services.platform.cassandra.job_leases import JOB_LEASES_MIGRATION, JobLease
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.cassandra.worker_id import LEASES_MIGRATION, CassandraLease
from services.platform.config import Settings
from services.platform.files import open_data_dir
from services.platform.kafka.event_log import KafkaLog
from services.platform.log_events import LogEvent
from services.platform.pagination.cursors import KEY_BYTES
from services.platform.redis.client import Redis
from services.platform.redis.rate_limits import RedisCounts
from services.platform.redis.shared_versions import SharedVersions
from services.platform.redis.url import RedisTopology
from services.platform.redis.versions import RedisVersions
from services.platform.rpc import errors
from services.platform.service import Backends

log = structlog.get_logger()

# The keyspace of the mesh itself, not of a service: worker ids, job leases and shared secrets.
MESH = "mesh"
_SECRETS = "CREATE TABLE IF NOT EXISTS secrets (name text PRIMARY KEY, value blob)"
MESH_MIGRATIONS = (_SECRETS, LEASES_MIGRATION, JOB_LEASES_MIGRATION)
_SECRET = "SELECT value FROM secrets WHERE name = ?"  # noqa: S105 (a statement)
_STORE_SECRET = "INSERT INTO secrets (name, value) VALUES (?, ?) IF NOT EXISTS"  # noqa: S105
_CURSOR_KEY = "cursor_key"


class ClusterBackends:
    """The connections of one process to Cassandra and Redis, and its keyspaces. They are closed with the process, after
    its services."""

    def __init__(self, settings: Settings, cassandra: Cassandra, redis: Redis, stack: AsyncExitStack) -> None:
        self.settings = settings
        self.cassandra = cassandra
        self.redis = redis
        self.shared = SharedVersions(redis)
        self.versions = RedisVersions(self.shared, time.monotonic)
        self._stack = stack
        self._opening = asyncio.Lock()
        self._keyspaces: dict[str, Keyspace] = {}
        stack.push_async_callback(self.shared.close)

    @classmethod
    async def open(cls, settings: Settings, stack: AsyncExitStack) -> ClusterBackends:
        """Opens the connections to Cassandra and Redis, and registers their closing on `stack`. Raises UNAVAILABLE,
        naming the server, if Cassandra or Redis cannot be reached. Raises FAILED_PRECONDITION if the settings do not
        match a server, or if a server's own settings could cause wrong results."""
        _warn_of_shared_redis(settings)
        cassandra = await Cassandra.open(settings)
        stack.push_async_callback(cassandra.close)
        redis = await Redis.open(settings)
        stack.push_async_callback(redis.close)
        return cls(settings, cassandra, redis, stack)

    async def keyspace(self, service: str, migrations: Sequence[str]) -> Keyspace:
        """Returns a service's keyspace; the same object at each call. The first call creates and migrates the keyspace.

        Raises UNAVAILABLE if Cassandra does not answer, or if another process has been migrating the keyspace for
        minutes. Raises FAILED_PRECONDITION if a newer release migrated the keyspace, if an applied migration differs
        from the one in `migrations`, or if migrations are missing and the setting `migrate_at_start` is off.
        """
        async with self._opening:
            if service not in self._keyspaces:
                keyspace = await Keyspace.open(self.cassandra, service, migrations)
                self._stack.push_async_callback(keyspace.close)
                self._keyspaces[service] = keyspace
            return self._keyspaces[service]

    async def job_lease(self, job: str) -> JobLease:
        """Returns the lease of a periodic job, not yet acquired: the caller acquires and renews it by `hold`, which
        returns True in at most one process of the mesh at a time.

        Raises the errors of `keyspace` for the keyspace of the mesh: UNAVAILABLE if Cassandra does not answer, and
        FAILED_PRECONDITION if the keyspace cannot be migrated.
        """
        return JobLease(await self.keyspace(MESH, MESH_MIGRATIONS), job)


async def open_cluster(settings: Settings, stack: AsyncExitStack) -> Backends:
    """Opens the cluster backend: a leased worker id, the event log on Kafka, and one cursor key for the whole mesh.

    Raises UNAVAILABLE if a server cannot be reached or no worker id is free, and FAILED_PRECONDITION if a server is
    configured wrongly.
    """
    if settings.backend != "cluster":
        raise errors.failed_precondition(
            f"this process was started for the cluster backend, but the setting `backend` is {settings.backend}"
        )
    open_data_dir(settings.data_dir)
    cluster = await ClusterBackends.open(settings, stack)
    mesh = await cluster.keyspace(MESH, MESH_MIGRATIONS)
    lease = await CassandraLease.open(mesh, settings)
    stack.push_async_callback(lease.close)
    log = await KafkaLog.open(settings)
    stack.push_async_callback(log.close)
    cursor_key = await _mesh_secret(mesh, _CURSOR_KEY)
    counts = RedisCounts(cluster.redis, cursor_key, time.monotonic)
    await counts.start()
    stack.push_async_callback(counts.stop)
    return Backends(log, lease.snowflake(), cursor_key, lease.fault, cluster.versions, counts, cluster)


async def _mesh_secret(mesh: Keyspace, name: str) -> bytes:
    """Returns the random secret `name`, such as the cursor key, which all processes of the mesh share. Creates the
    secret if it does not exist."""
    known = await mesh.read_serial(_SECRET, name)
    if not known:
        await mesh.execute_lwt(_STORE_SECRET, name, secrets.token_bytes(KEY_BYTES))
        known = await mesh.read_serial(_SECRET, name)
    return bytes(known[0][0])


def _warn_of_shared_redis(settings: Settings) -> None:
    """Logs a warning if the namespace is that of another mesh and the Redis database is the default one: a mesh with
    the default settings uses the same keys there."""
    namespace, redis_url = (Settings.model_fields[name].default for name in ("namespace", "redis_url"))
    is_default = RedisTopology.parse(settings.redis_url).has_database_of(RedisTopology.parse(redis_url))
    if settings.namespace != namespace and is_default:
        log.warning(
            LogEvent.REDIS_DATABASE_SHARED,
            namespace=settings.namespace,
            advice="the namespace does not apply to Redis: choose another database in ROOST_REDIS_URL, such as "
            "redis://127.0.0.1:6379/5, or the meshes on these servers share rate limits and home timelines",
        )
