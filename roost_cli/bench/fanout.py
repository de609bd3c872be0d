"""`roost bench fanout`: CPU and memory per entry of a home timeline in Redis, compared with the usual design.

The usual design (`textbook` in this module) is one sorted set per reader, with one ZADD and one ZREMRANGEBYRANK per
follower, pipelined by redis-py. Both designs write in turn to full home timelines in the same Redis. CPU time is that of this process plus
what Redis reports for itself.
"""

from __future__ import annotations

import asyncio
import platform
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
import uvloop

from roost_cli import progress
from roost_cli.bench import cpu, table
from roost_cli.exit_codes import FAULTS, CommandError
from services.platform.config import Settings
from services.platform.redis.client import Redis
from services.platform.redis.connection import command, field_of
from services.platform.rpc.errors import RoostError
from services.timeline.store import CAPACITY, SERVED, TRIM_ABOVE
from services.timeline.store.redis.encoding import list_key, marker_key
from services.timeline.store.redis.store import RedisHomeTimelines

READERS = 5_000
# Home timeline entries written in each pass. With fewer, the resolution of Redis's CPU figures would distort the
# result; with more, the textbook design would take too long.
ENTRIES_A_ROUND = 80_000
# The maximum of one AppendHomeEntries call.
IDS_A_CALL = 10_000
# Followers per pipeline in the textbook design, as many as in one entry of an AppendHomeEntries call.
PIPELINE = 1_000
SEED_AT_ONCE = 32
# The distance between the ids of two tweets: 2^12, the size of the sequence part of a Snowflake id, as if two processes
# had made the tweets in the same millisecond.
ID_STEP = 4_096
# The first ids of readers and tweets. They have as many digits as real ids, because the length of keys is part of the
# cost.
FIRST_READER = FIRST_TWEET = 10**17
START_WITHIN_S = 10.0
# Timeout in seconds of the textbook's client, for a machine that is busy otherwise.
TEXTBOOK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """A workload: each call appends `tweets` tweets to the home timelines of `followers` readers. `wanted` is the
    factor by which Roost should use less CPU than the textbook design."""

    title: str
    followers: int
    tweets: int
    wanted: int


