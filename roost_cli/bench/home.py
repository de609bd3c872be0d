"""Measures reads of home timelines of a mesh, and of a minimal HTTP server (the baseline) that returns the same bytes.

Rounds of both alternate, so that other load on the machine affects both. The results are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import platform
import random
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from roost_cli import connection, progress
from roost_cli.bench import baseline_server, cpu, http_load, local_mesh, metrics, table, wrk
from roost_cli.bench.background_posts import BackgroundPoster, poster, posting
from roost_cli.bench.first_pages import HOME, Pages, first_pages
from roost_cli.bench.percentiles import percentile
from roost_cli.bench.posts import FanoutWatch
from roost_cli.bench.tweet_mix import TweetMix
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.tokens import DEFAULT_TTL_S

# Maximum length of a measurement in seconds, warm-up excluded: a quarter of the tokens' lifetime, so that no token
# expires during the measurement.
MAX_SECONDS = DEFAULT_TTL_S // 4
MAX_ROUNDS = 99
MAX_CONNECTIONS = 1_000
# Length in seconds of the load before each round that is not measured. It fills the caches.
WARM_UP_S = 1
# Number of reads per post in the rounds whose posts are paced by the reads: the usual ratio of a Twitter-class service.
READS_A_POST = 100
# Default number of tweets per second in the rounds with a constant rate of posts. With 40 followers per author, fan-out
# appends 800 entries to home timelines per second: with 1,000 readers, about one per reader.
DEFAULT_POSTS = 20
MAX_POSTS = 1_000
# Load of the open loop, as a share of the rate that the rounds with paced posts reached.
OPEN_LOAD = 0.7
# The home timelines count as cold at the first read if at least this share of the reads built one.
COLD_SHARE = 0.9
BUILDS = "roost_timeline_builds_total"

# Titles of the table's columns.
UNCHANGED, BARE = "unchanged", "bare uvicorn"
PACED, OPEN = f"1 post : {READS_A_POST} reads", f"the same, open loop, load {OPEN_LOAD:g}"
WRITTEN_TO, COLD = "{} posts/s", "cold homes"
# Names of the tables in a Markdown document: for a mesh in one process, and for a mesh with a process per service.
HOME_TABLE, PROCESSES_TABLE = "home", "home --processes"
CPU_TITLE = "CPU µs a read"
# Maximum of the CPU time of a read divided by that of the baseline. The limit of a page that does not change holds the
# figure of its release with a third to spare.
LIMITS = (table.Limit(PACED, CPU_TITLE, 3.5), table.Limit(UNCHANGED, CPU_TITLE, 4.0))


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one round: the number of reads, its length in seconds, two percentiles of the latencies of reads,
    the bytes of all responses to reads, the CPU time of the server in seconds, and the latencies of the posts in
    seconds."""

    reads: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bytes: int
    cpu_s: float
    posts_s: Sequence[float] = field(default=())

    @property
    def per_second(self) -> float:
        """Returns the number of reads per second."""
        return self.reads / self.seconds

    @property
    def cpu_us(self) -> float:
        """Returns the server's CPU time per read in microseconds, that of the posts and their fan-out included."""
        return self.cpu_s * 1e6 / self.reads

    @property
    def post_p99_ms(self) -> float | None:
        """Returns the 99th percentile of the latencies of posts in milliseconds, None if there were none."""
        return percentile(self.posts_s, 99) * 1e3 if self.posts_s else None


