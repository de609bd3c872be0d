"""Counts of rate limits, on both backends: in the memory of a process, and in Redis for two processes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from services.platform.config import Settings
from services.platform.redis.client import Redis
from services.platform.redis.rate_limits import RedisCounts
from services.platform.rpc.rate_limit_counts import (
    FAILURES,
    SLOWED_FAILURES,
    STRANGERS_FAILURES,
    Attempt,
    MemoryCounts,
    RateLimitCounts,
)
from services.platform.rpc.token_buckets import Limit, Verdict
from tests.cluster import backend

HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
SLOW = Limit("slow", 6, 600.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def processes(clock: Clock) -> AsyncIterator[Iterator[RateLimitCounts]]:
    """The processes of a mesh in turn, without end: one on the embedded backend, two on the cluster backend."""
    if backend.name == "embedded":
        yield itertools.repeat(MemoryCounts(clock))
        return
    settings = Settings(**backend.new().settings)
    redises = [await Redis.open(settings) for _ in range(2)]
    counts = [RedisCounts(redis, b"secret", clock, lambda: round(clock() * 1e6)) for redis in redises]
    yield itertools.cycle(counts)
    assert not any(one.is_local for one in counts)
    for redis in redises:
        await redis.close()


async def fail(counts: RateLimitCounts, address: str, account: str = "ada") -> bool:
    """Returns whether an attempt was admitted; it then counts as failed."""
    return not isinstance(await counts.attempt(account, address), Verdict)


async def admitted(counts: RateLimitCounts, address: str) -> Attempt:
    attempt = await counts.attempt("ada", address)
    assert not isinstance(attempt, Verdict)
    return attempt


async def besiege(processes: Iterator[RateLimitCounts]) -> None:
    """Fails from many addresses until unknown addresses are slowed."""
    for number in range(STRANGERS_FAILURES.calls // FAILURES.calls + 1):
        for _ in range(FAILURES.calls):
            await fail(next(processes), f"203.0.113.{number}")


async def test_exact_counter_rejects_above_limit_with_state_of_bucket(
    processes: Iterator[RateLimitCounts], clock: Clock
) -> None:
    counters = {counts: counts.counter(SLOW, exact=True) for counts in (next(processes), next(processes))}
    verdicts = [await counters[next(processes)].take("a") for _ in range(SLOW.calls + 2)]
    assert [one.allowed for one in verdicts] == [True] * SLOW.calls + [False] * 2
    assert [one.remaining for one in verdicts] == [5, 4, 3, 2, 1, 0, 0, 0]
    assert verdicts[0].reset_s == pytest.approx(100)
    assert verdicts[-1].reset_s == pytest.approx(600)
    assert verdicts[-1].retry_after_s == pytest.approx(100)
    assert (await counters[next(processes)].take("b")).allowed
    assert (await counters[next(processes)].take(7)).allowed
    clock.now += 99.9
    assert not (await counters[next(processes)].take("a")).allowed
    clock.now += 0.2
    assert [(await counters[next(processes)].take("a")).allowed for _ in range(2)] == [True, False]


async def test_exact_counters_of_two_limits_count_apart(processes: Iterator[RateLimitCounts]) -> None:
    counts = next(processes)
    counters = [counts.counter(Limit(name, 1, 600.0), exact=True) for name in ("one", "two")]
    assert [(await counter.take("a")).allowed for counter in (*counters, *counters)] == [True, True, False, False]


async def test_counter_without_exactness_rejects_above_limit(processes: Iterator[RateLimitCounts]) -> None:
    counter = next(processes).counter(SLOW, exact=False)
    verdicts = [await counter.take(7) for _ in range(SLOW.calls + 1)]
    assert [one.allowed for one in verdicts] == [True] * SLOW.calls + [False]
    assert [one.remaining for one in verdicts] == [5, 4, 3, 2, 1, 0, 0]


async def test_failed_attempts_of_one_address_are_limited_until_refill(
    processes: Iterator[RateLimitCounts], clock: Clock
) -> None:
    found = [await fail(next(processes), HOME) for _ in range(FAILURES.calls + 2)]
    assert found == [True] * FAILURES.calls + [False] * 2
    assert await fail(next(processes), HOME, "bob")
    rejected = await next(processes).attempt("ada", HOME)
    assert isinstance(rejected, Verdict)
    assert rejected.limit == FAILURES
    assert rejected.retry_after_s == pytest.approx(FAILURES.step_s)
    clock.now += FAILURES.step_s + 0.1
    assert [await fail(next(processes), HOME) for _ in range(2)] == [True, False]


async def test_undone_and_successful_attempts_do_not_count(processes: Iterator[RateLimitCounts]) -> None:
    for _ in range(STRANGERS_FAILURES.calls + 1):
        await (await admitted(next(processes), HOME)).undo()
    # The address is still a stranger's: its failures slow down other strangers.
    await besiege(processes)
    assert [await fail(next(processes), HOME) for _ in range(4)] == [True] * SLOWED_FAILURES.calls + [False]


async def test_successful_attempts_do_not_count_and_make_address_known(processes: Iterator[RateLimitCounts]) -> None:
    for _ in range(STRANGERS_FAILURES.calls + 1):
        await (await admitted(next(processes), HOME)).succeed()
    await besiege(processes)
    assert [await fail(next(processes), HOME) for _ in range(11)] == [True] * FAILURES.calls + [False]


async def test_attempts_from_many_addresses_are_slowed_and_rejected_ones_do_not_count(
    processes: Iterator[RateLimitCounts], clock: Clock
) -> None:
    await besiege(processes)
    found = [await fail(next(processes), ELSEWHERE) for _ in range(FAILURES.calls + 5)]
    assert found == [True] * SLOWED_FAILURES.calls + [False] * (FAILURES.calls + 2)
    assert await fail(next(processes), ELSEWHERE, "bob")
    # The rejected attempts did not use up what FAILURES allows this address.
    rejected = await next(processes).attempt("ada", ELSEWHERE)
    assert isinstance(rejected, Verdict)
    assert rejected.limit == SLOWED_FAILURES
    clock.now += STRANGERS_FAILURES.window_s
    assert await fail(next(processes), ELSEWHERE)
