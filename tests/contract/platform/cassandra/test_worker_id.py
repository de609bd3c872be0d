"""The Cassandra worker id: no id is minted twice, whether the process stops, is suspended, dies, or has a wrong clock."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import IO

import grpc
import pytest

from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.cassandra.worker_id import LEASED, LEASES_MIGRATION, CassandraLease, LeaseTiming
from services.platform.config import Settings
from services.platform.ids.snowflake import MAX_WORKER, RESERVE_MS, WORKER_BITS, Snowflake, timestamp_ms, wall_clock_ms
from services.platform.rpc import errors
from tests.cluster import KIT_LEASES, Namespace
from tests.contract.platform.conftest import until

pytestmark = pytest.mark.cluster

ALL = "SELECT worker_id, owner, high_water_ms, ttl(owner) FROM worker_leases"
WRITTEN = "SELECT writetime(owner), ttl(owner) FROM worker_leases"
# A lease that expires within seconds, for tests that wait for that.
SHORT = LeaseTiming(3, 0.5, 1.5)
# A lease that is renewed often and does not expire, however long a busy machine takes.
OFTEN = LEASED._replace(renew_s=0.1)
# Concurrent conditional writes of a test that writes the row of each worker id.
AT_ONCE = 16

CHILD = """
import asyncio, sys
from services.platform.cassandra.keyspace import Cassandra, Keyspace
from services.platform.cassandra.worker_id import LEASES_MIGRATION, CassandraLease, LeaseTiming
from services.platform.rpc import errors
from services.platform.config import Settings

async def main():
    settings = Settings()
    keyspace = await Keyspace.open(await Cassandra.open(settings), "kit_leases", (LEASES_MIGRATION,))
    lease = await CassandraLease.open(keyspace, settings, LeaseTiming(int(sys.argv[1]), *map(float, sys.argv[2:])))
    while True:
        try:
            print(await lease.ids.mint(), flush=True)
        except errors.RoostError as error:
            print("refused:", error.reason, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, stopped: bool = False) -> None:
        """`stopped`: only the test advances the clock."""
        self.shift_ms = 0
        self._stopped_ms = wall_clock_ms() if stopped else None

    def __call__(self) -> int:
        return (self._stopped_ms or wall_clock_ms()) + self.shift_ms


@pytest.fixture
async def leases_of(cassandra: Cassandra) -> Keyspace:
    return await Keyspace.open(cassandra, KIT_LEASES, (LEASES_MIGRATION,))


@pytest.fixture
async def opened() -> AsyncIterator[list[CassandraLease]]:
    """Leases to close at the end of the test."""
    made: list[CassandraLease] = []
    yield made
    for lease in made:
        await lease.close()


def worker_of(snowflake: int) -> int:
    return (snowflake >> 12) & ((1 << WORKER_BITS) - 1)


async def expect_error(ids: Snowflake) -> str:
    with pytest.raises(errors.RoostError) as caught:
        await ids.mint()
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    return caught.value.reason


async def kill(lease: CassandraLease) -> None:
    """Leaves the lease as kill -9 does."""
    renewal, lease._renewal = lease._renewal, None
    assert renewal is not None
    renewal.cancel()
    await asyncio.wait((renewal,))


async def test_open_leases_have_distinct_worker_ids(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease]
) -> None:
    began = time.monotonic()
    opened.extend(await asyncio.gather(*(CassandraLease.open(leases_of, settings) for _ in range(8))))
    ids = [await lease.snowflake().mint() for lease in opened for _ in range(100)]
    assert len({worker_of(snowflake) for snowflake in ids}) == 8
    assert len(set(ids)) == 800
    rows = await leases_of.read(ALL)
    assert len(rows) == 8
    # TTLs are whole seconds.
    oldest_s = time.monotonic() - began + 1
    assert all(owner and LEASED.ttl_s - oldest_s <= ttl <= LEASED.ttl_s for _, owner, _, ttl in rows)


async def test_close_stops_minting_and_releases_worker_id(leases_of: Keyspace, settings: Settings) -> None:
    lease = await CassandraLease.open(leases_of, settings)
    last = await lease.ids.mint()
    await lease.close()
    await lease.close()
    assert await expect_error(lease.ids) == "LEASE"
    assert await leases_of.read(ALL) == [(lease.worker_id, None, lease.ids.last_ms, None)]
    assert timestamp_ms(last) <= lease.ids.last_ms