CASES = (
    Case("200 followers", 200, 1, 5),
    Case("5,000 followers", 5_000, 1, 6),
    Case("5,000 followers, 16 tweets a key", 5_000, 16, 20),
)
# Roost should use at most a tenth of the bytes.
WANTED_BYTES = 10


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a case: CPU microseconds per entry."""

    client_us: float
    server_us: float

    @property
    def both_us(self) -> float:
        """Returns the CPU time per entry of client and Redis together, in microseconds."""
        return self.client_us + self.server_us


Write = Callable[[Sequence[int], Sequence[int]], Awaitable[None]]


class FanoutBench:
    """Stores home timelines of the same readers in both designs, and measures the writes to each."""

    def __init__(self, ours: Redis, theirs: redis.Redis) -> None:
        self._ours = ours
        self._theirs = theirs
        self._store = RedisHomeTimelines(ours)
        self._readers = range(FIRST_READER, FIRST_READER + READERS)
        self._next_tweet = FIRST_TWEET
        self._chance = random.Random(1)  # noqa: S311 (the same followers in every run)

    async def fill(self, shown: progress.Progress) -> None:
        """Fills every home timeline, so that each append also removes an entry. The lists of Roost's design get
        different lengths, as in a running mesh."""
        ids = self._new_tweets(CAPACITY)
        scores = {str(tweet_id): tweet_id for tweet_id in ids[-SERVED:]}
        with shown.phase("homes filled", READERS) as phase:
            for start in range(0, READERS, SEED_AT_ONCE):
                some = self._readers[start : start + SEED_AT_ONCE]
                await asyncio.gather(*(self._fill_ours(reader, ids) for reader in some))
                pipeline = self._theirs.pipeline(transaction=False)
                for reader in some:
                    pipeline.zadd(f"timeline:{reader}", scores)
                pipeline.execute()
                phase.advance(len(some))

    async def _fill_ours(self, reader: int, ids: Sequence[int]) -> None:
        build = await self._store.open_build(reader, int(time.time() * 1000), "hybrid")
        if build is None or await self._store.close_build(build, ids, 0) is None:
            raise CommandError("Redis lost a home timeline: name a Redis that nothing else uses with --redis", FAULTS)
        for _ in range(reader % ((TRIM_ABOVE - CAPACITY) // 16)):
            await self._store.append([(tweet_id, (reader,)) for tweet_id in ids[-16:]])

    async def measure(self, case: Case, write: Write) -> Pass:
        """Runs one pass of a case with the given write function."""
        # The calls are drawn before the measurement starts, because drawing them is part of neither design.
        calls = max(1, ENTRIES_A_ROUND // (case.followers * case.tweets))
        drawn = [self._chance.sample(self._readers, case.followers) for _ in range(calls)]
        entries = calls * case.followers * case.tweets
        begun, server = time.process_time(), await self._server_s()
        for followers in drawn:
            await write(self._new_tweets(case.tweets), followers)
        spent = time.process_time() - begun
        return Pass(spent * 1e6 / entries, (await self._server_s() - server) * 1e6 / entries)

    async def ours(self, tweet_ids: Sequence[int], followers: Sequence[int]) -> None:
        """Appends the tweets by Roost's Redis adapter, in calls of the size that fan-out uses."""
        a_call = IDS_A_CALL // len(tweet_ids)
        for start in range(0, len(followers), a_call):
            some = followers[start : start + a_call]
            counts = await self._store.append([(tweet_id, some) for tweet_id in tweet_ids])
            if set(counts) != {len(some)}:
                raise CommandError(
                    "Redis lost home timelines during the run: name a Redis that nothing else uses with --redis",
                    FAULTS,
                )

    async def theirs(self, tweet_ids: Sequence[int], followers: Sequence[int]) -> None:
        """Appends the tweets by one ZADD and one ZREMRANGEBYRANK per follower."""
        for tweet_id in tweet_ids:
            for start in range(0, len(followers), PIPELINE):
                pipeline = self._theirs.pipeline(transaction=False)
                for follower in followers[start : start + PIPELINE]:
                    key = f"timeline:{follower}"
                    pipeline.zadd(key, {str(tweet_id): tweet_id})
                    pipeline.zremrangebyrank(key, 0, -SERVED - 1)
                pipeline.execute()

    def bytes_each(self) -> tuple[float, float]:
        """Returns the mean bytes per entry of a full home timeline: Roost's including its marker key, and the
        textbook's."""
        ours = theirs = 0.0
        some = self._readers[:100]
        for reader in some:
            taken = self._memory(list_key(reader)) + self._memory(marker_key(reader))
            ours += taken / int(self._theirs.llen(list_key(reader)))
            theirs += self._memory(f"timeline:{reader}") / int(self._theirs.zcard(f"timeline:{reader}"))
        return ours / len(some), theirs / len(some)

    def _memory(self, key: str) -> int:
        return int(self._theirs.memory_usage(key, samples=0) or 0)

    async def _server_s(self) -> float:
        (info,) = await (await self._ours.node("").reads()).execute(command("INFO", "cpu"), 1)
        return float(field_of(info, "used_cpu_user")) + float(field_of(info, "used_cpu_sys"))

    def _new_tweets(self, count: int) -> Sequence[int]:
        first, self._next_tweet = self._next_tweet, self._next_tweet + count * ID_STEP
        return range(first, self._next_tweet, ID_STEP)


