"""Creates and migrates a keyspace. One process at a time applies migrations: the one that holds the migration lease, a
row with a TTL in the keyspace's table `schema_migrations`. Other processes wait until all migrations are applied.

The same table records the applied migrations. It is written by conditional writes only. If the lease of a slow process
expires, two processes may apply the same statements: each statement must be idempotent.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc
import structlog
from cassandra import InvalidRequest

from services.platform.log_events import LogEvent
from services.platform.rpc import errors

if TYPE_CHECKING:
    from services.platform.cassandra.keyspace import Cassandra, Keyspace

# The TTL of the migration lease in seconds: longer than the slowest statement takes. The process that holds the lease
# renews it before each migration.
LEASE_S = 60
# Seconds between two attempts to acquire the migration lease, and the maximum number of attempts; then `migrate` raises
# UNAVAILABLE. These are three minutes in all, in which another process can apply a whole schema even on a slow machine.
POLL_INTERVAL_S = 0.25
MAX_POLLS = 720
# Maximum number of attempts of one statement, including the first. A busy node times out for seconds, most often on the
# first conditional write of a new table. Ten attempts of a read or conditional write take up to 22 s. If they all fail,
# the node is not just busy.
MAX_ATTEMPTS = 10

# A fixed table id: two nodes that create the table at the same time would otherwise create two tables of one name.
_TABLE = """CREATE TABLE IF NOT EXISTS schema_migrations (
    scope text, number int, digest text, owner text STATIC, PRIMARY KEY (scope, number)
) WITH ID = {table_id}"""
_IDS = uuid.UUID("5d5ff1a6-0e0f-4d0b-9a57-6f1f3c1f0c1e")
_SCOPE = "schema"
_APPLIED = "SELECT number, digest FROM schema_migrations WHERE scope = ?"
_RECORD = "INSERT INTO schema_migrations (scope, number, digest) VALUES (?, ?, ?) IF NOT EXISTS"
_CLAIM = "UPDATE schema_migrations USING TTL ? SET owner = ? WHERE scope = ? IF owner = null"
_RENEW = "UPDATE schema_migrations USING TTL ? SET owner = ? WHERE scope = ? IF owner = ?"
_RELEASE = "UPDATE schema_migrations SET owner = null WHERE scope = ? IF owner = ?"
_TABLES = "SELECT table_name FROM tables WHERE keyspace_name = ? AND table_name = 'schema_migrations'"
_DATACENTER = re.compile(r"[\w-]+")

T = TypeVar("T")

log = structlog.get_logger(__name__)


class MigrationStatus(NamedTuple):
    """The number of applied migrations of a keyspace, and the number of migrations that this release knows."""

    keyspace: str
    applied: int
    known: int


async def migration_status(keyspace: Keyspace, migrations: Sequence[str]) -> MigrationStatus:
    """Returns the status of a keyspace; changes nothing.

    Raises FAILED_PRECONDITION if a newer release migrated the keyspace, or if an applied migration differs from the one
    in `migrations`.
    """
    # Reads through `system_schema`, because the service's keyspace need not exist yet.
    system = type(keyspace)(keyspace.cassandra, "system_schema")
    if not await system.read(_TABLES, keyspace.name):
        return MigrationStatus(keyspace.name, 0, len(migrations))
    try:
        applied = await _applied(keyspace, migrations)
    except InvalidRequest:
        # Another process is creating the table at this moment: `system_schema` lists a table before statements can name
        # it. `_create` waits until they can.
        applied = 0
    return MigrationStatus(keyspace.name, applied, len(migrations))


async def migrate(keyspace: Keyspace, migrations: Sequence[str], at_start: bool = True) -> MigrationStatus:
    """Creates the keyspace if it does not exist, and applies the migrations that are missing, in order. Returns the
    status from before.

    Each migration is a script of schema statements separated by `;`. A statement must not contain `;` itself and must
    be idempotent (IF NOT EXISTS). Developers append new migrations to the list and never change an entry. While this
    process applies migrations, it holds the migration lease of the keyspace, so that no other process applies them.

    Raises FAILED_PRECONDITION in these cases: a newer release migrated the keyspace; an applied migration differs from
    the one in `migrations`; migrations are missing, `at_start` is true and the setting `migrate_at_start` is off; the
    setting `cassandra_datacenter` is not a valid name. Raises UNAVAILABLE if another process holds the lease for
    minutes, if the lease expires while this process applies migrations, or if a statement fails MAX_ATTEMPTS times in a
    row because the cluster is unavailable.
    """
    before = await _retried(lambda: migration_status(keyspace, migrations))
    if before.applied == len(migrations):
        return before
    settings = keyspace.cassandra.settings
    if at_start and not settings.migrate_at_start:
        raise errors.failed_precondition(
            f"{keyspace.name} is at migration {before.applied} of {before.known}: run `roost migrate` first"
        )
    await _create(keyspace.cassandra, keyspace.name)
    owner = secrets.token_hex(8)
    if await _claim(keyspace, owner, migrations):
        try:
            await _apply(keyspace, owner, migrations)
        finally:
            await _retried(lambda: keyspace.execute_lwt(_RELEASE, _SCOPE, owner))
    return before


async def _retried(execute: Callable[[], Awaitable[T]]) -> T:
    """Returns the result of `execute`, which must be idempotent. If `execute` raises UNAVAILABLE, calls it again, up to
    MAX_ATTEMPTS times in all, and then raises that error. Raises any other error at once.
    """
    for attempt in range(1, MAX_ATTEMPTS):
        try:
            return await execute()
        except errors.RoostError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            log.warning(LogEvent.MIGRATION_RETRIED, attempt=attempt, of=MAX_ATTEMPTS, error=str(error))
        await asyncio.sleep(POLL_INTERVAL_S)
    return await execute()


async def _create(cassandra: Cassandra, name: str) -> None:
    datacenter, copies = cassandra.settings.cassandra_datacenter, cassandra.settings.cassandra_replication
    if not _DATACENTER.fullmatch(datacenter):
        raise errors.failed_precondition(
            f"cassandra_datacenter must be a datacenter name of letters, digits, _ and -; it is {datacenter!r}"
        )
    replication = f"{{'class': 'NetworkTopologyStrategy', '{datacenter}': {copies}}}"
    create = f"CREATE KEYSPACE IF NOT EXISTS {name} WITH replication = {replication}"
    await _retried(lambda: cassandra.change_schema(create))
    await _retried(lambda: cassandra.change_schema(_TABLE.format(table_id=uuid.uuid5(_IDS, name)), name))


async def _claim(keyspace: Keyspace, owner: str, migrations: Sequence[str]) -> bool:
    """Waits until this process has acquired the migration lease and returns True, or returns False if another process
    has applied all migrations meanwhile. Raises UNAVAILABLE after MAX_POLLS attempts."""
    for _ in range(MAX_POLLS):
        if await _retried(lambda: _applied(keyspace, migrations)) == len(migrations):
            return False
        applied, held_by = await _retried(lambda: keyspace.execute_lwt(_CLAIM, LEASE_S, owner, _SCOPE))
        # An earlier attempt whose reply was lost may have acquired the lease, so the row may name this owner already.
        if applied or held_by == (owner,):
            return True
        await asyncio.sleep(POLL_INTERVAL_S)
    raise errors.unavailable(
        f"another process has been migrating {keyspace.name} for minutes: check that process, then retry"
    )


async def _apply(keyspace: Keyspace, owner: str, migrations: Sequence[str]) -> None:
    first = await _retried(lambda: _applied(keyspace, migrations)) + 1
    for number, script in enumerate(migrations[first - 1 :], first):
        renewed, _ = await _retried(lambda: keyspace.execute_lwt(_RENEW, LEASE_S, owner, _SCOPE, owner))
        if not renewed:
            raise errors.unavailable(f"the lease to migrate {keyspace.name} expired: run the migration again")
        for statement in filter(None, map(str.strip, script.split(";"))):
            await _retried(partial(keyspace.cassandra.change_schema, statement, keyspace.name))
        await _retried(partial(keyspace.execute_lwt, _RECORD, _SCOPE, number, _digest(script)))
        log.info(LogEvent.MIGRATION_APPLIED, keyspace=keyspace.name, number=number, of=len(migrations))


async def _applied(keyspace: Keyspace, migrations: Sequence[str]) -> int:
    """Returns the number of applied migrations. Migrations are applied in order, so the applied ones are the first of
    `migrations`.

    Raises FAILED_PRECONDITION if a newer release migrated the keyspace, or if an applied migration differs from the one
    in `migrations`.
    """
    # If only the static column `owner` (the lease) is set, Cassandra returns one row without a number, which is left
    # out.
    rows = sorted(row for row in await keyspace.read_serial(_APPLIED, _SCOPE) if row[0] is not None)
    if rows and rows[-1][0] > len(migrations):
        raise errors.failed_precondition(
            f"a newer release migrated {keyspace.name} (migration {rows[-1][0]} > {len(migrations)}): run that release"
        )
    for number, digest in rows:
        if digest != _digest(migrations[number - 1]):
            raise errors.failed_precondition(
                f"migration {number} of {keyspace.name} differs from the one that was applied: append to the list, never change it"
                " (while developing: drop the keyspace)"
            )
    return len(rows)


def _digest(script: str) -> str:
    return hashlib.sha256(" ".join(script.split()).encode()).hexdigest()[:16]