async def test_renewed_lease_keeps_minting(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease]
) -> None:
    lease = await CassandraLease.open(leases_of, settings, OFTEN)
    opened.append(lease)
    worker = lease.worker_id
    ((_, owner, first_mark_ms, _),) = await leases_of.read(ALL)
    ((first_written_us, _),) = await leases_of.read(WRITTEN)
    # Renewals raise the mark and write the owner again, with a new TTL.
    await until(lambda: _mark_reached(leases_of, first_mark_ms + 500))
    ((written_us, ttl),) = await leases_of.read(WRITTEN)
    assert written_us >= first_written_us + 400_000
    assert ttl is not None
    assert worker_of(await lease.ids.mint()) == worker
    assert [row[:2] for row in await leases_of.read(ALL)] == [(worker, owner)]


async def _mark_reached(keyspace: Keyspace, mark_ms: int) -> bool:
    ((_, _, high_water_ms, _),) = await keyspace.read(ALL)
    return bool(high_water_ms >= mark_ms)


async def test_unrenewed_lease_stops_minting_before_expiry(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease]
) -> None:
    now_s, clock = 0.0, Clock(stopped=True)
    lease = await CassandraLease.open(leases_of, settings, SHORT, clock, monotonic=lambda: now_s)
    await lease.ids.mint()
    await kill(lease)
    now_s = SHORT.mint_s - 0.001
    await lease.ids.mint()
    # Behind the span that was reserved with the last id.
    clock.shift_ms += RESERVE_MS + 1
    now_s = SHORT.mint_s
    with pytest.raises(errors.RoostError, match="not renewed"):
        await lease.ids.mint()
    # It stays stopped after the lease has expired.
    await until(lambda: _is_free(leases_of, lease.worker_id))
    assert await expect_error(lease.ids) == "LEASE"
    ((_, owner, high_water_ms, _),) = await leases_of.read(ALL)
    assert owner is None
    assert high_water_ms >= lease.ids.last_ms


async def test_lost_lease_is_replaced_and_ids_increase(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease]
) -> None:
    lease = await CassandraLease.open(leases_of, settings, OFTEN)
    opened.append(lease)
    first, old = await lease.ids.mint(), lease.worker_id
    assert (
        await leases_of.execute_lwt("UPDATE worker_leases SET owner = ? WHERE worker_id = ? IF EXISTS", "thief", old)
    )[0]
    await until(lambda: lease.worker_id != old)
    await until(lambda: lease._mint_until > 0)
    second = await lease.ids.mint()
    assert second > first
    assert worker_of(second) == lease.worker_id != old


async def test_open_skips_worker_ids_with_future_high_water_mark(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All worker ids but one have a high-water mark an hour ahead, or are leased.
    later = wall_clock_ms() + 3_600_000
    advance = "UPDATE worker_leases SET owner = ?, high_water_ms = ? WHERE worker_id = ? IF high_water_ms = ?"
    lots = [range(first, min(first + AT_ONCE, MAX_WORKER + 1)) for first in range(0, MAX_WORKER + 1, AT_ONCE)]
    for lot in lots:
        await asyncio.gather(
            *(leases_of.execute_lwt(advance, "x" if n % 2 else None, later, n, None) for n in lot if n != 700)
        )
    opened.append(await CassandraLease.open(leases_of, settings))
    assert opened[0].worker_id == 700
    with pytest.raises(errors.RoostError, match="all are leased"):
        await CassandraLease.open(leases_of, settings)


async def test_clock_jump_ahead_waits_for_high_water_mark(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease]
) -> None:
    clock = Clock()
    lease = await CassandraLease.open(leases_of, settings, clock_ms=clock)
    opened.append(lease)
    await lease.ids.mint()
    clock.shift_ms = 3_600_000
    assert await expect_error(lease.ids) == "LEASE"
    # The rejection woke the renewal, which raises the high-water mark.
    await until(lambda: (lease._high_water_ms or 0) > clock())
    jumped = await lease.ids.mint()
    assert timestamp_ms(jumped) > wall_clock_ms() + 3_500_000
    ((_, _, high_water_ms, _),) = await leases_of.read(ALL)
    assert high_water_ms >= timestamp_ms(jumped)


