"""Counts rate limits in Redis, once for all processes of a mesh.

Exact limits and failed log-ins are one call of a script for each request. All other limits are decided in the memory of
the process, without waiting: it reports the requests that it allowed every REPORT_INTERVAL_S seconds, in one round
trip, and learns from the reply how much the whole mesh has counted for these keys.

Between two reports, processes do not know of each other's requests. To bound what they allow too much, a request of a
key with more than `unreported_max` unreported requests waits for a report first. So a process allows at most
2 * unreported_max requests of a key that no reply has taken into account (as many again may be allowed while a report
is on its way), and a mesh of P processes at most P * 2 * unreported_max more than the limit: with UNREPORTED_PART,
P/10 of the limit, or 2 * P requests if the limit is below 20. What was allowed too much is counted, so a client gets
the less later: over a long time the mesh allows exactly the limit. A request is counted up to REPORT_INTERVAL_S late,
so a bucket may be full up to REPORT_INTERVAL_S later.

If Redis does not answer, no request fails and none waits longer than `redis_timeout_s`: limits are counted in the
memory of each process until Redis answers again. Requests that could not be reported count in this process only, and so
do failed log-ins of that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from prometheus_client import Gauge

from services.platform.background import BackgroundWorker
from services.platform.detached import run_to_completion
from services.platform.log_events import LogEvent
from services.platform.redis.client import Redis
from services.platform.redis.rate_limit_scripts import CountedAttempt, RateLimitScripts
from services.platform.rpc import errors
from services.platform.rpc.rate_limit_counts import Attempt, Counter, MemoryCounts, RateLimitCounts
from services.platform.rpc.token_buckets import Buckets, Limit, Verdict

T = TypeVar("T")

# Seconds between two reports. A key in a report costs about 4 µs, and an active client reads about five times a second:
# reports cost less than 1 µs a request. The bound of what is allowed too much does not depend on the interval.
REPORT_INTERVAL_S = 1.0
# A request waits for a report if more than this part of its limit, at least one request, is unreported for its key: 75
# of 1,500 reads. No client but one that floods sends as many in REPORT_INTERVAL_S.
UNREPORTED_PART = 20
# Maximum number of keys of one limit with unreported requests. Beyond it a request counts in this process only; a
# process serves fewer requests in REPORT_INTERVAL_S, so this happens only while Redis does not answer.
MAX_UNREPORTED = 10_000

_local = Gauge(
    "roost_rate_limits_local",
    "1 while Redis does not answer and this process counts rate limits in its own memory, 0 while Redis counts them.",
)

log = structlog.get_logger(__name__)


class RedisCounts(BackgroundWorker, RateLimitCounts):
    """Counts in Redis. `secret` is a secret of the mesh; `clock` returns seconds of a monotonic clock. `time_us`
    replaces the clock of Redis, in microseconds, in tests."""

    def __init__(
        self, redis: Redis, secret: bytes, clock: Callable[[], float], time_us: Callable[[], int] | None = None
    ) -> None:
        super().__init__("rate-limits")
        self.scripts = RateLimitScripts(redis, secret, time_us)
        self.clock = clock
        # True while Redis does not answer.
        self.is_local = False
        self.memory = MemoryCounts(clock)
        self.unreported = asyncio.Event()
        self._timeout_s = redis.timeout_s
        self._reported: list[ReportedCounter] = []
        self._reporting = asyncio.Lock()
        _local.set(0)

    def counter(self, limit: Limit, *, exact: bool) -> Counter:
        if exact:
            return _ExactCounter(limit, self)
        self._reported.append(ReportedCounter(limit, self))
        return self._reported[-1]

    async def attempt(self, account: str, address: str) -> Attempt | Verdict:
        found = await self.ask(self.scripts.attempt(account, address))
        if found is None:
            return await self.memory.attempt(account, address)
        return _RedisAttempt(found, self) if isinstance(found, CountedAttempt) else found

    async def stop(self) -> None:
        """Stops the worker after a last report."""
        await super().stop()
        await self.report()

    async def report(self, counter: ReportedCounter | None = None, key: object = None) -> None:
        """Reports the requests that were allowed since the last report. If `counter` is given, reports only if its
        `key` must still be reported when earlier reports have ended."""
        async with self._reporting:
            if counter is not None and not counter.is_due(key):
                return
            self.unreported.clear()
            await asyncio.gather(*(each.report() for each in self._reported))

    async def ask(self, call: Awaitable[T]) -> T | None:
        """Returns the reply of Redis; None if it does not answer in time or rejects the call. Logs and exports whether
        it answers."""
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await call
        except (TimeoutError, errors.RoostError) as error:
            if not self.is_local:
                self.is_local = True
                _local.set(1)
                log.warning(LogEvent.RATE_LIMITS_ISOLATED, error=repr(error.__cause__ or error))
            return None
        if self.is_local:
            self.is_local = False
            _local.set(0)
            log.info(LogEvent.RATE_LIMITS_REJOINED)
        return reply

    async def _run(self) -> None:
        while True:
            await self.unreported.wait()
            await asyncio.sleep(REPORT_INTERVAL_S)
            await self.report()


class ReportedCounter(Counter):
    """Decides in the memory of the process, and reports the allowed requests."""

    def __init__(self, limit: Limit, counts: RedisCounts) -> None:
        self._limit = limit
        self._counts = counts
        self._clock = counts.clock
        self._buckets = Buckets(limit)
        self._unreported: dict[object, int] = {}
        self._unreported_max = max(1, limit.calls // UNREPORTED_PART)

    async def take(self, key: object) -> Verdict:
        count = self._unreported.get(key, 0)
        while count >= self._unreported_max and not self._counts.is_local:
            # Reports even if the caller is cancelled: the requests of other callers are in the same report.
            await run_to_completion(self._counts.report(self, key))
            count = self._unreported.get(key, 0)
        verdict = self._buckets.take(key, self._clock())
        if verdict.allowed:
            if count:
                self._unreported[key] = count + 1
            elif len(self._unreported) < MAX_UNREPORTED:
                self._unreported[key] = 1
                self._counts.unreported.set()
        return verdict

    def is_due(self, key: object) -> bool:
        """Returns whether requests of the key wait for a report."""
        return self._unreported.get(key, 0) >= self._unreported_max

    async def report(self) -> None:
        """Reports the unreported requests, and takes into account what the whole mesh has counted for their keys. If
        Redis does not answer, the requests count in this process only."""
        reported, self._unreported = self._unreported, {}
        if not reported:
            return
        # Before the report is sent, so that the time of the round trip counts in favour of the client.
        now, step_s = self._clock(), self._limit.step_s
        debts = await self._counts.ask(self._counts.scripts.add(self._limit, reported))
        for key, debt_s in (debts or {}).items():
            # The reply does not contain the requests since `now`.
            self._buckets.delay(key, now + debt_s + self._unreported.get(key, 0) * step_s, now)


class _ExactCounter(Counter):
    def __init__(self, limit: Limit, counts: RedisCounts) -> None:
        self._limit = limit
        self._counts = counts
        self._memory = counts.memory.counter(limit, exact=True)

    async def take(self, key: object) -> Verdict:
        verdict = await self._counts.ask(self._counts.scripts.take(self._limit, key))
        return await self._memory.take(key) if verdict is None else verdict


class _RedisAttempt(Attempt):
    def __init__(self, attempt: CountedAttempt, counts: RedisCounts) -> None:
        self._attempt = attempt
        self._counts = counts

    async def undo(self) -> None:
        await self._counts.ask(self._counts.scripts.undo(self._attempt, remember=False))

    async def succeed(self) -> None:
        await self._counts.ask(self._counts.scripts.undo(self._attempt, remember=True))
