"""The Cassandra client: results, errors and timeouts, also over a connection that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from cassandra import InvalidRequest

from services.platform.cassandra import keyspace as module
from services.platform.cassandra import prepared_statements
from services.platform.cassandra.driver import (
    FETCH_SIZE,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    SERIAL,
    STATEMENT_TIMEOUT_S,
)
from services.platform.cassandra.keyspace import MAX_BATCH, MAX_CONCURRENT_STATEMENTS, MAX_ROWS, Cassandra, Keyspace
from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.context import Call, current_call
from tests.cluster import TABLES
from tests.contract.platform.conftest import Proxy, until

pytestmark = pytest.mark.cluster

# A statement without an answer would otherwise never end.
ENDS_WITHIN_S = 30.0

PUT = "INSERT INTO item (id, name) VALUES (?, ?)"
GET = "SELECT name FROM item WHERE id = ?"
PUT_ENTRY = "INSERT INTO entry (list, place, name) VALUES (?, ?, ?)"
ENTRIES = "SELECT place FROM entry WHERE list = ?"
CLAIM = "INSERT INTO claim (name, owner) VALUES (?, ?) IF NOT EXISTS"
OWNER = "SELECT owner FROM claim WHERE name = ?"
# Seconds after which the statements of an impatient connection time out.
IMPATIENT_S = 0.4


@contextmanager
def call_with_seconds_left(seconds: float) -> Iterator[None]:
    """Runs the body as a call with this many seconds left."""
    token = current_call.set(Call(deadline=asyncio.get_running_loop().time() + seconds))
    try:
        yield
    finally:
        current_call.reset(token)


def make_impatient(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the statements of this keyspace's connection time out after IMPATIENT_S. Other connections stay patient, as
    a busy machine needs."""
    run = keyspace.cassandra.run

    async def run_impatiently(statements: Any, profile: Any, deadline: float, *page: Any, **options: Any) -> Any:
        soon = asyncio.get_running_loop().time() + IMPATIENT_S
        return await run(statements, profile, min(deadline, soon), *page, **options)

    monkeypatch.setattr(keyspace.cassandra, "run", run_impatiently)


@contextmanager
def expect_error(code: str, reason: str = "") -> Iterator[None]:
    with pytest.raises(errors.RoostError) as caught:
        yield
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode[code], reason or code)


async def test_read_returns_written_values_with_types(keyspace: Keyspace) -> None:
    await keyspace.write("INSERT INTO item (id, name, data) VALUES (?, ?, ?)", 2**62, "ä \0 '; DROP", b"\0\xff")
    assert await keyspace.read("SELECT id, name, data FROM item WHERE id = ?", 2**62) == [
        (2**62, "ä \0 '; DROP", b"\0\xff")
    ]
    assert await keyspace.read(GET, 1) == []
    await keyspace.write_each([(PUT, (n, str(n))) for n in range(3)])
    assert sorted(await keyspace.read("SELECT name FROM item WHERE id IN ?", [0, 2, 9])) == [("0",), ("2",)]


async def test_keyspaces_are_separate_without_server_warnings(
    cassandra: Cassandra, keyspace: Keyspace, caplog: pytest.LogCaptureFixture
) -> None:
    other = await Keyspace.open(cassandra, "other", TABLES)
    # Like the statements of services, with line breaks.
    change = "\nUPDATE\n  item SET name = ? WHERE id = ?\n"
    for own, name in ((keyspace, "a"), (other, "b")):
        await own.write(PUT, 1, name)
        await own.batch([(change, (name, 2)), ("DELETE FROM item WHERE id = ?", (1,))])
        await own.execute_lwt(CLAIM, name, 1)
    for own, name in ((keyspace, "a"), (other, "b")):
        assert await own.read_each(GET, [(1,), (2,)]) == [[], [(name,)]]
        assert await own.read_serial("SELECT name FROM claim WHERE name IN ?", ["a", "b"]) == [(name,)]
    assert not [record for record in caplog.records if record.name == "cassandra.protocol"]


