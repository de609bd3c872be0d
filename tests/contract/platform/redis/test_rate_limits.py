"""Rate limits in Redis: the scripts against the rules in memory, several processes, a cluster, and the loss of Redis."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.platform.config import Settings
from services.platform.log_events import LogEvent
from services.platform.redis.client import Redis
from services.platform.redis.connection import RedisConnection
from services.platform.redis.rate_limits import MAX_UNREPORTED, UNREPORTED_PART, RedisCounts
from services.platform.rpc.rate_limit_counts import FAILURES, Counter, MemoryCounts, RateLimitCounts
from services.platform.rpc.token_buckets import Limit, Verdict
from tests import redis_servers
from tests.cluster import backend
from tests.waiting import wait_until_async

pytestmark = pytest.mark.cluster

# For a loaded machine.
PATIENT_S = 5.0
PROCESSES = 3
PHASES = (Phase.explicit, Phase.generate)


class Clock:
    """Counts whole milliseconds, which are exact in both units."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> float:
        return self.ms / 1000

    def us(self) -> int:
        return self.ms * 1000


Open = Callable[..., Awaitable[RedisCounts]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def open_counts(clock: Clock) -> AsyncIterator[Open]:
    """Opens the counts of one more process on a Redis URL."""
    opened: list[tuple[Redis, RedisCounts]] = []

    async def of(url: str, timeout_s: float = PATIENT_S, secret: bytes = b"secret") -> RedisCounts:
        redis = await Redis.open(Settings(redis_url=url, redis_timeout_s=timeout_s))
        opened.append((redis, RedisCounts(redis, secret, clock, clock.us)))
        return opened[-1][1]

    yield of
    for redis, counts in opened:
        await counts.stop()
        await redis.close()


def url() -> str:
    found: str = backend.new().settings["redis_url"]
    return found


WAIT = st.tuples(st.just("wait"), st.integers(0, 4_000_000))
TAKE = st.tuples(st.just("take"), st.sampled_from(["a", 7]))
ATTEMPT = st.tuples(
    st.sampled_from(["fail", "undo", "succeed"]), st.sampled_from(["ada", "bob"]), st.sampled_from(["p", "q"])
)
SIEGE = st.tuples(st.just("siege"), st.sampled_from([20, 101]))


async def apply(counts: RateLimitCounts, counter: Counter, step: tuple[Any, ...]) -> list[Any]:
    """Applies a step and returns what a client would see of it."""
    match step:
        case ("take", key):
            return [await counter.take(key)]
        case ("siege", number):
            return [isinstance(await counts.attempt("ada", f"{guess}"), Verdict) for guess in range(number)]
        case (outcome, account, address):
            attempt = await counts.attempt(account, address)
            if isinstance(attempt, Verdict):
                return [attempt]
            if outcome == "undo":
                await attempt.undo()
            elif outcome == "succeed":
                await attempt.succeed()
            return [outcome]
    return []


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Verdict):
            assert one[:3] == other[:3]
            assert one[3:] == pytest.approx(other[3:], abs=1e-3)
        else:
            assert one == other


def test_scripts_decide_as_rules_in_memory() -> None:
    redis_url = url()

    # Shrinking a failure over Redis would take minutes.
    @settings(max_examples=60, phases=PHASES)
    @given(st.integers(1, 7), st.lists(WAIT | TAKE | ATTEMPT | SIEGE, max_size=60))
    def check(calls: int, steps: list[tuple[Any, ...]]) -> None:
        asyncio.run(run(Limit("x", calls, 600.0), steps))

    async def run(limit: Limit, steps: list[tuple[Any, ...]]) -> None:
        clock = Clock()
        redis = await Redis.open(Settings(redis_url=redis_url, redis_timeout_s=PATIENT_S))
        # A new secret gives each example keys of its own.
        both = [MemoryCounts(clock), RedisCounts(redis, secrets.token_bytes(16), clock, clock.us)]
        counters = [counts.counter(limit, exact=True) for counts in both]
        for step in steps:
            if step[0] == "wait":
                clock.ms += step[1]
                continue
            expected, found = [await apply(*pair, step) for pair in zip(both, counters, strict=True)]
            assert_equal(found, expected)
        assert isinstance(both[1], RedisCounts)
        assert not both[1].is_local
        await redis.close()

    check()


