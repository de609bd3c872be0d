"""`roost migrate`: applies the schema migrations of the cluster backend before a release starts."""

from __future__ import annotations

import asyncio
from typing import Annotated

import grpc
import typer

from roost_cli.exit_codes import FAULTS, UNUSABLE, CommandError
from roost_cli.options import settings_with
from services import catalog
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.cassandra.migrations import migrate as apply
from services.platform.cassandra.migrations import migration_status
from services.platform.config import Settings
from services.platform.rpc import errors


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is missing and change nothing.")] = False,
) -> None:
    """Apply the missing schema migrations to the Cassandra that the settings name.

    It may be repeated, and run while the mesh runs. If ROOST_MIGRATE_AT_START is off, this command is the only way to
    apply them.
    """
    try:
        asyncio.run(_migrate(settings_with({}), dry_run))
    except errors.RoostError as error:
        # UNAVAILABLE means that Cassandra cannot be reached. With any other status, it rejected a migration.
        raise CommandError(error.message, UNUSABLE if error.code == grpc.StatusCode.UNAVAILABLE else FAULTS) from error


async def _migrate(settings: Settings, dry_run: bool) -> None:
    cassandra = await Cassandra.open(settings)
    try:
        for service, scripts in catalog.migrations().items():
            keyspace = Keyspace.of(cassandra, service)
            found = await (migration_status(keyspace, scripts) if dry_run else apply(keyspace, scripts, at_start=False))
            missing = found.known - found.applied
            done = "up to date" if not missing else f"{missing} {'missing' if dry_run else 'applied'}"
            typer.echo(f"{found.keyspace}: {done} (of {found.known})")
    finally:
        await cassandra.close()