async def test_read_returns_all_pages_or_raises_beyond_max_rows(
    keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * FETCH_SIZE + 7
    await keyspace.write_each((PUT_ENTRY, (1, place, "x")) for place in range(count))
    assert await keyspace.read(ENTRIES, 1) == [(place,) for place in range(count)]
    assert [len(rows) for rows in await keyspace.read_each(ENTRIES, [(1,), (2,)])] == [count, 0]
    assert len(await keyspace.read(ENTRIES + " LIMIT ?", 1, 10)) == 10
    monkeypatch.setattr(module, "MAX_ROWS", 2 * FETCH_SIZE)
    assert MAX_ROWS > module.MAX_ROWS
    with pytest.raises(RuntimeError, match="read them in pages"):
        await keyspace.read(ENTRIES, 1)


async def test_read_each_returns_rows_in_key_order(keyspace: Keyspace) -> None:
    keys = [3 * n % 200 for n in range(3 * MAX_CONCURRENT_STATEMENTS + 1)]
    await keyspace.write_each((PUT, (key, f"n{key}")) for key in set(keys))
    assert await keyspace.read_each(GET, [(key,) for key in keys]) == [[(f"n{key}",)] for key in keys]
    assert await keyspace.read_each(GET, []) == []


async def test_read_each_wakes_event_loop_once(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    await keyspace.read(GET, 1)
    loop = asyncio.get_running_loop()
    woken = 0
    original = loop.call_soon_threadsafe

    def counting(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal woken
        woken += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
    await keyspace.read_each(GET, [(n,) for n in range(MAX_CONCURRENT_STATEMENTS)])
    assert woken == 1


async def test_batch_is_atomic(keyspace: Keyspace) -> None:
    await keyspace.batch([(PUT, (1, "a")), (PUT_ENTRY, (7, 1, "a")), (PUT_ENTRY, (8, 1, "a"))])
    assert await keyspace.read(GET, 1) == [("a",)]
    assert await keyspace.read_each(ENTRIES, [(7,), (8,)]) == [[(1,)], [(1,)]]
    # Above the server's limit for a batch: it rejects the batch, and stores no statement of it.
    with pytest.raises(InvalidRequest, match="Batch too large"):
        await keyspace.batch([(PUT, (2, "x" * 100_000)), (PUT, (3, "b"))])
    assert await keyspace.read_each(GET, [(2,), (3,)]) == [[], []]
    with pytest.raises(ValueError, match="at most"):
        await keyspace.batch([(PUT, (n, "c")) for n in range(MAX_BATCH + 1)])
    await keyspace.batch([])


async def test_execute_lwt_concurrent_claims_one_is_applied(keyspace: Keyspace) -> None:
    answers = await asyncio.gather(*(keyspace.execute_lwt(CLAIM, "bob", owner) for owner in range(1, 9)))
    winners = [owner for owner, (applied, _) in enumerate(answers, 1) if applied]
    assert len(winners) == 1
    # The current name and owner of the row.
    assert {current for applied, current in answers if not applied} == {("bob", winners[0])}
    assert await keyspace.read_serial("SELECT owner FROM claim WHERE name = ?", "bob") == [(winners[0],)]
    change = "UPDATE claim SET owner = ? WHERE name = ? IF owner = ?"
    assert await keyspace.execute_lwt(change, 50, "bob", 99) == (False, (winners[0],))
    assert await keyspace.execute_lwt(change, 50, "bob", winners[0]) == (True, ())
    assert (await keyspace.execute_lwt(change, 50, "nobody", 1))[0] is False


async def test_write_generated_timestamps_follow_call_order(keyspace: Keyspace) -> None:
    for n in range(50):
        await keyspace.write(PUT, 1, str(n))
    assert await keyspace.read(GET, 1) == [("49",)]
    # An explicit timestamp wins only over older ones.
    await keyspace.write(PUT + " USING TIMESTAMP ?", 1, "old", 1)
    assert await keyspace.read(GET, 1) == [("49",)]


async def test_invalid_statement_raises_driver_error(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest):
        await keyspace.read("SELECT nothing FROM item")
    with pytest.raises(ValueError, match="1 values for 2 placeholders"):
        await keyspace.write(PUT, 1)
    with pytest.raises(TypeError):
        await keyspace.write(PUT, "one", "a")
    monkeypatch.setattr(prepared_statements, "MAX_STATEMENTS", len(keyspace._statements._tasks))
    with pytest.raises(RuntimeError, match="bind values with"):
        await keyspace.read("SELECT name FROM item WHERE id = 17")


async def test_prepare_failure_is_not_cached(cassandra: Cassandra) -> None:
    # A keyspace of this test: the others are reused with their tables.
    keyspace = await Keyspace.open(cassandra, "other", TABLES)
    query = "SELECT id FROM later WHERE id = ?"
    with pytest.raises(InvalidRequest):
        await keyspace.read(query, 1)
    await keyspace.cassandra.change_schema("CREATE TABLE IF NOT EXISTS later (id bigint PRIMARY KEY)", keyspace.name)
    assert await keyspace.read(query, 1) == []


async def test_read_without_answer_ends_at_call_deadline(
    over_proxy: Keyspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await over_proxy.write(PUT, 1, "a")
    await over_proxy.read(GET, 1)
    # So long that a busy machine cannot delay the end of a call until then.
    monkeypatch.setattr(module, "STATEMENT_TIMEOUT_S", 2 * ENDS_WITHIN_S)
    proxy.silence()
    for ask in (over_proxy.read(GET, 1), over_proxy.write(PUT, 1, "b"), over_proxy.read_each(GET, [(1,), (2,)])):
        began = time.monotonic()
        with call_with_seconds_left(0.3), expect_error("DEADLINE_EXCEEDED"):
            await ask
        assert 0.25 < time.monotonic() - began < ENDS_WITHIN_S
    began = time.monotonic()
    with call_with_seconds_left(0.3), expect_error("DEADLINE_EXCEEDED"):
        await over_proxy.read("SELECT data FROM item WHERE id = ?", 1)
    assert time.monotonic() - began < ENDS_WITHIN_S
    with call_with_seconds_left(-1), expect_error("DEADLINE_EXCEEDED"):
        await over_proxy.read(GET, 1)


async def test_prepare_without_answer_ends_at_statement_timeout(over_proxy: Keyspace, proxy: Proxy) -> None:
    """The thread of a preparation would otherwise hold a stopping process for the driver's 10 s."""
    proxy.silence()
    began = time.monotonic()
    preparing = asyncio.create_task(over_proxy.cassandra.prepare("SELECT cluster_name FROM system.local"))
    await over_proxy.cassandra.close()
    with expect_error("UNAVAILABLE", "STORE_UNAVAILABLE"):
        await preparing
    assert time.monotonic() - began < 4 * STATEMENT_TIMEOUT_S < 10


async def test_read_without_deadline_ends_at_statement_timeout(
    over_proxy: Keyspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await over_proxy.read(GET, 1)
    await over_proxy.execute_lwt(CLAIM, "ann", 1)
    proxy.silence()
    monkeypatch.setattr(module, "STATEMENT_TIMEOUT_S", 0.4)
    async with asyncio.timeout(ENDS_WITHIN_S):
        with expect_error("UNAVAILABLE", "STORE_UNAVAILABLE"):
            await over_proxy.read(GET, 1)
        with expect_error("UNAVAILABLE", "OUTCOME_UNKNOWN"):
            await over_proxy.execute_lwt(CLAIM, "bob", 1)
    # The caller has time left, so the error is not DEADLINE_EXCEEDED.
    with expect_error("UNAVAILABLE", "STORE_UNAVAILABLE"):
        await over_proxy.read("SELECT data FROM item WHERE id = ?", 1)


async def test_write_without_answer_is_retried_with_same_timestamp(
    over_proxy: Keyspace, keyspace: Keyspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await over_proxy.write(PUT, 1, "a")
    timestamps: list[int] = []
    fresh = over_proxy.cassandra.timestamps.next_unique
    monkeypatch.setattr(
        over_proxy.cassandra.timestamps, "next_unique", lambda: timestamps.append(fresh()) or timestamps[-1]
    )
    # The write is retried until the test heals the connection, however long its own statements take.
    make_impatient(over_proxy, monkeypatch)
    monkeypatch.setattr(module, "MAX_WRITE_ATTEMPTS", 1_000)
    monkeypatch.setattr(module, "WRITE_RETRY_DELAY_S", 0.0)
    monkeypatch.setattr(module, "WRITE_BUDGET_S", 2 * ENDS_WITHIN_S)
    proxy.hold_answers()
    write = asyncio.create_task(over_proxy.write(PUT, 1, "b"))
    # The write is stored, but the client does not know.
    await until(lambda: _is(keyspace, "b"))
    first = await keyspace.read("SELECT writetime(name) FROM item WHERE id = ?", 1)
    # Another client writes in between: the retry must not overwrite it.
    await keyspace.write(PUT, 1, "c")
    before = module._write_retries._value.get()
    await until(lambda: module._write_retries._value.get() > before)
    proxy.heal()
    await write
    assert first == [(timestamps[0],)]
    assert len(timestamps) == 1
    assert await keyspace.read(GET, 1) == [("c",)]


async def _is(keyspace: Keyspace, name: str) -> bool:
    return await keyspace.read(GET, 1) == [(name,)]


async def test_execute_lwt_without_answer_is_not_retried(
    over_proxy: Keyspace, keyspace: Keyspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await over_proxy.execute_lwt(CLAIM, "ann", 1)
    make_impatient(over_proxy, monkeypatch)
    proxy.hold_answers()
    sent = 0
    execute_async = over_proxy.cassandra._session.execute_async

    def count(*args: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        return execute_async(*args, **options)

    monkeypatch.setattr(over_proxy.cassandra._session, "execute_async", count)
    with expect_error("UNAVAILABLE", "OUTCOME_UNKNOWN"):
        await over_proxy.execute_lwt(CLAIM, "bob", 7)
    assert sent == 1
    # On a busy machine the server may execute it after the caller gave up.
    await until(lambda: _is_claimed(keyspace, "bob", 7))


async def _is_claimed(keyspace: Keyspace, name: str, owner: int) -> bool:
    return await keyspace.read_serial(OWNER, name) == [(owner,)]


async def test_statements_use_expected_execution_profile(keyspace: Keyspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the execution profiles, because a single node has no next host; the profiles' policies have their own
    test."""
    asked: list[object] = []
    run = keyspace.cassandra.run

    async def noting(prepared_statements, profile, *args, **kwargs):  # type: ignore[no-untyped-def]
        asked.append(profile)
        return await run(prepared_statements, profile, *args, **kwargs)

    monkeypatch.setattr(keyspace.cassandra, "run", noting)
    await keyspace.read(GET, 1)
    await keyspace.write(PUT, 1, "a")
    await keyspace.batch([(PUT, (1, "a")), (PUT, (2, "a"))])
    await keyspace.execute_lwt(CLAIM, "bob", 1)
    await keyspace.read_serial("SELECT owner FROM claim WHERE name = ?", "bob")
    assert asked == [IDEMPOTENT, IDEMPOTENT, IDEMPOTENT, NON_IDEMPOTENT, SERIAL]


async def test_lost_server_is_rejected_at_once_then_recovered(
    over_proxy: Keyspace, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await over_proxy.write(PUT, 1, "a")
    await over_proxy.read(GET, 1)
    # So long that a busy machine cannot delay the rejection until then.
    monkeypatch.setattr(module, "STATEMENT_TIMEOUT_S", 2 * ENDS_WITHIN_S)
    await proxy.cut()
    began = time.monotonic()
    with pytest.raises(errors.RoostError) as caught:
        await over_proxy.read(GET, 1)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert caught.value.retry_after_s
    assert time.monotonic() - began < ENDS_WITHIN_S
    await proxy.start()

    async def answers() -> bool:
        try:
            return await over_proxy.read(GET, 1) == [("a",)]
        except errors.RoostError:
            return False

    await until(answers)


async def test_cancelled_caller_does_not_affect_others(over_proxy: Keyspace, proxy: Proxy) -> None:
    await over_proxy.write(PUT, 1, "a")
    await over_proxy.read(GET, 1)
    proxy.hold_answers()
    left = [asyncio.create_task(over_proxy.read(GET, 1)) for _ in range(3)]
    stays = asyncio.create_task(over_proxy.read(GET, 1))
    await until(lambda: over_proxy.cassandra.in_flight == 4)
    for task in left:
        task.cancel()
    proxy.heal()
    assert await stays == [("a",)]
    # Answers may arrive in any order.
    await until(lambda: over_proxy.cassandra.in_flight == 0)


async def test_close_fails_pending_requests(settings: Settings, keyspace: Keyspace, proxy: Proxy) -> None:
    opened = await Cassandra.open(
        settings.model_copy(update={"cassandra_contact_points": (f"127.0.0.1:{proxy.port}",)})
    )
    over = Keyspace(opened, keyspace.name)
    await over.read(GET, 1)
    proxy.hold_answers()
    read = asyncio.create_task(over.read(GET, 1))
    await until(lambda: opened.in_flight == 1)
    proxy_healed = asyncio.get_running_loop().call_later(0.2, proxy.heal)
    await opened.close()
    with expect_error("UNAVAILABLE", "STORE_UNAVAILABLE"):
        await read
    with expect_error("UNAVAILABLE", "STORE_UNAVAILABLE"):
        await over.read(GET, 1)
    await opened.close()
    proxy_healed.cancel()


async def test_open_wrong_settings_raise_explanation(settings: Settings) -> None:
    with pytest.raises(errors.RoostError, match=r"cannot be reached at 127\.0\.0\.1:1$"):
        await Cassandra.open(settings.model_copy(update={"cassandra_contact_points": ("127.0.0.1:1",)}))
    with pytest.raises(errors.RoostError, match="datacenters datacenter1, but cassandra_datacenter is moon") as caught:
        await Cassandra.open(settings.model_copy(update={"cassandra_datacenter": "moon"}))
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
