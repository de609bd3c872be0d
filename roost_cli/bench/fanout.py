"""`roost bench fanout`: measures the CPU time and memory of home timelines in Redis, for Roost's design and for the
usual one.

In the usual design (called textbook), a home timeline is a sorted set, and fan-out sends one ZADD and one
ZREMRANGEBYRANK per follower, in pipelines of redis-py. Both designs write alternately to full home timelines in the
same Redis. An entry is one tweet id in one home timeline. The CPU time is that of this process plus that which Redis
reports for itself.
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

TABLE = "fanout"
# Number of home timelines.
READERS = 5_000
# Number of entries written in each pass. With fewer, the low resolution of Redis's CPU time would distort the result.
# With more, the textbook design would take too long.
ENTRIES_A_ROUND = 80_000
# Number of entries of one call to the store: the maximum of an AppendHomeEntries call, which fan-out uses.
IDS_A_CALL = 10_000
# Number of followers per pipeline in the textbook design. An AppendHomeEntries call has as many for each tweet.
PIPELINE = 1_000
# Number of home timelines that are filled concurrently before the measurement.
SEED_AT_ONCE = 32
# The difference between the ids of two successive tweets. It is 2^12, the size of the sequence part of a Snowflake, as
# if processes with successive worker ids had created the tweets in the same millisecond.
ID_STEP = 4_096
# The first id of the readers and of the tweets. They have as many digits as real ids, because the length of keys
# affects CPU time and memory.
FIRST_READER = FIRST_TWEET = 10**17
START_WITHIN_S = 10.0
# Timeout in seconds of the textbook's Redis client. It is long, so that a busy machine does not end the measurement.
TEXTBOOK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Case:
    """A workload: each write appends `tweets` tweets to the home timelines of `followers` readers.

    `wanted` is the target: the textbook's CPU time should be at least `wanted` times Roost's CPU time.
    """

    title: str
    followers: int
    tweets: int
    wanted: int


CASES = (
    Case("200 followers", 200, 1, 5),
    Case("5,000 followers", 5_000, 1, 6),
    Case("5,000 followers, 16 tweets a key", 5_000, 16, 20),
)
# Target for memory: the textbook's bytes per entry should be at least this many times those of Roost.
WANTED_BYTES = 10


@dataclass(frozen=True, slots=True)
class Pass:
    """The result of one pass of a case: the CPU time of this process and of Redis per entry, in microseconds."""

    client_us: float
    server_us: float

    @property
    def both_us(self) -> float:
        """Returns the CPU time per entry of client and Redis together, in microseconds."""
        return self.client_us + self.server_us


Write = Callable[[Sequence[int], Sequence[int]], Awaitable[None]]


class FanoutBench:
    """Stores home timelines in both designs, and measures the writes to each. `ours` is the Redis client of Roost's
    design, `theirs` the Redis client of the textbook's design; both use the same database."""

    def __init__(self, ours: Redis, theirs: redis.Redis) -> None:
        self._ours = ours
        self._theirs = theirs
        self._store = RedisHomeTimelines(ours)
        self._readers = range(FIRST_READER, FIRST_READER + READERS)
        self._next_tweet = FIRST_TWEET
        self._chance = random.Random(1)  # noqa: S311 (the same followers in every run)

    async def fill(self, shown: progress.Progress) -> None:
        """Fills every home timeline, so that appends also remove entries. In Roost's design, which removes entries only
        every 64 appends, the home timelines get different lengths, as in a running mesh."""
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
        """Runs one pass of a case and returns its CPU time. `write` appends tweets to home timelines: `ours` or
        `theirs`."""
        # The followers are drawn before the measurement starts, because the time to draw them is not a cost of the
        # designs.
        calls = max(1, ENTRIES_A_ROUND // (case.followers * case.tweets))
        drawn = [self._chance.sample(self._readers, case.followers) for _ in range(calls)]
        entries = calls * case.followers * case.tweets
        begun, server = time.process_time(), await self._server_s()
        for followers in drawn:
            await write(self._new_tweets(case.tweets), followers)
        spent = time.process_time() - begun
        return Pass(spent * 1e6 / entries, (await self._server_s() - server) * 1e6 / entries)

    async def ours(self, tweet_ids: Sequence[int], followers: Sequence[int]) -> None:
        """Appends the tweets to the followers' home timelines with Roost's Redis adapter, in calls as large as fan-out
        makes them. Raises CommandError if a home timeline is missing."""
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
        """Appends the tweets to the followers' home timelines in the textbook design: one ZADD and one ZREMRANGEBYRANK
        per follower and tweet."""
        for tweet_id in tweet_ids:
            for start in range(0, len(followers), PIPELINE):
                pipeline = self._theirs.pipeline(transaction=False)
                for follower in followers[start : start + PIPELINE]:
                    key = f"timeline:{follower}"
                    pipeline.zadd(key, {str(tweet_id): tweet_id})
                    pipeline.zremrangebyrank(key, 0, -SERVED - 1)
                pipeline.execute()

    def bytes_each(self) -> tuple[float, float]:
        """Returns the mean number of bytes per entry of a home timeline in Roost's design (marker included) and in the
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


def run(rounds: int, url: str | None, markdown: table.Document | None) -> None:
    """Measures all cases `rounds` times, in the empty Redis database at `url` or in a temporary Redis if `url` is None,
    and prints a table of the results.

    If `markdown` is not None, also replaces the previous table in this Markdown document. Raises CommandError if Redis
    fails or if the database is not empty.
    """
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
    table.publish(TABLE, note, lines, markdown)


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
    """Returns the rows of the table, header first: for each case the CPU time in both designs, and the textbook's
    divided by Roost's; last the bytes per entry.

    `found` has the passes of each case: Roost's and the textbook's. A CPU time is the median of the rounds, with the
    range in parentheses.
    """
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
    """Yields `url`. If `url` is None, starts a Redis server, yields its URL, and stops it at the end of the block."""
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
