"""Contract of the Cassandra store beyond the port: several processes, and processes that die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from roost.identity.v1 import user_pb2

from services.identity.password import Credential, Scheme
from services.identity.store import NewAccount, Rotation
from services.platform.events.log import Record
from services.platform.ids.snowflake import first_id_at, wall_clock_ms
from services.platform.rpc import errors
from services.platform.sqlite.event_log import EmbeddedLog
from tests.cluster import Namespace
from tests.contract.identity.test_purge import BEFORE_S, DEACTIVATED, deactivate, purge
from tests.contract.identity.test_store import HASHED, LATER_MS, NOW_MS, SUSPENDED, create, digest, names, new, session
from tests.waiting import run_ready_tasks

pytestmark = pytest.mark.cluster

_ids = count(first_id_at(wall_clock_ms()))
Open = Callable[..., Any]


class Clock:
    """A clock of unix seconds that a test may advance."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def another(tmp_path: Path, namespace: Namespace, clock: Clock) -> AsyncIterator[Open]:
    """Returns another store on the same servers, as in another process."""
    from services.identity.store.cassandra.stores import CassandraIdentityStores, open_stores

    log = await EmbeddedLog.open(tmp_path / "log.db")
    cluster = await namespace.cluster()

    async def another() -> CassandraIdentityStores:
        return await open_stores(cluster, log, clock)

    yield another
    await log.close()


def record(user_id: int) -> Record:
    """Returns an event record of the current time."""
    return Record("user.updated", user_id, next(_ids), b"fact", "")


def made_now(one: NewAccount) -> NewAccount:
    return one._replace(created=record(one.account.user_id))


async def fail(*_: Any) -> None:
    raise errors.unavailable("not now", reason="OUTCOME_UNKNOWN")


async def test_change_in_one_process_is_read_by_all(another: Open) -> None:
    here, there = await another(), await another()
    await create(here, 1, "alice")
    (account,) = await here.accounts.batch_get([1])
    assert (await names(there, [1]))[0][2:] == (account.state, 1)
    for version in range(2, 12):
        changed = account._replace(state=SUSPENDED, version=version)
        assert await here.accounts.replace(changed, [record(1)])
        assert (await names(there, [1]))[0][2:] == (SUSPENDED, version)


async def test_concurrent_changes_in_several_processes_apply_once(another: Open) -> None:
    stores = [await another() for _ in range(4)]
    await create(stores[0], 1, "alice")
    (account,) = await stores[0].accounts.batch_get([1])
    for version in range(2, 6):
        changed = account._replace(state=SUSPENDED, version=version)
        outcomes = await asyncio.gather(*(store.accounts.replace(changed, [record(1)]) for store in stores))
        assert sorted(outcomes) == [False, False, False, True]


async def test_rotate_in_several_processes_has_one_successor(another: Open) -> None:
    stores = [await another() for _ in range(4)]
    await create(stores[0], 1, "alice")
    for presented, successor in (("first 1", "a"), ("a", "b")):
        outcomes = await asyncio.gather(
            *(store.sessions.rotate(1, 100, digest(presented), digest(successor), NOW_MS, LATER_MS) for store in stores)
        )
        assert set(outcomes) == {Rotation.DONE}
    assert await stores[0].sessions.rotate(1, 100, digest("other"), digest("x"), NOW_MS, LATER_MS) is Rotation.REUSED


