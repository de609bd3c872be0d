"""The worker id of this process: leased from Cassandra, or set by the setting `worker_id`. A row of Cassandra stores
its high-water mark, the latest time up to which a process may mint ids with this worker id.

The high-water mark keeps ids unique even if clocks are wrong: a process raises it by a conditional write before it
mints ids beyond it, so two owners of a worker id never mint in the same milliseconds. The lease keeps two processes
from using one worker id at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple, Self

import structlog

from services.platform.cassandra.keyspace import Keyspace
from services.platform.config import Settings
from services.platform.ids.snowflake import MAX_WORKER, RESERVE_MS, Snowflake, wall_clock_ms
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# The keyspace that is passed to `CassandraLease.open` must have this script among its migrations. Only conditional
# writes may change the table.
LEASES_MIGRATION = (
    "CREATE TABLE IF NOT EXISTS worker_leases (worker_id int PRIMARY KEY, owner text, high_water_ms bigint)"
)

_ALL = "SELECT worker_id, owner, high_water_ms FROM worker_leases"
_ONE = "SELECT owner, high_water_ms FROM worker_leases WHERE worker_id = ?"
_CLAIM = "UPDATE worker_leases USING TTL ? SET owner = ? WHERE worker_id = ? IF owner = null"
_RENEW = """BEGIN BATCH
    UPDATE worker_leases USING TTL ? SET owner = ? WHERE worker_id = ? IF owner = ?;
    UPDATE worker_leases SET high_water_ms = ? WHERE worker_id = ?;
APPLY BATCH"""
_RELEASE = """BEGIN BATCH
    UPDATE worker_leases SET owner = null WHERE worker_id = ? IF owner = ?;
    UPDATE worker_leases SET high_water_ms = ? WHERE worker_id = ?;
