"""Migrations: each is applied once, by the first process, and a keyspace of a newer release is rejected."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from services.platform.cassandra import migrations
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.cassandra.migrations import MigrationStatus, migrate, migration_status
from services.platform.config import Settings
from services.platform.rpc import errors

pytestmark = pytest.mark.cluster

FIRST = "CREATE TABLE IF NOT EXISTS one (id bigint PRIMARY KEY); CREATE TABLE IF NOT EXISTS two (id bigint PRIMARY KEY)"
SECOND = "ALTER TABLE one ADD IF NOT EXISTS name text"
APPLIED = "SELECT number, owner FROM schema_migrations WHERE scope = 'schema'"


@pytest.fixture
async def fresh(cassandra: Cassandra) -> AsyncIterator[Keyspace]:
    """A keyspace of this test that does not exist yet."""
    keyspace = Keyspace(cassandra, f"{cassandra.settings.keyspace_prefix}_{uuid.uuid4().hex[:8]}")
    yield keyspace
    await cassandra.change_schema(f"DROP KEYSPACE IF EXISTS {keyspace.name}")


async def expect_error(keyspace: Keyspace, scripts: Sequence[str], words: str) -> None:
    with pytest.raises(errors.RoostError, match=words) as caught:
        await migrate(keyspace, scripts)
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION


async def test_migrate_creates_keyspace_and_applies_appended_scripts(fresh: Keyspace) -> None:
    assert await migration_status(fresh, (FIRST,)) == MigrationStatus(fresh.name, 0, 1)
    assert await migrate(fresh, (FIRST,)) == MigrationStatus(fresh.name, 0, 1)
    await fresh.write("INSERT INTO two (id) VALUES (?)", 1)
    assert await migrate(fresh, (FIRST, SECOND)) == MigrationStatus(fresh.name, 1, 2)
    await fresh.write("INSERT INTO one (id, name) VALUES (?, ?)", 1, "a")
    assert await migrate(fresh, (FIRST, SECOND)) == MigrationStatus(fresh.name, 2, 2)
    # The lease is released.
    assert await fresh.read(APPLIED) == [(1, None), (2, None)]


async def test_migrate_concurrent_processes_apply_each_script_once(
    fresh: Keyspace, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[str] = []
    original = Cassandra.change_schema

    async def counting(self: Cassandra, cql: str, keyspace: str | None = None) -> None:
        changed.append(cql)
        await original(self, cql, keyspace)

    monkeypatch.setattr(Cassandra, "change_schema", counting)
    drivers = [await Cassandra.open(settings) for _ in range(4)]
    try:
        await asyncio.gather(*(migrate(Keyspace(driver, fresh.name), (FIRST, SECOND)) for driver in drivers))
        for driver in drivers:
            await Keyspace(driver, fresh.name).write("INSERT INTO one (id, name) VALUES (?, ?)", 1, "a")
    finally:
        for driver in drivers:
            await driver.close()
    assert [cql for cql in changed if " one" in cql] == [FIRST.partition(";")[0], SECOND]


async def test_migrate_table_that_is_listed_but_not_usable_yet_is_created(
    fresh: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The state in which a process finds the keyspace while another one creates the table.
    replication = f"{{'class': 'NetworkTopologyStrategy', '{fresh.cassandra.settings.cassandra_datacenter}': 1}}"
    await fresh.cassandra.change_schema(f"CREATE KEYSPACE {fresh.name} WITH replication = {replication}")
    monkeypatch.setattr(migrations, "_TABLES", "SELECT keyspace_name FROM keyspaces WHERE keyspace_name = ?")
    assert await migrate(fresh, (FIRST,)) == MigrationStatus(fresh.name, 0, 1)
    assert await migration_status(fresh, (FIRST,)) == MigrationStatus(fresh.name, 1, 1)


async def test_migrate_newer_or_different_schema_is_rejected(fresh: Keyspace) -> None:
    await migrate(fresh, (FIRST, SECOND))
    await expect_error(fresh, (FIRST,), rf"a newer release migrated {fresh.name} \(migration 2 > 1\)")
    await expect_error(
        fresh, (FIRST, SECOND.replace("text", "int")), "migration 2 .* differs from the one that was applied"
    )
    # White space does not change the digest.
    await migrate(fresh, (FIRST.replace(" ", "\n  "), SECOND))


async def test_migrate_at_start_disabled_raises_instruction(fresh: Keyspace, settings: Settings) -> None:
    driver = await Cassandra.open(settings.model_copy(update={"migrate_at_start": False}))
    try:
        careful = Keyspace(driver, fresh.name)
        await expect_error(careful, (FIRST,), "at migration 0 of 1: run `roost migrate` first")
        await migrate(careful, (FIRST,), at_start=False)
        assert (await migrate(careful, (FIRST,))).applied == 1
    finally:
        await driver.close()


async def test_migrate_abandoned_lease_expires(fresh: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(fresh, (FIRST,))
    dead = "a dead process"
    assert (await fresh.execute_lwt(migrations._CLAIM, migrations.LEASE_S, dead, "schema"))[0]
    with monkeypatch.context() as patch, pytest.raises(errors.RoostError, match="another process has been migrating"):
        patch.setattr(migrations, "MAX_POLLS", 2)
        await migrate(fresh, (FIRST, SECOND))
    # Two polls may take any time on a busy machine. Therefore the lease is shortened only now.
    assert (await fresh.execute_lwt(migrations._RENEW, 1, dead, "schema", dead))[0]
    await migrate(fresh, (FIRST, SECOND))
    await fresh.write("INSERT INTO one (id, name) VALUES (?, ?)", 1, "a")


class BusyCassandra:
    """Makes the first attempt of every statement of a migration fail, before it was executed or after (`stored`)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stored: bool, failures: int = 1) -> None:
        self.attempts: Counter[str] = Counter()
        self._stored = stored
        self._failures = failures
        monkeypatch.setattr(migrations, "POLL_INTERVAL_S", 0.01)
        for owner, name in ((Keyspace, "execute_lwt"), (Keyspace, "read_serial"), (Cassandra, "change_schema")):
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, original: Any) -> Any:
        async def execute(target: Any, cql: str, *values: Any) -> Any:
            self.attempts[cql] += 1
            if self.attempts[cql] > self._failures:
                return await original(target, cql, *values)
            if self._stored:
                await original(target, cql, *values)
            raise errors.unavailable("the store did not confirm the write")

        return execute


