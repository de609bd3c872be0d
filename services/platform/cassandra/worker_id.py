"""Who mints which ids: worker ids leased from Cassandra, or given by a setting, each with a mark that no id has passed.

The mark makes ids unique whatever the clocks do: before a process mints past it, it moves it by a conditional write, so the spans of
time that two owners of a worker id may ever mint in are apart. The lease keeps two from wanting the same one at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable
from typing import NamedTuple, Self

import structlog

from services.platform.cassandra.keyspace import Keyspace
from services.platform.config import Settings
from services.platform.ids.snowflake import MAX_WORKER, RESERVE_MS, Snowflake, wall_clock_ms
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# To be one of the migrations of the keyspace given to `CassandraLease.open`. Conditional writes only.
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

# Claims that others may snatch from under us, at a start of many processes at once.
MAX_CLAIMS = 32
# The next life may run on another machine, whose clock is this much slower: that is worth a wait at the start.
MAX_CLOCK_SKEW_S = 2.0
# The end of an outage, or of a clock gone wrong, is noticed within this.
RETRY_INTERVAL_S = 1.0

_log = structlog.get_logger(__name__)


class LeaseTiming(NamedTuple):
    """Seconds: after `ttl_s` without renewal others may have it; renewed every `renew_s`; minted for `mint_s` after a renewal began,
    and marked so far ahead."""

    ttl_s: int
    renew_s: float
    mint_s: float


# Minting ends 20 s before others may begin: what a node's clock may be off.
LEASED = LeaseTiming(60, 20.0, 40.0)
# After kill -9 the next life of an ordinal waits until the clock has passed the mark: so it is a near one. No time to live: an ordinal
# is nobody else's.
ORDINAL = LeaseTiming(0, 2.0, 5.0)


class CassandraLease:
    """A worker id of this process, renewed until `close`. Where it was lost, ids go on under another."""

    def __init__(self, keyspace: Keyspace, ordinal: int, timing: LeaseTiming, clock_ms: Callable[[], int]) -> None:
        self.worker_id = ordinal
        self._keyspace = keyspace
        self._leased = ordinal < 0
        self._timing = timing
        self._clock_ms = clock_ms
        self._owner = secrets.token_hex(8)
        self._time = asyncio.get_running_loop().time
        # As it stands in the row; None where there is none yet.
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
    ) -> Self:
        """Leases a worker id, or takes that of the settings, which must be this process's alone; waits until it may mint.

        UNAVAILABLE where all are taken, where Cassandra cannot say, or where this clock is behind what an earlier life of the
        worker id marked, by more than a life marks ahead and clocks are apart.
        """
        lease = cls(keyspace, settings.worker_id, timing or (LEASED if settings.worker_id < 0 else ORDINAL), clock_ms)
        await (lease._claim() if lease._leased else lease._read_high_water())
        behind_s = ((lease._high_water_ms or 0) - clock_ms()) / 1000
        if behind_s > lease._timing.mint_s + MAX_CLOCK_SKEW_S:
            raise errors.unavailable(
                f"the clock is {behind_s:.0f} s behind the ids of worker {lease.worker_id}", reason=Reason.CLOCK
            )
        await asyncio.sleep(max(behind_s, 0))
        await lease._renew()
        lease._renewal = asyncio.create_task(lease._renew_loop(), name="worker-lease")
        return lease

    def snowflake(self) -> Snowflake:
        """The lease's one source of ids; every call gives the same."""
        return self.ids

    def fault(self) -> str:
        """Returns why no ids can be minted for now, in a sentence; "" if they can."""
        if self._time() >= self._mint_until:
            return f"the lease of worker id {self.worker_id} was not renewed in time, so nothing can be written: Cassandra must answer"
        return self.ids.fault()

    async def close(self) -> None:
        """Ends minting (UNAVAILABLE), records the exact last millisecond and gives the worker id free. A second call does nothing."""
        renewal, self._renewal = self._renewal, None
        if renewal is None:
            return
        renewal.cancel()
        await asyncio.wait((renewal,))
        # Forgotten, so that the next millisecond would have to be reserved, which is refused from now on.
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
            # A lease ends by itself, and the mark only stays a little too high.
            _log.warning("a worker id was not given back", worker_id=self.worker_id, error=str(error))

    def _reserve(self, ms: int) -> int:
        if self._time() >= self._mint_until:
            # So it is after a pause, too: whoever slept past the lease mints nothing on waking.
            raise errors.unavailable("no ids for now: the worker id's lease was not renewed", reason=Reason.LEASE)
        if self._high_water_ms is None or ms > self._high_water_ms:
            # The clock jumped ahead: the mark has to follow before any id does.
            self._wake.set()
            raise errors.unavailable("no ids for now: the clock is ahead of the lease's mark", reason=Reason.LEASE)
        # In small spans, so that the lease is looked at again within the second.
        return min(self._high_water_ms, ms + RESERVE_MS)

    async def _renew_loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._timing.renew_s)
            self._wake.clear()
            try:
                await self._renew()
            except Exception as error:
                _log.warning("a worker id was not renewed", worker_id=self.worker_id, error=str(error))
                # And then at once: `wake` set for a jump must not make a loop of it.
                await asyncio.sleep(RETRY_INTERVAL_S)
                self._wake.set()

    async def _renew(self) -> None:
        """Renews and marks ahead; UNAVAILABLE where it could not, and what was reserved before still holds."""
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
        raise errors.unavailable(f"worker id {worker} is another process's", reason=Reason.LEASE)

    async def _claim(self) -> None:
        """Takes a worker id that nobody has, and whose ids this clock is past."""
        rows = await self._keyspace.read(_ALL)
        now_ms = self._clock_ms()
        taken = {
            worker_id for worker_id, owner, high_water_ms in rows if owner is not None or (high_water_ms or 0) > now_ms
        }
        free = [worker_id for worker_id in range(MAX_WORKER + 1) if worker_id not in taken]
        # At random: processes that start together would else all want the first.
        for worker_id in _shuffled(free)[:MAX_CLAIMS]:
            if (await self._keyspace.execute_lwt(_CLAIM, self._timing.ttl_s, self._owner, worker_id))[0]:
                self.worker_id = worker_id
                await self._read_high_water()
                return
        raise errors.unavailable("no worker id is free: all are leased to other processes", reason=Reason.LEASE)

    async def _read_high_water(self) -> None:
        """Reads how far this worker id has been used, and goes on from there."""
        ((owner, high_water_ms),) = await self._keyspace.read_serial(_ONE, self.worker_id) or [(None, None)]
        if not self._leased and self._mint_until and owner != self._owner:
            _log.error("another process has this worker id", worker_id=self.worker_id)
        self._high_water_ms = high_water_ms
        self.ids.move(self.worker_id, high_water_ms or 0)


def _shuffled(worker_ids: list[int]) -> list[int]:
    return random.sample(worker_ids, len(worker_ids))