def run(rounds: int, url: str | None, markdown: Path | None) -> None:
    """Measures in the Redis at `url`, or in a temporary one, and prints the table. Raises CommandError if Redis
    fails."""
    shown = progress.for_stream()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            lines, version = runner.run(_measure(rounds, url, shown))
    except (RoostError, redis.RedisError) as error:
        raise CommandError(f"Redis: {error}") from error
    note = (
        f"{READERS:,} readers with full homes; {rounds} × {ENTRIES_A_ROUND:,} entries of each case for each way in turn; Redis {version}, "
        f"{cpu.processor()}; Python {platform.python_version()}, redis-py {redis.__version__}."
    )
    table.publish("fanout", note, lines, markdown)


async def _measure(rounds: int, url: str | None, shown: progress.Progress) -> tuple[list[list[str]], str]:
    async with _server(url) as where:
        ours = await Redis.open(Settings(redis_url=where, redis_timeout_s=5.0))
        theirs = redis.Redis.from_url(where, socket_timeout=TEXTBOOK_TIMEOUT_S)
        ours_to_empty = not theirs.dbsize()
        try:
            if not ours_to_empty:
                raise CommandError(f"the database at {where} is not empty: name an empty one")
            work = FanoutBench(ours, theirs)
            await work.fill(shown)
            found: dict[Case, tuple[list[Pass], list[Pass]]] = {case: ([], []) for case in CASES}
            for number in range(rounds + 1):
                for case, (mine, others) in found.items():
                    passes = await work.measure(case, work.ours), await work.measure(case, work.theirs)
                    if number:
                        mine.append(passes[0])
                        others.append(passes[1])
                        said = f"{passes[0].both_us:.2f} µs an entry, the textbook {passes[1].both_us:.2f}"
                        shown.say(f"round {number}, {case.title}: {said}")
            return rows(found, *work.bytes_each()), str(theirs.info("server")["redis_version"])
        finally:
            if ours_to_empty:
                theirs.flushdb()
            theirs.close()
            await ours.close()


def rows(found: dict[Case, tuple[list[Pass], list[Pass]]], our_bytes: float, their_bytes: float) -> list[list[str]]:
    """Returns the table, header first: medians over the rounds with the range in parentheses, and the textbook's
    figure divided by Roost's."""
    lines = [["an entry", "Roost", "textbook", "textbook ÷ Roost", "wanted"]]
    parts: Sequence[tuple[str, Callable[[Pass], float]]] = (
        ("client", lambda one: one.client_us),
        ("server", lambda one: one.server_us),
        ("both", lambda one: one.both_us),
    )
    for case, (ours, theirs) in found.items():
        for part, value in parts:
            mine, others = [value(one) for one in ours], [value(one) for one in theirs]
            cells = [table.spread(mine, ".2f"), table.spread(others, ".2f"), f"{table.ratio(others, mine):.1f}"]
            lines.append([f"{case.title}: CPU µs, {part}", *cells, f"≥ {case.wanted}" if part == "both" else ""])
    cells = [f"{our_bytes:.1f}", f"{their_bytes:.1f}", f"{their_bytes / our_bytes:.1f}", f"≥ {WANTED_BYTES}"]
    lines.append(["bytes, marker included", *cells])
    return lines


@asynccontextmanager
async def _server(url: str | None) -> AsyncIterator[str]:
    """Yields `url`, or the URL of a temporary Redis that stops with the block."""
    if url is not None:
        yield url
        return
    program = shutil.which("redis-server")
    if program is None:
        raise CommandError("redis-server is not installed: install it, or name a Redis with --redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        options = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--logfile", "log")
        process = subprocess.Popen([program, "--port", str(port), "--dir", folder, *options])  # noqa: ASYNC220, S603
        try:
            await _until_it_answers(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


async def _until_it_answers(port: int) -> None:
    until = time.monotonic() + START_WITHIN_S
    while True:
        try:
            with redis.Redis(port=port) as client:
                client.ping()
        except redis.RedisError:
            if time.monotonic() > until:
                raise CommandError("redis-server did not start", FAULTS) from None
            await asyncio.sleep(0.05)
        else:
            return