async def test_sweeper_publishes_only_committed_events_of_dead_writer(
    another: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, sweeper = await another(), await another()
    monkeypatch.setattr(writer.outbox, "publish", lambda records: None)
    await writer.accounts.create(made_now(new(1, "alice")), session(100, 1), digest("first 1"))
    (account,) = await writer.accounts.batch_get([1])
    change = account._replace(state=SUSPENDED, version=2)
    assert await writer.accounts.replace(change, [record(1)], end_sessions=True)
    assert not await writer.accounts.replace(change, [record(1)])
    assert not await writer.sessions.end(100, 1, [record(1)])
    kept = await writer.credentials.get(1)
    assert await writer.credentials.replace(1, kept, kept, 0, [record(1), record(1)])
    clock.ahead_s = 30
    assert await sweeper.outbox.sweep() == 4
    assert await sweeper.outbox.sweep() == 0


async def test_change_with_lost_response_is_detected_by_events(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await another()
    await create(store, 1, "alice")
    (account,) = await store.accounts.batch_get([1])
    execute_lwt = store.accounts._keyspace.execute_lwt

    async def applied_unheard(*values: Any) -> None:
        await execute_lwt(*values)
        await fail()

    monkeypatch.setattr(store.accounts._keyspace, "execute_lwt", applied_unheard)
    assert await store.accounts.replace(account._replace(state=SUSPENDED, version=2), [record(1)])
    monkeypatch.setattr(store.accounts._keyspace, "execute_lwt", fail)
    with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
        await store.accounts.replace(account._replace(version=3), [record(1)])


async def test_event_consumer_reads_change(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = await another(), await another()
    await create(writer, 1, "alice")
    (account,) = await writer.accounts.batch_get([1])
    await reader.accounts.refs([1])
    read: list[asyncio.Task[Any]] = []
    publish = writer.outbox.publish

    def published(records: Any) -> None:
        read.append(asyncio.create_task(reader.accounts.refs([1])))
        publish(records)

    monkeypatch.setattr(writer.outbox, "publish", published)
    put_user = writer.shared_refs._shared.put_user

    async def put_late(*values: Any) -> bool:
        # A read that an earlier publish started would end before this change.
        await run_ready_tasks()
        await asyncio.gather(*read)
        return bool(await put_user(*values))

    monkeypatch.setattr(writer.shared_refs._shared, "put_user", put_late)
    assert await writer.accounts.replace(account._replace(state=SUSPENDED, version=2), [record(1)])
    assert [entry.version for entry in (await read[0]).refs] == [2]


async def test_claim_without_account_expires(another: Open, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    dying, store = await another(), await another()
    with monkeypatch.context() as patch:
        patch.setattr(dying.accounts._keyspace, "batch", fail)
        with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
            await create(dying, 1, "alice")
    assert await store.accounts.by_username("alice") is None
    with pytest.raises(errors.RoostError) as caught:
        await create(store, 2, "alice")
    assert caught.value.reason == "USERNAME_TAKEN"
    clock.ahead_s = 11 * 60
    await create(store, 3, "alice")
    assert (await store.accounts.by_username("alice")).account.user_id == 3
    clock.ahead_s = 30 * 60
    # A claim with an account does not expire.
    with pytest.raises(errors.RoostError, match="ALREADY_EXISTS"):
        await create(store, 4, "alice", "other@example.com")


async def test_create_failure_releases_claims(another: Open) -> None:
    store = await another()
    await create(store, 1, "alice")
    with pytest.raises(errors.RoostError) as caught:
        await create(store, 2, "bob", "alice@example.com")
    assert caught.value.reason == "EMAIL_TAKEN"
    await create(store, 3, "bob")


async def test_first_write_arriving_late_overwrites_nothing(another: Open) -> None:
    from services.identity.store.cassandra.accounts.rows import create_statements

    store = await another()
    made = await create(store, 1, "alice")
    assert await store.accounts.replace(made.account._replace(state=SUSPENDED, version=2), [record(1)])
    await store.accounts._keyspace.batch(create_statements(made, 60))
    (account,) = await store.accounts.batch_get([1])
    assert (account.state, account.version) == (SUSPENDED, 2)


async def test_scan_returns_ids_of_all_buckets(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await another()
    monkeypatch.setattr("services.identity.store.cassandra.accounts.store.BUCKETS_PER_READ", 3)
    ids = [bucket << 51 | low for bucket in (0, 1, 2, 9, 30) for low in (5, 6, 7)]
    await store.accounts.import_accounts([new(user_id, f"user{number}") for number, user_id in enumerate(ids)])
    for limit in (1, 2, 4, 100):
        found: list[int] = []
        while page := await store.accounts.scan(found[-1] if found else 0, limit):
            assert len(page) <= limit
            found += [account.user_id for account in page]
        assert found == ids


async def test_import_during_outage_is_completed(another: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await another()
    monkeypatch.setattr("services.identity.store.cassandra.accounts.creator.BATCH_RETRY_S", 0.01)
    batch = store.accounts._keyspace.batch
    sizes: list[int] = []

    async def refused_at_times(steps: Any) -> None:
        sizes.append(len(steps))
        if len(sizes) in (2, 3, 5):
            await fail()
        await batch(steps)

    monkeypatch.setattr(store.accounts._keyspace, "batch", refused_at_times)
    ids = list(range(1, 101))
    assert await store.accounts.import_accounts([new(user_id, f"user{user_id}") for user_id in ids]) == ids
    assert len(sizes) > 5
    assert [account.user_id for account in await store.accounts.scan(0, 200)] == ids


async def test_import_concurrent_duplicates_create_accounts_once(another: Open) -> None:
    stores = [await another(), await another()]
    first, second = await asyncio.gather(
        *(
            store.accounts.import_accounts([new(start + n, f"user{n}") for n in range(20)])
            for store, start in zip(stores, (100, 200), strict=True)
        )
    )
    assert first == second
    assert sorted(account.user_id for account in await stores[0].accounts.scan(0, 100)) == sorted(first)
    assert all(account.state == user_pb2.USER_STATE_ACTIVE for account in await stores[1].accounts.batch_get(first))


async def test_purge_interrupted_after_each_write_is_completed_by_another_process(
    another: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, other = await another(), await another()
    await create(dying, 1, "alice")
    await deactivate(dying, 1)
    keyspace = dying.purge._keyspace
    execute_lwt = keyspace.execute_lwt
    for allowed in range(3):
        left = [None] * allowed

        async def limited(*values: Any, left: list[None] = left) -> Any:
            if not left:
                await fail()
            left.pop()
            return await execute_lwt(*values)

        with monkeypatch.context() as patch:
            patch.setattr(keyspace, "execute_lwt", limited)
            with pytest.raises(errors.RoostError, match="UNAVAILABLE"):
                await purge(dying, BEFORE_S, 10)
        # Once the purge has begun, the account cannot be activated any more.
        (account,) = await other.accounts.batch_get([1])
        assert account.state == DEACTIVATED
        assert (await other.credentials.get(1) == HASHED) is (allowed == 0)
    assert await purge(other, BEFORE_S, 10) == 1
    assert (await other.accounts.batch_get([1]))[0].email == ""
    for name in ("handles", "emails", "deactivations"):
        assert await keyspace.read(f"SELECT * FROM {name}") == []  # noqa: S608 (ours)
    await create(other, 2, "alice")


async def test_purge_drops_entry_of_failed_deactivation_only_when_it_is_old(another: Open, clock: Clock) -> None:
    store = await another()
    await create(store, 1, "alice")
    (account,) = await store.accounts.batch_get([1])
    now_s = int(clock())
    late = account._replace(state=DEACTIVATED, version=5)
    assert not await store.accounts.replace(late, [record(1)], deactivated_s=now_s)
    listed = "SELECT user_id FROM deactivations"
    for ahead_s, entries in ((0, 1), (599, 1), (700, 0)):
        clock.ahead_s = ahead_s
        assert await purge(store, now_s + 1, 10) == 0
        assert len(await store.purge._keyspace.read(listed)) == entries
    assert (await store.accounts.by_username("alice")).account == account


async def test_purge_after_repeated_deactivation_clears_credential_and_keeps_its_time(another: Open) -> None:
    store = await another()
    await create(store, 1, "alice")
    (account,) = await store.accounts.batch_get([1])
    assert await store.accounts.replace(account._replace(version=2), [record(1)])
    # Another request changed the account first, so the deactivation is repeated in the next second.
    too_late = account._replace(state=DEACTIVATED, version=2)
    assert not await store.accounts.replace(too_late, [record(1)], deactivated_s=BEFORE_S - 1)
    await deactivate(store, 1, BEFORE_S)
    assert await purge(store, BEFORE_S, 10) == 0
    assert (await store.accounts.batch_get([1]))[0].email
    assert await purge(store, BEFORE_S + 1, 10) == 1
    assert await store.credentials.get(1) == Credential(Scheme.NONE, b"")
    assert await store.purge._keyspace.read("SELECT * FROM deactivations") == []


async def test_purge_forgets_past_days_without_entries(another: Open) -> None:
    store = await another()
    for user_id, day in ((1, 3), (2, 4), (3, 9)):
        await create(store, user_id, f"user{user_id}")
        await deactivate(store, user_id, day * 86_400)
    days = "SELECT day FROM deactivation_days WHERE part = 0"
    assert await purge(store, 9 * 86_400, 10) == 2
    # The rows of the days were written less than the margin ago.
    assert [row[0] for row in await store.purge._keyspace.read(days)] == [3, 4, 9]
    store.purge._clock = lambda: time.time() + 120
    assert await purge(store, 9 * 86_400, 10) == 0
    assert [row[0] for row in await store.purge._keyspace.read(days)] == [9]
    assert await purge(store, 10 * 86_400, 10) == 1