MEASURES = (
    table.Measure[Round]("reads/s", lambda one: one.per_second, ",.0f"),
    table.Measure[Round]("p50 ms", lambda one: one.p50_ms, ".2f"),
    table.Measure[Round]("p99 ms", lambda one: one.p99_ms, ".2f"),
    table.Measure[Round](CPU_TITLE, lambda one: one.cpu_us, ",.0f", ratio=True),
    table.Measure[Round]("bytes an answer", lambda one: one.bytes / one.reads, ",.0f"),
    table.Measure[Round]("posts/s", lambda one: len(one.posts_s) / one.seconds or None, ",.1f"),
    table.Measure[Round]("p99 ms of a post", lambda one: one.post_p99_ms, ".2f"),
)


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The size of a measurement: the number of rounds, the length of each in seconds, the number of HTTP connections,
    and the tweets posted per second in the rounds with a constant rate of posts (`posts`; 0 leaves these rounds out)."""

    rounds: int
    seconds: int
    connections: int
    posts: int


def run(plan: BenchPlan, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    """Measures reads of home timelines of the mesh and prints a table of the results.

    Raises CommandError if wrk is missing, if the mesh cannot be reached, if a read or a post fails, if every home
    timeline is empty, if rate limits are on, or if `output` refuses the table.
    """
    wrk.program()
    asyncio.run(_run(plan, mesh, output))


async def _run(plan: BenchPlan, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    shown = progress.for_stream()
    tokens = list((await local_mesh.access_tokens(mesh)).values())
    with cpu.Bystanders(mesh.pids) as bystanders:
        pages, cold = await read_first(mesh, tokens, shown)
        cases = await _measure(mesh, tokens, pages, plan, shown)
    if cold is not None:
        cases = {COLD: [cold]} | cases
    title = HOME_TABLE if len(mesh.pids) == 1 else PROCESSES_TABLE
    note = conditions(pages, plan, len(mesh.pids)) + bystanders.warning()
    if cold is None:
        note += " Homes were warm before: start the mesh anew to measure cold ones."
    output.publish(title, note, table.compare(cases, MEASURES, BARE), LIMITS)


async def read_first(
    mesh: local_mesh.LocalMesh, tokens: Sequence[str], shown: progress.Progress
) -> tuple[Pages, Round | None]:
    """Reads the first page of every home timeline once. Returns the pages, and the result as a round if the home
    timelines were cold; None if they were warm, or if the mesh has several processes."""
    single = mesh.ops if len(mesh.pids) == 1 else ""
    builds = metrics.total(await metrics.current(single), BUILDS) if single else 0.0
    cpu_begun, begun = cpu.seconds(mesh.pids), asyncio.get_running_loop().time()
    pages = await first_pages(mesh.http, tokens, shown)
    ended, cpu_s = asyncio.get_running_loop().time(), cpu.seconds(mesh.pids) - cpu_begun
    built = metrics.total(await metrics.current(single), BUILDS) - builds if single else 0.0
    if built < COLD_SHARE * len(tokens):
        return pages, None
    p50, p99 = (percentile(pages.latencies_s, percent) * 1e3 for percent in (50, 99))
    return pages, Round(len(tokens), ended - begun, p50, p99, pages.bytes, cpu_s)


async def _measure(
    mesh: local_mesh.LocalMesh, tokens: Sequence[str], pages: Pages, plan: BenchPlan, shown: progress.Progress
) -> dict[str, list[Round]]:
    """Returns the results of all rounds, by column title."""
    async with AsyncExitStack() as stack:
        # A temporary directory is readable only by its owner. That is needed, because the script contains access tokens.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roost-bench-")))
        script, page = folder / "home.lua", folder / "page"
        script.write_text(wrk.script([HOME], tokens))
        baseline_server.record(page, pages.headers, pages.body)
        bare_pid, bare_port = await stack.enter_async_context(baseline_server.running(page))
        mix = TweetMix(mesh.http, tokens, pages.tweet_ids, random.SystemRandom())
        writer = await stack.enter_async_context(poster(mesh.http, mix.write))
        channels = await stack.enter_async_context(connection.connect(mesh.target))
        readers = await stack.enter_async_context(http_load.connections(mesh.http, plan.connections))
        fanout = FanoutWatch(channels[0], mesh.target.operator())
        server = _Server(mesh.http, mesh.pids, script, plan, tokens)
        bare = _Server(f"127.0.0.1:{bare_port}", [bare_pid], script, plan, tokens)
        cases: dict[str, list[Round]] = {}
        for number in range(1, plan.rounds + 1):
            done = {UNCHANGED: await server.closed(UNCHANGED)}
            done[PACED] = await server.closed(PACED, writer, fanout, reads_a_post=READS_A_POST)
            rate = table.median([one.per_second for one in [*cases.get(PACED, ()), done[PACED]]]) * OPEN_LOAD
            done[OPEN] = await server.open(readers, writer, fanout, rate)
            if plan.posts:
                title = WRITTEN_TO.format(plan.posts)
                done[title] = await server.closed(title, writer, fanout, posts=plan.posts)
            done[BARE] = await bare.closed(BARE)
            for name, one in done.items():
                cases.setdefault(name, []).append(one)
                shown.say(f"round {number}, {name}: {one.per_second:,.0f} reads/s, {one.cpu_us:,.0f} µs each")
    return cases


class _Server:
    """Measures rounds of one server. `script` is the Lua script for wrk."""

    def __init__(self, address: str, pids: Sequence[int], script: Path, plan: BenchPlan, tokens: Sequence[str]) -> None:
        self._address = address
        self._pids = pids
        self._script = script
        self._plan = plan
        self._tokens = tokens
        self._chance = random.SystemRandom()

    async def closed(
        self,
        name: str,
        writer: BackgroundPoster | None = None,
        fanout: FanoutWatch | None = None,
        *,
        reads_a_post: int = 0,
        posts: int = 0,
    ) -> Round:
        """Measures a closed loop with wrk. Posts one tweet after each `reads_a_post` reads, or `posts` per second; none
        if both are 0. `name` is the column title. Raises CommandError if a read or a post fails."""
        url, start = f"http://{self._address}{HOME}", self._chance.randrange(len(self._tokens))
        connections, post = self._plan.connections, writer.post if writer is not None else None
        # Fills the caches of the CPU and of the server again, because the previous round measured another server.
        await wrk.run(self._script, url, connections=connections, seconds=WARM_UP_S, start=start)
        begun = cpu.seconds(self._pids)
        async with posting(writer, posts):
            seen = await wrk.run(
                self._script,
                url,
                connections=connections,
                seconds=self._plan.seconds,
                start=start,
                post=post,
                reads_a_post=reads_a_post,
            )
        check_run(name, seen)
        latencies = await _delivered(writer, fanout)
        cpu_s = cpu.seconds(self._pids) - begun
        return Round(seen.requests, seen.seconds, seen.p50_ms, seen.p99_ms, seen.bytes, cpu_s, latencies)

    async def open(
        self,
        readers: Sequence[http_load.Connection],
        writer: BackgroundPoster,
        fanout: FanoutWatch,
        per_second: float,
    ) -> Round:
        """Measures an open loop of `per_second` reads per second, and of one post for each READS_A_POST reads. Raises
        CommandError if a read or a post fails."""
        requests = [http_load.request("GET", HOME, self._address, token) for token in self._tokens]
        loop = asyncio.get_running_loop()
        cpu_begun, begun = cpu.seconds(self._pids), loop.time()
        async with posting(writer, per_second / READS_A_POST):
            samples = await http_load.run(
                readers, lambda number: requests[number % len(requests)], self._plan.seconds, per_second=per_second
            )
        seconds = loop.time() - begun
        latencies = await _delivered(writer, fanout)
        cpu_s = cpu.seconds(self._pids) - cpu_begun
        reads_s = [sample.latency_s for sample in samples]
        p50, p99 = (percentile(reads_s, percent) * 1e3 for percent in (50, 99))
        return Round(len(samples), seconds, p50, p99, sum(one.size for one in samples), cpu_s, latencies)


async def _delivered(writer: BackgroundPoster | None, fanout: FanoutWatch | None) -> list[float]:
    """Waits until all posts are answered and delivered. Returns their latencies in seconds."""
    if writer is None or fanout is None:
        return []
    latencies = await writer.finish()
    if latencies:
        await fanout.until_done()
    return latencies


def check_run(name: str, seen: wrk.Figures) -> None:
    """Raises CommandError if wrk got no response in a round, an incomplete one, or one with an error status. `name` is
    the column title."""
    if seen.refused or seen.broken or not seen.requests:
        raise CommandError(
            f"{name}: of {seen.requests:,} requests {seen.refused:,} were refused and {seen.broken:,} broken; "
            "the figures of this run are not valid: read the log of the mesh",
            FAULTS,
        )


def conditions(pages: Pages, plan: BenchPlan, processes: int) -> str:
    """Returns sentences with the conditions of the measurement, which are printed with the table. `processes` is the
    number of processes of the mesh."""
    where = (
        ""
        if processes == 1
        else f" CPU is that of all {processes} processes of the mesh, and not that of the servers below it."
    )
    return (
        f"{pages.graph} {plan.rounds} × {plan.seconds} s for each column in turn, {plan.connections} connections; "
        f"{cpu.processor()}; Python {platform.python_version()}.{where}"
    )
