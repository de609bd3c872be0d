"""Namespaces on the real servers, for tests of the cluster backend: the counterpart of a data directory of the embedded
backend.

A test gets a clean namespace: its keyspaces are empty, its Redis database is exclusive and flushed, and the names of
its topics, consumer groups and indexes are new. Keyspaces are reused by later tests and runs, because a TRUNCATE takes
2 ms and a CREATE TABLE 50 ms. A slot is a Redis database and the keyspaces of its number; one run owns it at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest

from roost_cli.backends.addresses import missing
from services.catalog import migrations
from services.platform.config import Settings

BACKEND_NAMES = ("embedded", "cluster")
# If it is `cluster`, unreachable servers fail the tests that need them; otherwise those tests are skipped.
REQUIRE = "ROOST_REQUIRE"
# Lower Redis databases are reserved for manual use.
FIRST_DATABASE = 100
# Not truncated: it records which migrations were applied, and the tables remain.
KEPT_TABLES = {"schema_migrations"}
# The keyspaces of tests of the platform's modules, and the tables in KIT.
KIT, KIT_OUTBOX, KIT_JOBS, KIT_LEASES = "kit", "kit_outbox", "kit_jobs", "kit_leases"
TABLES = (
    """
    CREATE TABLE IF NOT EXISTS item (id bigint PRIMARY KEY, name text, data blob);
    CREATE TABLE IF NOT EXISTS entry (list bigint, place bigint, name text, PRIMARY KEY (list, place));
    CREATE TABLE IF NOT EXISTS claim (name text PRIMARY KEY, owner bigint)
    """,
)
# Enough for tests of order and rebalancing; each partition costs a broker some milliseconds.
KAFKA_PARTITIONS = 2
# Concurrent statements while keyspaces are truncated or dropped.
MAX_CONCURRENT_STATEMENTS = 32
TIDY_WITHIN_S = 60.0


@dataclass
class Namespace:
    """The settings of one isolated mesh: `settings` are fields of Settings. Reusing a namespace keeps its data."""

    settings: dict[str, Any]
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def environment(self) -> dict[str, str]:
        """Returns the settings as environment variables, for a child process."""
        return {f"ROOST_{name.upper()}": str(value) for name, value in self.settings.items()}

    async def cluster(self, **changes: Any) -> Any:
        """Opens ClusterBackends on this namespace; closed at the end of the test, on its event loop."""
        from services.platform.backends.cluster import ClusterBackends

        return await ClusterBackends.open(Settings(**(self.settings | changes)), self._stack)

    async def close(self) -> None:
        await self._stack.aclose()


def reused_keyspaces() -> dict[str, Sequence[str]]:
    """Returns the migrations of the keyspaces that later tests and runs reuse, by name without the namespace."""
    # Imported on use, because only the cluster backend needs the driver.
    from services.platform.cassandra.job_leases import JOB_LEASES_MIGRATION
    from services.platform.cassandra.outbox import OUTBOX_MIGRATION
    from services.platform.cassandra.worker_id import LEASES_MIGRATION

    kits = {KIT: TABLES, KIT_OUTBOX: (OUTBOX_MIGRATION,), KIT_JOBS: (JOB_LEASES_MIGRATION,)}
    return {**migrations(), **kits, KIT_LEASES: (LEASES_MIGRATION,)}


class Backend:
    """The backend of this test run, and the namespaces that the current test uses."""

    def __init__(self) -> None:
        self.name = BACKEND_NAMES[0]
        self._servers: _Servers | None = None
        self._by_folder: dict[Path, Namespace] = {}
        self._used: list[Namespace] = []

    def of(self, folder: Path) -> Namespace:
        """Returns the namespace of a data directory within this test; the same one at each call."""
        key = folder.absolute()
        if key not in self._by_folder:
            self._by_folder[key] = self.new()
        return self._by_folder[key]

    def new(self) -> Namespace:
        """Returns a clean namespace for the current test. Skips or fails the test if the servers cannot be reached."""
        namespace = self.take()
        self._used.append(namespace)
        return namespace

    def take(self) -> Namespace:
        """Returns a clean namespace for several tests; end its use by `give_back`. Skips or fails like `new`."""
        if self._servers is None:
            silent = missing(Settings())
            if silent:
                refuse = pytest.fail if os.environ.get(REQUIRE) == "cluster" else pytest.skip
                refuse(f"{', '.join(silent)} cannot be reached: scripts/backends up")
            self._servers = _Servers()
        return Namespace(self._servers.take())

    def give_back(self, namespace: Namespace) -> None:
        """Releases a namespace that `take` returned."""
        assert self._servers is not None
        self._servers.give_back(namespace.settings)

    def release(self) -> None:
        """Releases the namespaces of a test at its end."""
        self._by_folder.clear()
        while self._used:
            self.give_back(self._used.pop())

    def close(self) -> None:
        """Removes what this run created on the servers.

        Called by pytest_unconfigure and not at exit: the driver cannot execute statements once the interpreter shuts
        down.
        """
        if self._servers is not None:
            servers, self._servers = self._servers, None
            servers.close()


backend = Backend()


def environment(folder: Path) -> dict[str, str]:
    """Returns environment variables that give a child process the backend of this run and the namespace of a data
    directory."""
    return backend.of(folder).environment if backend.name == "cluster" else {}


class _Servers:
    """Clients that clean the servers. They block the event loop of the test, which is acceptable in tests."""

    def __init__(self) -> None:
        from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
        from confluent_kafka.admin import AdminClient
        from redis import Redis

        self._base = Settings()
        host, _, port = self._base.cassandra_contact_points[0].rpartition(":")
        # The first CREATE or DROP on a busy machine may take seconds.
        profile = ExecutionProfile(request_timeout=TIDY_WITHIN_S)
        self._driver = Cluster(
            [host],
            int(port),
            protocol_version=5,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            # The driver would otherwise read the metadata of each table after every change.
            schema_metadata_enabled=False,
            token_metadata_enabled=False,
        )
        self._session = self._driver.connect()
        self._kafka = AdminClient({"bootstrap.servers": self._base.kafka_bootstrap_servers, "log_level": 0})
        self._redis_of = lambda number: Redis.from_url(_with_database(self._base.redis_url, number))
        self._free: list[int] = []
        self._serial = 0
        # The write count of each table when it was last truncated.
        self._written: dict[str, int] = {}
        self._locks: dict[int, IO[str]] = {}
        self._tidying = ThreadPoolExecutor(1)
        self._tidied: list[Future[None]] = []
        self._names = f"t{os.getpid()}_"
        # Keyspace names contain a digest of the migrations, so a keyspace always has the schema of the code under test.
        self._kept = f"t{_digest_of_migrations()}_"
        self._reused = set(reused_keyspaces())

    def take(self) -> dict[str, Any]:
        """Returns the settings of a clean namespace."""
        slot = self._free.pop() if self._free else self._claim_slot()
        with contextlib.closing(self._redis_of(slot)) as redis:
            redis.flushdb()
        self._serial += 1
        settings = {
            "backend": "cluster",
            "namespace": f"{self._names}{self._serial}",
            "keyspace_prefix": self._prefix(slot),
            "redis_url": _with_database(self._base.redis_url, slot),
            # The machine also runs all four servers: a slow answer here does not mean an outage.
            "redis_timeout_s": 5.0,
        }
        self._empty(f"{settings['keyspace_prefix']}_")
        if "kafka_partitions" in Settings.model_fields:
            settings["kafka_partitions"] = KAFKA_PARTITIONS
        return settings

    def give_back(self, settings: dict[str, Any]) -> None:
        """Releases the slot for reuse; removes topics and indexes in the background."""
        self._free.append(int(settings["redis_url"].rpartition("/")[2]))
        self._tidied = [future for future in self._tidied if not future.done() or future.result()]
        self._tidied.append(self._tidying.submit(self._remove, settings["namespace"]))

    def close(self) -> None:
        """Removes this run's data except the keyspaces that the next run reuses, and unused keyspaces of other
        migrations."""
        for future in self._tidied:
            with contextlib.suppress(Exception):
                future.result(TIDY_WITHIN_S)
        self._tidying.shutdown()
        try:
            self._drop(name for name in self._keyspaces("t") if not name.startswith(self._kept) and self._is_left(name))
        finally:
            self._driver.shutdown()
            for lock in self._locks.values():
                lock.close()

    def _prefix(self, slot: int) -> str:
        return f"{self._kept}{slot}k"

    def _claim_slot(self) -> int:
        """Claims a slot that no other run on this machine owns; released when this process ends."""
        with contextlib.closing(self._redis_of(0)) as redis:
            databases = int(redis.config_get("databases")["databases"])
        made = self._keyspaces(self._kept)
        slots = range(min(FIRST_DATABASE, databases // 2), databases)
        # Slots whose keyspaces exist come first.
        for slot in sorted(slots, key=lambda slot: not any(name.startswith(self._prefix(slot)) for name in made)):
            if self._claim(slot):
                # Truncates what the previous run left. After a restart of Cassandra there are no write counts that would
                # show which tables have rows.
                self._written.update(self._write_counts(f"{self._prefix(slot)}_"))
                for name in self._keyspaces(f"{self._prefix(slot)}_"):
                    self._each(f"TRUNCATE {name}.{table}" for table in self._tables(name) if table not in KEPT_TABLES)
                return slot
        raise RuntimeError(f"all {databases} Redis databases are in use")

    def _claim(self, slot: int) -> bool:
        folder = Path(tempfile.gettempdir()) / f"roost-redis-{urlsplit(self._base.redis_url).port or 6379}"
        folder.mkdir(exist_ok=True)
        lock = (folder / str(slot)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._locks[slot] = lock
        return True

    def _is_left(self, keyspace: str) -> bool:
        """Returns whether a keyspace belongs to other migrations and to a slot that no run owns."""
        found = re.match(r"t[0-9a-f]{8}_(\d+)k_", keyspace)
        if not found:
            return False
        slot = int(found[1])
        return slot in self._locks or self._claim(slot)

    def _empty(self, prefix: str) -> None:
        """Truncates the tables, of keyspaces with this prefix, that were written to since their last truncation.

        Empty tables may need it too: tombstones of deleted rows would hide rows that a later test writes with an older
        timestamp.
        """
        found = self._keyspaces(prefix)
        # Drops keyspaces that a test created by its own migrations.
        self._drop(name for name in found if name.removeprefix(prefix) not in self._reused)
        written = self._write_counts(prefix)
        changed = [
            table
            for table, count in written.items()
            if count != self._written.get(table, 0) and table.partition(".")[2] not in KEPT_TABLES
        ]
        # Table names cannot be bound as values; these are our own.
        self._each(
            f"TRUNCATE {table}" for table in changed if table.partition(".")[0].removeprefix(prefix) in self._reused
        )
        self._written.update(written)

    def _write_counts(self, prefix: str) -> dict[str, int]:
        """Returns the number of writes since the start of Cassandra, by table of the keyspaces with this prefix."""
        rows = self._session.execute("SELECT keyspace_name, table_name, count FROM system_views.local_write_latency")
        return {f"{row[0]}.{row[1]}": row[2] for row in rows if row[0].startswith(prefix)}

    def _keyspaces(self, prefix: str) -> list[str]:
        # Imported in the function, as in `__init__`: tests of the embedded backend do not need the driver.
        from cassandra import InvalidRequest

        rows = self._session.execute("SELECT keyspace_name, durable_writes FROM system_schema.keyspaces")
        found = [(row[0], row[1]) for row in rows if row[0].startswith(prefix)]
        for name, durable in found:
            if durable and name.startswith(self._kept):
                # Without durable writes a TRUNCATE does not flush first, and takes 3 ms instead of 45 ms. Another run may
                # have dropped the keyspace meanwhile, if it is of a slot of that run.
                with contextlib.suppress(InvalidRequest):
                    self._session.execute(f"ALTER KEYSPACE {name} WITH durable_writes = false")
        return [name for name, _ in found]

    def _tables(self, keyspace: str) -> list[str]:
        asked = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s"
        return [row[0] for row in self._session.execute(asked, [keyspace])]

    def _drop(self, keyspaces: Iterable[str]) -> None:
        for keyspace in keyspaces:
            self._session.execute(f"DROP KEYSPACE IF EXISTS {keyspace}")

    def _each(self, statements: Iterable[str]) -> list[list[Any]]:
        from cassandra.concurrent import execute_concurrent

        asked = [(statement, None) for statement in statements]
        return [
            list(found) for _, found in execute_concurrent(self._session, asked, concurrency=MAX_CONCURRENT_STATEMENTS)
        ]

    def _remove(self, namespace: str) -> None:
        """Removes a namespace's topics, consumer groups and indexes."""
        topics = [name for name in self._kafka.list_topics(timeout=TIDY_WITHIN_S).topics if _within(name, namespace)]
        if topics:
            _settle(self._kafka.delete_topics(topics).values())
            groups = [group.group_id for group in self._kafka.list_consumer_groups().result(TIDY_WITHIN_S).valid]
            mine = [group for group in groups if _within(group, namespace)]
            if mine:
                _settle(self._kafka.delete_consumer_groups(mine).values())
        for index in self._indexes(namespace):
            _http("DELETE", f"{self._base.opensearch_urls}/{index}")

    def _indexes(self, namespace: str) -> Iterator[str]:
        for row in json.loads(
            _http("GET", f"{self._base.opensearch_urls}/_cat/indices?format=json&expand_wildcards=all")
        ):
            if _within(row["index"], namespace):
                yield row["index"]


def _within(name: str, namespace: str) -> bool:
    return re.match(rf"\.?{namespace}(?![0-9a-z_])", name) is not None


def _settle(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        with contextlib.suppress(Exception):
            # A failed removal is harmless: no later namespace has the same name.
            future.result(TIDY_WITHIN_S)


def _with_database(url: str, number: int) -> str:
    return urlsplit(url)._replace(path=f"/{number}").geturl()


def _http(method: str, url: str) -> bytes:
    asked = urlsplit(url)
    assert asked.hostname is not None
    connection = http.client.HTTPConnection(asked.hostname, asked.port or 9200, timeout=TIDY_WITHIN_S)
    try:
        connection.request(method, asked._replace(scheme="", netloc="").geturl())
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        # A test may have stopped the server; then there is nothing to remove.
        return b"[]"
    finally:
        connection.close()


def _digest_of_migrations() -> str:
    return hashlib.sha256(repr(sorted(reused_keyspaces().items())).encode()).hexdigest()[:8]
