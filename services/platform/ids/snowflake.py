"""Ids that sort by time: 41 bits of milliseconds since an own epoch, 10 bits of worker, 12 bits of sequence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Counter

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

EPOCH_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
TIME_BITS, WORKER_BITS, SEQUENCE_BITS = 41, 10, 12
LAST_MS = EPOCH_MS + (1 << TIME_BITS) - 1
MAX_WORKER = (1 << WORKER_BITS) - 1
_TIME_SHIFT = WORKER_BITS + SEQUENCE_BITS
_MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1

# Steps of a few ms are ordinary and worth a wait; more is a broken clock, which a caller's deadline will not outlast.
CLOCK_BACK_WAIT_MS = 20
# How far ahead ids are reserved: one small write a second, and the longest that a start after kill -9 has to wait.
RESERVE_MS = 1_000
_WAIT_S = 0.001
# Four times what the longest wait needs: reached only if the clock does not advance.
_MAX_WAITS = 4 * (RESERVE_MS + CLOCK_BACK_WAIT_MS)

_refused = Counter("roost_snowflake_refused", "Ids refused, because the clock went back or an id cannot hold it.")
_log = structlog.get_logger(__name__)


def wall_clock_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def timestamp_ms(snowflake: int) -> int:
    """When the id was minted, in milliseconds since 1970."""
    return (snowflake >> _TIME_SHIFT) + EPOCH_MS


def first_id_at(ms: int) -> int:
    """The least id that can be minted at `ms` (milliseconds since 1970): a bound for ranges. 0 before the epoch."""
    return max(ms - EPOCH_MS, 0) << _TIME_SHIFT


class Snowflake:
    """Mints strictly increasing ids for one worker (0..MAX_WORKER, else ValueError), on one event loop.

    `high_water_ms` is the last millisecond that an earlier process with this worker id may have used; no id is minted at or before it.
    `reserve(ms)` must durably store a new high-water mark ≥ ms and return it; it is called before the first id past the last mark.
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
        # The mark's own millisecond counts as used up.
        self._sequence = _MAX_SEQUENCE
        # After kill -9 the mark may lie a whole reservation ahead of a clock that is right.
        self._patience_ms = RESERVE_MS + CLOCK_BACK_WAIT_MS
        self._alerted = False

    async def mint(self) -> int:
        """Returns a new id. Suspends only if the clock went back a little, or after 4,096 ids within one millisecond.

        Raises UNAVAILABLE if the clock went back by more than CLOCK_BACK_WAIT_MS or is outside the range of ids.
        """
        for _ in range(_MAX_WAITS):
            snowflake = self.try_mint()
            if snowflake is not None:
                return snowflake
            await self._sleep(_WAIT_S)
        raise self._refuse("the clock stands still")

    def try_mint(self) -> int | None:
        """Returns a new id, or None if `mint` would wait. Raises UNAVAILABLE as `mint`."""
        now = self._clock_ms()
        if now > self.last_ms:
            if not EPOCH_MS <= now <= LAST_MS:
                raise self._refuse("an id cannot hold the clock's time")
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
        """Returns how far the clock is behind the ids given out, if that is more than a wait and ids are refused for it; else 0."""
        behind = self.last_ms - self._clock_ms()
        return behind if behind > self._patience_ms else 0

    def fault(self) -> str:
        """Returns why no ids can be minted for now, in a sentence with what to do; "" if they can."""
        if behind := self.behind_ms():
            return (
                f"the clock is {behind / 1000:.0f} s behind the ids given out, so nothing can be written until it has passed them:"
                " set it right if it is wrong, or wait"
            )
        if not EPOCH_MS <= self._clock_ms() <= LAST_MS:
            return "the clock is at a time that ids cannot hold, so nothing can be written: set it right"
        return ""

    def move(self, worker_id: int, high_water_ms: int) -> None:
        """Changes the worker id. Its earlier processes used no millisecond after `high_water_ms`. Ids still increase strictly."""
        self._worker = worker_id << SEQUENCE_BITS
        # As at a start: this millisecond counts as used up, and the next must be reserved.
        self.last_ms, self._sequence = max(self.last_ms, high_water_ms), _MAX_SEQUENCE
        self.reserved_ms = 0

    def _refuse(self, why: str) -> errors.RoostError:
        _refused.inc()
        if not self._alerted:
            # Once an episode: a line for every refused call would bury the cause.
            self._alerted = True
            _log.error("no ids", reason=why)
        return errors.unavailable(f"no ids for now: {why}", reason=Reason.CLOCK)
