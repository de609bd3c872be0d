"""Mints Snowflake ids: 41 bits of milliseconds since EPOCH_MS, 10 bits of worker id, 12 bits of sequence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Counter

from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

EPOCH_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
# 41 bits of milliseconds suffice for 69 years; a worker id can mint 4,096 ids per millisecond.
TIME_BITS, WORKER_BITS, SEQUENCE_BITS = 41, 10, 12
LAST_MS = EPOCH_MS + (1 << TIME_BITS) - 1
MAX_WORKER = (1 << WORKER_BITS) - 1
_TIME_SHIFT = WORKER_BITS + SEQUENCE_BITS
_MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1

# Maximum number of milliseconds by which the clock may be behind the last id while `mint` waits for it; clock
# synchronisation sets a clock back by a few milliseconds. If the clock is further behind, `mint` raises UNAVAILABLE at
# once, because waiting would exceed the caller's deadline.
CLOCK_BACK_WAIT_MS = 20
# Milliseconds by which each new high-water mark is ahead of the clock. So one small write per second is needed, and a
# start after kill -9 waits up to this long.
RESERVE_MS = 1_000
# Seconds of one wait of `mint`, the resolution of the time in an id.
_WAIT_S = 0.001
# Maximum number of waits of _WAIT_S seconds in one `mint`. Beyond it `mint` raises UNAVAILABLE. The longest wait needs
# a quarter of this number, so the maximum is reached only if the clock does not advance.
_MAX_WAITS = 4 * (RESERVE_MS + CLOCK_BACK_WAIT_MS)

_refused = Counter(
    "roost_snowflake_refused", "Ids refused, because the clock went back or is outside the range of ids."
)
_log = structlog.get_logger(__name__)


def wall_clock_ms() -> int:
    """Returns the current time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def timestamp_ms(snowflake: int) -> int:
    """Returns the time at which the id was minted, in Unix milliseconds."""
    return (snowflake >> _TIME_SHIFT) + EPOCH_MS


def first_id_at(ms: int) -> int:
    """Returns the lowest id of the millisecond `ms` (Unix time), as a bound for ranges; 0 before EPOCH_MS."""
    return max(ms - EPOCH_MS, 0) << _TIME_SHIFT


class Snowflake:
    """Mints strictly increasing ids for one worker id, on one event loop.

    `high_water_ms` (Unix milliseconds) is the last millisecond that an earlier process with this worker id may have
    used; no id is minted at or before it. `reserve(ms)` must durably store a new high-water mark ≥ `ms` and return this
    mark; it is called before an id after the last mark is minted. Raises ValueError if the worker id is not within
    0..MAX_WORKER.
    """

    def __init__(
        self,
        worker_id: int,
        clock_ms: Callable[[], int],
        high_water_ms: int = 0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        reserve: Callable[[int], int] = lambda _: LAST_MS,
    ) -> None:
        if not 0 <= worker_id <= MAX_WORKER:
            raise ValueError(f"worker id {worker_id} is not within 0..{MAX_WORKER}")
        self.last_ms = high_water_ms
        self.reserved_ms = 0
        self._worker = worker_id << SEQUENCE_BITS
        self._clock_ms = clock_ms
        self._sleep = sleep
        self._reserve = reserve
        # In the millisecond of the high-water mark, all ids count as used.
        self._sequence = _MAX_SEQUENCE
        # After kill -9 the high-water mark may be up to RESERVE_MS ahead of a correct clock.
        self._patience_ms = RESERVE_MS + CLOCK_BACK_WAIT_MS
        self._alerted = False

    async def mint(self) -> int:
        """Returns a new id. Waits only if the clock is behind the last id by at most CLOCK_BACK_WAIT_MS milliseconds
        (directly after a start: RESERVE_MS milliseconds more), or after 4,096 ids within one millisecond.

        Raises UNAVAILABLE if the clock is further behind, does not advance, or is outside EPOCH_MS to LAST_MS.
        """
        for _ in range(_MAX_WAITS):
            snowflake = self.try_mint()
            if snowflake is not None:
                return snowflake
            await self._sleep(_WAIT_S)
        raise self._refuse("the clock does not advance")

    def try_mint(self) -> int | None:
        """Returns a new id, or None if `mint` would wait. Raises UNAVAILABLE if the clock is further behind the last id
        than `mint` would wait for, or is outside EPOCH_MS to LAST_MS."""
        now = self._clock_ms()
        if now > self.last_ms:
            if not EPOCH_MS <= now <= LAST_MS:
                raise self._refuse("the clock's time is outside the range of ids")
            if now > self.reserved_ms:
                self.reserved_ms = self._reserve(now)
            self.last_ms, self._sequence = now, 0
            self._patience_ms, self._alerted = CLOCK_BACK_WAIT_MS, False
        elif self.last_ms - now > self._patience_ms:
            raise self._refuse(f"the clock went back by {self.last_ms - now} ms")
        elif now < self.last_ms or self._sequence == _MAX_SEQUENCE:
            return None
        else:
            self._sequence += 1
        return (now - EPOCH_MS) << _TIME_SHIFT | self._worker | self._sequence

    def behind_ms(self) -> int:
        """Returns the number of milliseconds by which the clock is behind the last minted id if `mint` raises for this
        reason, else 0."""
        behind = self.last_ms - self._clock_ms()
        return behind if behind > self._patience_ms else 0

    def fault(self) -> str:
        """Returns a sentence with the cause and the remedy if no ids can be minted now; "" if they can."""
        if behind := self.behind_ms():
            return (
                f"the clock is {behind / 1000:.0f} s behind the ids given out, so nothing can be written until it has passed them:"
                " set it right if it is wrong, or wait"
            )
        if not EPOCH_MS <= self._clock_ms() <= LAST_MS:
            return "the clock is at a time that ids cannot hold, so nothing can be written: set it right"
        return ""

    def move(self, worker_id: int, high_water_ms: int) -> None:
        """Changes the worker id; ids still increase strictly.

        `high_water_ms` (Unix milliseconds) is the last millisecond that an earlier process with the new worker id may
        have used.
        """
        self._worker = worker_id << SEQUENCE_BITS
        # As after a start, all ids of this millisecond count as used, and the next millisecond must be reserved.
        self.last_ms, self._sequence = max(self.last_ms, high_water_ms), _MAX_SEQUENCE
        self.reserved_ms = 0

    def _refuse(self, why: str) -> errors.RoostError:
        _refused.inc()
        if not self._alerted:
            # Logged once until ids can be minted again: a line for each rejected call would hide the cause.
            self._alerted = True
            _log.error(LogEvent.ID_MINTING_REFUSED, reason=why)
        return errors.unavailable(f"no ids can be minted now, because {why}: retry later", reason=Reason.CLOCK)