class Mesh:
    """The processes of a mesh with one user, and the exact debt of what they allowed."""

    def __init__(self, processes: list[RedisCounts], limit: Limit, clock: Clock) -> None:
        self.processes = processes
        self.limit = limit
        self.clock = clock
        self.counters = [counts.counter(limit, exact=False) for counts in processes]
        self.debt_s = 0.0

    def wait(self, ms: int) -> None:
        self.clock.ms += ms
        self.debt_s = max(0.0, self.debt_s - ms / 1000)

    async def take(self, process: int, times: int) -> None:
        unreported_max = max(1, self.limit.calls // UNREPORTED_PART)
        bound = self.limit.calls + PROCESSES * 2 * unreported_max
        for _ in range(times):
            self.debt_s += self.limit.step_s * (await self.counters[process].take(7)).allowed
            assert self.debt_s <= bound * self.limit.step_s + 1e-6

    async def assert_excess_is_counted(self) -> None:
        """Asserts that each process rejects the user after its next report, if more than the limit was allowed."""
        for counts in self.processes:
            await counts.report()
        if self.debt_s > self.limit.window_s:
            for process in range(PROCESSES):
                await self.take(process, 1)
            for counts in self.processes:
                await counts.report()
            assert not any([(await counter.take(7)).allowed for counter in self.counters])


def test_processes_together_allow_limit_and_unreported_requests_at_most() -> None:
    redis_url = url()
    step = st.tuples(st.just("take"), st.integers(0, PROCESSES - 1), st.sampled_from([1, 20, 110]))
    report = st.tuples(st.just("report"), st.integers(0, PROCESSES - 1), st.just(0))
    wait = st.tuples(st.just("wait"), st.integers(0, 30_000), st.just(0))

    @settings(max_examples=60, phases=PHASES)
    @given(st.sampled_from([1, 3, 60, 100]), st.lists(step | report | wait, max_size=40))
    def check(calls: int, steps: list[tuple[str, int, int]]) -> None:
        asyncio.run(run(Limit("x", calls), steps))

    async def run(limit: Limit, steps: list[tuple[str, int, int]]) -> None:
        clock, secret = Clock(), secrets.token_bytes(16)
        redis = await Redis.open(Settings(redis_url=redis_url, redis_timeout_s=PATIENT_S))
        mesh = Mesh([RedisCounts(redis, secret, clock, clock.us) for _ in range(PROCESSES)], limit, clock)
        for kind, number, times in steps:
            if kind == "wait":
                mesh.wait(number)
            elif kind == "report":
                await mesh.processes[number].report()
            else:
                await mesh.take(number, times)
        await mesh.assert_excess_is_counted()
        await redis.close()

    check()


async def test_flood_through_two_processes_allows_limit_and_unreported_requests_at_most(open_counts: Open) -> None:
    limit = Limit("x", 200)
    where = url()
    counters = [(await open_counts(where)).counter(limit, exact=False) for _ in range(2)]
    verdicts = await asyncio.gather(*(counter.take(7) for counter in counters for _ in range(2 * limit.calls)))
    allowed = sum(verdict.allowed for verdict in verdicts)
    assert limit.calls <= allowed <= limit.calls * (1 + 2 * 2 / UNREPORTED_PART)


async def test_requests_below_unreported_maximum_send_nothing_to_redis(
    open_counts: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = (await open_counts(url())).counter(Limit("x", 10 * UNREPORTED_PART), exact=False)
    sent: list[bytes] = []
    execute = RedisConnection.execute

    def recording(connection: RedisConnection, payload: bytes, replies: int) -> asyncio.Future[list[Any]]:
        sent.append(payload)
        return execute(connection, payload, replies)

    monkeypatch.setattr(RedisConnection, "execute", recording)
    for _ in range(10):
        await counter.take(7)
    assert not sent
    await counter.take(7)
    # The connection for long pipelines is opened first.
    assert [b"EVAL" in payload for payload in sent].count(True) == 1


async def test_worker_reports_without_further_requests(open_counts: Open) -> None:
    limit = Limit("x", 2 * UNREPORTED_PART)
    where = url()
    first, second = [await open_counts(where) for _ in range(2)]
    await first.start()
    await first.counter(limit, exact=False).take(7)
    counter = second.counter(limit, exact=False)

    async def is_counted() -> bool:
        return await debt_of(second, limit, 7) > 0

    await wait_until_async(is_counted)
    assert (await counter.take(7)).remaining == limit.calls - 1
    await second.report()
    assert (await counter.take(7)).remaining == limit.calls - 3


async def debt_of(counts: RedisCounts, limit: Limit, key: object) -> float:
    """Returns the seconds until the key's bucket in Redis is full."""
    return (await counts.scripts.add(limit, {key: 0}))[key]


async def test_clock_of_redis_set_back_keeps_debt_and_set_forward_refills(open_counts: Open, clock: Clock) -> None:
    limit = Limit("x", 2, 600.0)
    counter = (await open_counts(url())).counter(limit, exact=True)
    for _ in range(2):
        await counter.take("a")
    clock.ms -= 86_400_000 // 100
    refused = await counter.take("a")
    assert not refused.allowed
    assert refused.retry_after_s == pytest.approx(300)
    clock.ms += 300_001
    assert [(await counter.take("a")).allowed for _ in range(2)] == [True, False]


async def test_clock_of_redis_is_used_in_production(clock: Clock) -> None:
    redis = await Redis.open(Settings(redis_url=url(), redis_timeout_s=PATIENT_S))
    counter = RedisCounts(redis, b"secret", clock).counter(Limit("x", 60_000), exact=True)
    assert (await counter.take("a")).reset_s == pytest.approx(0.001)

    async def is_refilled() -> bool:
        return (await counter.take("a")).remaining == 59_999

    await wait_until_async(is_refilled)
    await redis.close()


async def test_keys_expire_and_contain_no_names_and_differ_between_meshes(open_counts: Open) -> None:
    where = url()
    for secret in (b"one", b"two"):
        counts = await open_counts(where, secret=secret)
        await counts.counter(Limit("auth", 9), exact=True).take("192.0.2.77")
        await counts.counter(Limit("read", 9), exact=True).take(123)
        attempt = await counts.attempt("ada@example.com", "192.0.2.77")
        assert not isinstance(attempt, Verdict)
        await attempt.succeed()
        await counts.attempt("zoe", "192.0.2.77")
    client = counts.scripts._redis.client
    keys: list[Any] = await client.keys("*")
    assert len(keys) == 2 * (2 + 1 + 2)
    assert not [key for key in keys if any(name in key for name in (b"192.0", b"zoe", b"example"))]
    assert all([await client.pttl(key) > 0 for key in keys])


async def test_counter_beyond_max_unreported_keys_still_limits(open_counts: Open) -> None:
    counts = await open_counts(url())
    counter = counts.counter(Limit("x", UNREPORTED_PART * 2), exact=False)
    for key in range(MAX_UNREPORTED + 10):
        await counter.take(key)
    assert len(counter._unreported) == MAX_UNREPORTED  # type: ignore[attr-defined]
    found = [(await counter.take(MAX_UNREPORTED + 5)).allowed for _ in range(UNREPORTED_PART * 2)]
    assert found.count(False) == 1


async def test_cancelled_request_loses_no_requests_of_others(open_counts: Open) -> None:
    where, limit = url(), Limit("x", UNREPORTED_PART)
    counts = await open_counts(where)
    counter = counts.counter(limit, exact=False)
    await counter.take(7)
    waiting = asyncio.ensure_future(counter.take(7))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()

    async def is_counted() -> bool:
        return await debt_of(counts, limit, 7) == pytest.approx(limit.step_s)

    await wait_until_async(is_counted)


async def test_cluster_counts_keys_on_all_nodes(tmp_path: Path, open_counts: Open) -> None:
    with redis_servers.cluster(tmp_path) as servers:
        where = f"redis+cluster://127.0.0.1:{servers[0].port}"
        first, second = [await open_counts(where) for _ in range(2)]
        limit = Limit("x", 4, 600.0)
        counters = [counts.counter(limit, exact=False) for counts in (first, second)]
        for counter in counters:
            for key in range(1, 200):
                await counter.take(key)
        for counts in (first, second, first):
            await counts.report()
        assert {await debt_of(first, limit, key) for key in range(1, 200)} == {2 * limit.step_s}
        assert all(server.client.dbsize() for server in servers)
        exact = [counts.counter(Limit("y", 3, 600.0), exact=True) for counts in (first, second)]
        assert [(await exact[number % 2].take(f"{number // 4}")).allowed for number in range(8)] == [1, 1, 1, 0] * 2
        found = [isinstance(await (first, second)[n % 2].attempt("ada", "p"), Verdict) for n in range(11)]
        assert found == [False] * FAILURES.calls + [True]
        assert not first.is_local


async def test_cluster_node_down_counts_keys_of_other_nodes(tmp_path: Path, open_counts: Open) -> None:
    limit, keys = Limit("x", 4, 600.0), range(1, 41)
    with redis_servers.cluster(tmp_path) as servers:
        where = f"redis+cluster://127.0.0.1:{servers[0].port}"
        first, second = [await open_counts(where) for _ in range(2)]
        counters = [counts.counter(limit, exact=False) for counts in (first, second)]
        for key in keys:
            await counters[0].take(key)
        servers[2].kill()
        await first.report()
        for key in keys:
            await counters[1].take(key)
        await second.report()
        # The third request of a key of the other nodes, the second one of a key of the node that is down.
        assert {(await counters[1].take(key)).remaining for key in keys} == {1, 2}
        assert not second.is_local


async def test_loss_of_redis_is_logged_once_and_ends_by_itself(tmp_path: Path, open_counts: Open) -> None:
    limit = Limit("x", 3, 600.0)
    with redis_servers.server(tmp_path / "redis") as server, structlog.testing.capture_logs() as logged:
        counts = await open_counts(server.url)
        exact, reported = counts.counter(limit, exact=True), counts.counter(limit, exact=False)
        server.kill()
        assert [(await exact.take("a")).allowed for _ in range(4)] == [True] * 3 + [False]
        assert [(await reported.take(7)).allowed for _ in range(4)] == [True] * 3 + [False]
        assert [isinstance(await counts.attempt("bob", "p"), Verdict) for _ in range(11)] == [False] * 10 + [True]
        assert counts.is_local
        assert REGISTRY.get_sample_value("roost_rate_limits_local") == 1
        server.start()

        async def is_shared() -> bool:
            await exact.take("b")
            return not counts.is_local

        await wait_until_async(is_shared)
        assert (await exact.take("a")).allowed
    events = [entry["event"] for entry in logged if entry["event"].startswith("rate_limits")]
    assert events == [LogEvent.RATE_LIMITS_ISOLATED, LogEvent.RATE_LIMITS_REJOINED]
    assert REGISTRY.get_sample_value("roost_rate_limits_local") == 0


async def test_redis_that_hangs_delays_one_request_at_most(tmp_path: Path, open_counts: Open) -> None:
    with redis_servers.server(tmp_path / "redis") as server:
        counts = await open_counts(server.url, timeout_s=0.2)
        counter = counts.counter(Limit("x", 3, 600.0), exact=True)
        server.pause()
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert [(await counter.take("a")).allowed for _ in range(4)] == [True] * 3 + [False]
        # Four timeouts would take longer.
        assert loop.time() - began < 0.7
        server.resume()


async def test_command_that_redis_rejects_counts_as_loss_of_redis(tmp_path: Path, open_counts: Open) -> None:
    with redis_servers.server(tmp_path / "redis", "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        counts = await open_counts(server.url)
        counter = counts.counter(Limit("x", 1, 600.0), exact=True)
        assert [(await counter.take("a")).allowed for _ in range(2)] == [True, False]
        assert counts.is_local
