"""Defines token buckets (GCRA): a bucket is stored as the time at which it is full again.

The `limits` package was measured and rejected: to count a request and to read what remains takes 12–20 µs, and its
memory storage starts a thread every 10 ms that iterates over all keys. `Buckets.take` takes about 1 µs, and the number
of buckets is bounded.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# Seconds in which the allowance of a class refills, for all classes except sign-ups.
WINDOW_S = 60.0
# Maximum number of keys of one limit, about 100 bytes each. Beyond it keys whose bucket is full are evicted, because a
# full bucket equals an absent one; if there are none, the oldest tenth is evicted.
MAX_BUCKETS = 100_000
# Tolerance in seconds: a rounding error of floats must not reject the last request that the limit allows.
SLACK_S = 1e-6


class Limit(NamedTuple):
    """The limit of a class: `calls` requests at once, which refill evenly over `window_s` seconds. `name` is the name
    of the class in headers and errors."""

    name: str
    calls: int
    window_s: float = WINDOW_S

    @property
    def step_s(self) -> float:
        """The seconds in which one request refills."""
        return self.window_s / self.calls


class Verdict(NamedTuple):
    """The decision of a bucket about one request.

    `remaining` is the number of further requests allowed now; `reset_s` seconds until the bucket is full,
    `retry_after_s` seconds until a request is allowed again (0 if this request is allowed).
    """

    limit: Limit
    allowed: bool
    remaining: int
    reset_s: float
    retry_after_s: float

    def enforce(self) -> None:
        """Raises RESOURCE_EXHAUSTED, with the time to wait, if the request is not allowed."""
        if not self.allowed:
            limit = self.limit
            per = "a minute" if limit.window_s == WINDOW_S else f"in {limit.window_s / 60:g} minutes"
            # The same number as in the header `retry-after`.
            wait_s = max(1, math.ceil(self.retry_after_s))
            message = f"more than {limit.calls} {limit.name} requests {per}: the next one is allowed in {wait_s} s"
            raise errors.resource_exhausted(message, self.retry_after_s, reason=Reason.RATE_LIMITED)


def verdict_of(limit: Limit, allowed: bool, debt_s: float) -> Verdict:
    """Returns the verdict about a request after which the bucket is full in `debt_s` seconds. A rejected request is not
    counted in `debt_s`."""
    step = limit.step_s
    if allowed:
        return Verdict(limit, True, max(0, int((limit.window_s - debt_s) / step + 0.5)), debt_s, 0.0)
    return Verdict(limit, False, 0, debt_s, max(0.0, debt_s + step - limit.window_s))


class Buckets:
    """The buckets of one limit by key, in the memory of this process."""

    __slots__ = ("_full_at", "_max_buckets", "_step", "limit")

    def __init__(self, limit: Limit, max_buckets: int = MAX_BUCKETS) -> None:
        self.limit = limit
        self._step = limit.step_s
        self._max_buckets = max_buckets
        self._full_at: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: object, now: float) -> Verdict:
        """Counts one request of the key and returns whether it is allowed. A rejected request is not counted.

        `now` is in seconds of a monotonic clock, the same one for all calls.
        """
        full_at = self._full_at.get(key, now)
        full_at = (full_at if full_at > now else now) + self._step
        limit = self.limit
        room = limit.window_s - (full_at - now)
        if room < -SLACK_S:
            return Verdict(limit, False, 0, full_at - self._step - now, -room)
        self._store(key, full_at, now)
        return Verdict(limit, True, max(0, int(room / self._step + 0.5)), full_at - now, 0.0)

    def give_back(self, key: object) -> None:
        """Undoes one allowed `take` of the key, so that the request no longer counts."""
        if (full_at := self._full_at.get(key)) is not None:
            self._full_at[key] = full_at - self._step

    def delay(self, key: object, full_at: float, now: float) -> None:
        """Makes the bucket full no earlier than `full_at`, because requests were counted elsewhere too."""
        if full_at > self._full_at.get(key, now):
            self._store(key, full_at, now)

    def _store(self, key: object, full_at: float, now: float) -> None:
        if key not in self._full_at and len(self._full_at) >= self._max_buckets:
            self._make_room(now)
        self._full_at[key] = full_at

    def _make_room(self, now: float) -> None:
        kept = {key: full_at for key, full_at in self._full_at.items() if full_at > now}
        if len(kept) >= self._max_buckets:
            # No bucket is full: evicts the oldest tenth, which then start again with a full allowance.
            for key in list(kept)[: self._max_buckets // 10 + 1]:
                del kept[key]
        self._full_at = kept