async def test_ordinal_restart_on_slower_clock_repeats_no_id(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease]
) -> None:
    seventh = settings.model_copy(update={"worker_id": 7})
    clock = Clock()
    first = await CassandraLease.open(leases_of, seventh, clock_ms=clock)
    used = [await first.ids.mint() for _ in range(5)]
    await kill(first)
    clock.shift_ms = -300
    second = await CassandraLease.open(leases_of, seventh, clock_ms=clock)
    opened.append(second)
    # Back into the span of the first process's high-water mark, all of which it may have used.
    clock.shift_ms -= 3_000
    assert await expect_error(second.ids) == "CLOCK"
    clock.shift_ms += 3_000
    again = await second.ids.mint()
    assert worker_of(again) == 7
    assert again > max(used)
    await kill(second)
    clock.shift_ms = -3_600_000
    with pytest.raises(errors.RoostError, match="s behind the ids of worker 7"):
        await CassandraLease.open(leases_of, seventh, clock_ms=clock)


async def test_same_ordinal_in_two_processes_never_both_mint(
    leases_of: Keyspace, settings: Settings, opened: list[CassandraLease]
) -> None:
    seventh = settings.model_copy(update={"worker_id": 7})
    first = await CassandraLease.open(leases_of, seventh)
    opened.append(first)
    used = [await first.ids.mint()]
    with pytest.raises(errors.RoostError, match="another process has worker id 7"):
        await CassandraLease.open(leases_of, seventh)
    used.append(await first.ids.mint())
    assert used == sorted(set(used))


async def test_suspended_process_mints_nothing_after_expiry(namespace: Namespace, leases_of: Keyspace) -> None:
    def spawn(timing: LeaseTiming) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, *map(str, timing)]
        return subprocess.Popen(command, env=os.environ | namespace.environment, stdout=subprocess.PIPE, text=True)

    sleeper = spawn(SHORT)
    assert sleeper.stdout is not None
    worker = worker_of(await asyncio.to_thread(_next_id, sleeper.stdout))
    try:
        sleeper.send_signal(signal.SIGSTOP)
        slept_at_ms = wall_clock_ms()
        # Its worker id may be claimed now; all others are made to look taken.
        await until(lambda: _is_free(leases_of, worker))
        fill = "UPDATE worker_leases SET owner = ? WHERE worker_id = ? IF owner = null"
        others = [n for n in range(MAX_WORKER + 1) if n != worker]
        for first in range(0, len(others), AT_ONCE):
            await asyncio.gather(*(leases_of.execute_lwt(fill, "x", n) for n in others[first : first + AT_ONCE]))
        # Its lease does not expire while the test reads its ids.
        heir = spawn(LEASED)
        assert heir.stdout is not None
        try:
            assert worker_of(await asyncio.to_thread(_next_id, heir.stdout)) == worker
            sleeper.send_signal(signal.SIGCONT)
            woken_at_ms = wall_clock_ms()
            mine = await asyncio.to_thread(_lines_until, sleeper.stdout, "refused: LEASE")
            theirs = [await asyncio.to_thread(heir.stdout.readline) for _ in range(200)]
        finally:
            heir.kill()
    finally:
        sleeper.send_signal(signal.SIGCONT)
        sleeper.kill()
    mine += _lines(sleeper.communicate()[0])
    theirs += _lines(heir.communicate()[0])
    minted, inherited = _ids(mine), _ids(theirs)
    assert len(inherited) > 100
    assert not minted & inherited
    # One id may have been in progress when the process was suspended; it is unique too.
    assert all(not slept_at_ms + 50 < timestamp_ms(n) < woken_at_ms for n in minted)


async def _is_free(keyspace: Keyspace, worker: int) -> bool:
    return await keyspace.read("SELECT owner FROM worker_leases WHERE worker_id = ?", worker) == [(None,)]


def _next_id(stream: IO[str]) -> int:
    """Reads lines up to the first id; raises AssertionError if the stream ends without one."""
    while line := stream.readline():
        if line.strip().isdigit():
            return int(line)
    raise AssertionError("ended without an id")


def _lines_until(stream: IO[str], last: str) -> list[str]:
    """Reads lines up to the line `last`; raises AssertionError if the stream ends without it."""
    lines: list[str] = []
    while last not in lines:
        line = stream.readline()
        assert line, f"ended without {last!r}"
        lines.append(line.strip())
    return lines


def _lines(text: str) -> list[str]:
    # The last line may be incomplete.
    return text.splitlines()[:-1]


def _ids(lines: list[str]) -> set[int]:
    return {int(line) for line in lines if line.strip().isdigit()}