@pytest.mark.parametrize("stored", [False, True])
async def test_migrate_on_busy_cluster_retries_each_statement(
    fresh: Keyspace, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    with monkeypatch.context() as patch:
        busy = BusyCassandra(patch, stored)
        assert await migrate(fresh, (FIRST, SECOND)) == MigrationStatus(fresh.name, 0, 2)
    assert {migrations._CLAIM, migrations._RENEW, migrations._RECORD, migrations._RELEASE, SECOND} < set(busy.attempts)
    assert min(busy.attempts.values()) == 2
    # A claim that was stored without confirmation is recognised, not waited for until it expires.
    assert busy.attempts[migrations._CLAIM] == 2
    assert await fresh.read(APPLIED) == [(1, None), (2, None)]
    await fresh.write("INSERT INTO one (id, name) VALUES (?, ?)", 1, "a")


async def test_migrate_on_unavailable_cluster_raises_after_max_attempts(
    fresh: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(fresh, (FIRST,))
    with monkeypatch.context() as patch:
        busy = BusyCassandra(patch, stored=False, failures=1_000)
        with pytest.raises(errors.RoostError) as caught:
            await migrate(fresh, (FIRST, SECOND))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert set(busy.attempts.values()) == {migrations.MAX_ATTEMPTS}