APPLY BATCH"""
_ADVANCE = "UPDATE worker_leases SET owner = ?, high_water_ms = ? WHERE worker_id = ? IF high_water_ms = ?"

# Maximum number of free worker ids that a process tries to lease, one after the other; then it fails with UNAVAILABLE.
# If many processes start at once, some try the same worker ids, and only one of them gets each.
MAX_CLAIMS = 32
# Maximum number of seconds by which the clocks of two machines may differ. If the earlier process with a worker id ran
# on a machine whose clock is ahead, the next process with this worker id waits at its start until its own clock has
# passed the high-water mark. If its own clock is behind the high-water mark by more than `mint_s` plus this number, the
# next process fails with UNAVAILABLE.
MAX_CLOCK_SKEW_S = 2.0
# Seconds between two attempts of a failed renewal. Within this time the process notices that an outage has ended, or
# that a wrong clock was corrected.
RETRY_INTERVAL_S = 1.0

log = structlog.get_logger(__name__)


class LeaseTiming(NamedTuple):
    """Times in seconds. Another process may lease the worker id `ttl_s` after the last renewal; the owner renews the
    lease every `renew_s`.

    Ids may be minted for `mint_s` after the start of a renewal. Each renewal raises the high-water mark to `mint_s`
    ahead of the clock.
    """

    ttl_s: int
    renew_s: float
    mint_s: float


# The times for a leased worker id. Minting ends 20 s before another process may lease the worker id, in case the clock
# of a Cassandra node is wrong by up to 20 s.
LEASED = LeaseTiming(60, 20.0, 40.0)
# The times for an ordinal, that is, a worker id from the setting `worker_id`. The row has no TTL, because no other
# process uses the ordinal. Each renewal raises the high-water mark to only 5 s ahead of the clock, because after
# kill -9 the next process with this ordinal waits until its clock has passed the mark. A renewal every 2 s leaves 3 s
# for a renewal that is slow or must be repeated.
ORDINAL = LeaseTiming(0, 2.0, 5.0)


class CassandraLease:
    """The lease of this process's worker id, which a background task renews until `close`. If the process loses a
    leased worker id, it leases another one."""

    def __init__(
        self,
        keyspace: Keyspace,
        ordinal: int,
        timing: LeaseTiming,
        clock_ms: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self.worker_id = ordinal
        self._keyspace = keyspace
        self._leased = ordinal < 0
        self._timing = timing
        self._clock_ms = clock_ms
        self._owner = secrets.token_hex(8)
        self._time = monotonic
        # The high-water mark that the row holds, in Unix milliseconds; None if the row has none yet.
        self._high_water_ms: int | None = None
        self._mint_until = 0.0
        self._wake = asyncio.Event()
        self._renewal: asyncio.Task[None] | None = None
        self.ids = Snowflake(max(ordinal, 0), clock_ms, reserve=self._reserve)

    @classmethod
    async def open(
        cls,
        keyspace: Keyspace,
        settings: Settings,
        timing: LeaseTiming | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Leases a free worker id, or uses `settings.worker_id` if it is ≥ 0 (no other process may have the same one);
        then waits until the process may mint ids. `monotonic` returns seconds and measures the age of the lease.

        Raises UNAVAILABLE if all worker ids are leased, if Cassandra does not answer, or if this clock is behind the
        stored high-water mark by more than `mint_s` + MAX_CLOCK_SKEW_S seconds.
        """
        timing = timing or (LEASED if settings.worker_id < 0 else ORDINAL)
        lease = cls(keyspace, settings.worker_id, timing, clock_ms, monotonic)
        await (lease._claim() if lease._leased else lease._read_high_water())
        behind_s = ((lease._high_water_ms or 0) - clock_ms()) / 1000
        if behind_s > lease._timing.mint_s + MAX_CLOCK_SKEW_S:
            raise errors.unavailable(
                f"the clock is {behind_s:.0f} s behind the ids of worker {lease.worker_id}: correct the clock",
                reason=Reason.CLOCK,
            )
        await asyncio.sleep(max(behind_s, 0))
        await lease._renew()
        lease._renewal = asyncio.create_task(lease._renew_loop(), name="worker-lease")
        return lease

    def snowflake(self) -> Snowflake:
        """Returns the id generator of this lease, the same one at each call."""
        return self.ids

    def fault(self) -> str:
        """Returns a sentence with the cause if no ids can be minted now; "" if they can."""
        if self._time() >= self._mint_until:
            return f"the lease of worker id {self.worker_id} was not renewed in time, so nothing can be written: Cassandra must answer"
        return self.ids.fault()

    async def close(self) -> None:
        """Stops minting, stores the time of the last minted id as the high-water mark, and releases the worker id. From
        then on minting raises UNAVAILABLE. A second call has no effect."""
        renewal, self._renewal = self._renewal, None
        if renewal is None:
            return
        renewal.cancel()
        await asyncio.wait((renewal,))
        # Clears the reservation, so the next id would need a new one, which `_reserve` refuses from now on.
        self._mint_until, self.ids.reserved_ms = 0.0, 0
        try:
            if self._leased:
                await self._keyspace.execute_lwt(
                    _RELEASE, self.worker_id, self._owner, self.ids.last_ms, self.worker_id
                )
            else:
                await self._keyspace.execute_lwt(
                    _ADVANCE, self._owner, self.ids.last_ms, self.worker_id, self._high_water_ms
                )
        except errors.RoostError as error:
            # Harmless: a lease expires by its TTL, and the high-water mark is only a little too high.
            log.warning(LogEvent.WORKER_ID_RELEASE_FAILED, worker_id=self.worker_id, error=str(error))

    def _reserve(self, ms: int) -> int:
        if self._time() >= self._mint_until:
            # This is also the case if the process was suspended past the end of its lease: it then mints no id when it
            # resumes.
            raise errors.unavailable(
                "no ids can be minted: the worker id's lease was not renewed; retry later", reason=Reason.LEASE
            )
        if self._high_water_ms is None or ms > self._high_water_ms:
            # The clock jumped ahead: the high-water mark must be raised before an id is minted.
            self._wake.set()
            raise errors.unavailable(
                "no ids can be minted: the clock is ahead of the high-water mark; retry later", reason=Reason.LEASE
            )
        # Reserves short spans, so that the lease is checked again within a second.
        return min(self._high_water_ms, ms + RESERVE_MS)

    async def _renew_loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._timing.renew_s)
            self._wake.clear()
            try:
                await self._renew()
            except Exception as error:
                log.warning(LogEvent.WORKER_ID_RENEWAL_FAILED, worker_id=self.worker_id, error=str(error))
                # Sleeps here, because the set `_wake` ends the wait above at once.
                await asyncio.sleep(RETRY_INTERVAL_S)
                self._wake.set()

    async def _renew(self) -> None:
        """Renews the lease and raises the stored high-water mark. Raises UNAVAILABLE if Cassandra does not answer or
        another process has the worker id. Ids may still be minted in the time that an earlier renewal reserved, unless
        another process has the worker id."""
        began = self._time()
        high_water_ms = max(self._high_water_ms or 0, self._clock_ms() + int(self._timing.mint_s * 1000))
        keyspace, timing, worker = self._keyspace, self._timing, self.worker_id
        if self._leased:
            renewed, _ = await keyspace.execute_lwt(
                _RENEW, timing.ttl_s, self._owner, worker, self._owner, high_water_ms, worker
            )
        else:
            renewed, _ = await keyspace.execute_lwt(_ADVANCE, self._owner, high_water_ms, worker, self._high_water_ms)
        if renewed:
            self._high_water_ms, self._mint_until = high_water_ms, began + timing.mint_s
            return
        self._mint_until = 0.0
        await (self._claim() if self._leased else self._read_high_water())
        self._wake.set()
        raise errors.unavailable(f"another process has worker id {worker}: retry later", reason=Reason.LEASE)

    async def _claim(self) -> None:
        """Leases a worker id that no process holds and whose high-water mark is in the past. Raises UNAVAILABLE if it
        finds none."""
        rows = await self._keyspace.read(_ALL)
        now_ms = self._clock_ms()
        taken = {
            worker_id for worker_id, owner, high_water_ms in rows if owner is not None or (high_water_ms or 0) > now_ms
        }
        free = [worker_id for worker_id in range(MAX_WORKER + 1) if worker_id not in taken]
        # Free worker ids are tried in random order, because processes that start together would otherwise all try the
        # first one.
        for worker_id in _shuffled(free)[:MAX_CLAIMS]:
            if (await self._keyspace.execute_lwt(_CLAIM, self._timing.ttl_s, self._owner, worker_id))[0]:
                self.worker_id = worker_id
                await self._read_high_water()
                return
        raise errors.unavailable(
            "no worker id is free: all are leased to other processes; stop some or wait for their leases to expire",
            reason=Reason.LEASE,
        )

    async def _read_high_water(self) -> None:
        """Reads the stored high-water mark of this worker id and moves the id generator beyond it."""
        ((owner, high_water_ms),) = await self._keyspace.read_serial(_ONE, self.worker_id) or [(None, None)]
        if not self._leased and self._mint_until and owner != self._owner:
            log.error(LogEvent.WORKER_ID_TAKEN, worker_id=self.worker_id)
        self._high_water_ms = high_water_ms
        self.ids.move(self.worker_id, high_water_ms or 0)


def _shuffled(worker_ids: list[int]) -> list[int]:
    return random.sample(worker_ids, len(worker_ids))
