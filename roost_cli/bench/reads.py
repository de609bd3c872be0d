"""Measures rounds of reads of one server, with wrk in a closed loop or with this process in an open one.

Posts may run beside the reads. Their CPU time and that of their fan-out then belong to the round.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from roost_cli.bench import baseline_server, cpu, http_load, local_mesh, table, wrk
from roost_cli.bench.background_posts import BackgroundPoster, posting
from roost_cli.bench.fanout_watch import FanoutWatch
from roost_cli.bench.percentiles import percentile
from roost_cli.exit_codes import FAULTS, CommandError

# Length in seconds of the load before each round that is not measured. It fills the caches.
WARM_UP_S = 1
# Number of reads per post in the rounds whose posts are paced by the reads: the usual ratio of a Twitter-class service.
READS_A_POST = 100
BARE = "bare uvicorn"
CPU_TITLE = "CPU µs a read"


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """The size of a measurement: the number of rounds, the length of each in seconds, and the number of HTTP
    connections."""

    rounds: int
    seconds: int
    connections: int


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
class ReadServers:
    """The mesh and the baseline, which get the same requests."""

    mesh: ReadServer
    bare: ReadServer


@asynccontextmanager
async def read_servers(
    mesh: local_mesh.LocalMesh,
    script: str,
    requests: int,
    headers: baseline_server.Headers,
    body: bytes,
    plan: ReadPlan,
) -> AsyncIterator[ReadServers]:
    """Runs a baseline that returns a response with these headers and this body, until the block ends. `script` is the
    Lua script for wrk, which sends `requests` different requests."""
    # A temporary directory is readable only by its owner. That is needed, because the script contains access tokens.
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        script_file, recorded = Path(folder) / "requests.lua", Path(folder) / "response"
        script_file.write_text(script)
        baseline_server.record(recorded, headers, body)
        async with baseline_server.running(recorded) as (pid, port):
            yield ReadServers(
                ReadServer(mesh.http, mesh.pids, script_file, plan, requests),
                ReadServer(f"127.0.0.1:{port}", [pid], script_file, plan, requests),
            )


class ReadServer:
    """Measures rounds of one server at `address`, whose processes are `pids`. `script` is the Lua script for wrk, which
    sends `requests` different requests."""

    def __init__(self, address: str, pids: Sequence[int], script: Path, plan: ReadPlan, requests: int) -> None:
        self._address = address
        self._pids = pids
        self._script = script
        self._plan = plan
        self._requests = requests
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
        url, start = f"http://{self._address}/", self._chance.randrange(self._requests)
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
        opened: Sequence[http_load.Connection],
        requests: Sequence[bytes],
        writer: BackgroundPoster,
        fanout: FanoutWatch,
        per_second: float,
    ) -> Round:
        """Measures an open loop of `per_second` reads per second, which send `requests` in turn over the opened
        connections, and of one post for each READS_A_POST reads. Raises CommandError if a read or a post fails."""
        loop = asyncio.get_running_loop()
        cpu_begun, begun = cpu.seconds(self._pids), loop.time()
        async with posting(writer, per_second / READS_A_POST):
            samples = await http_load.run(
                opened, lambda number: requests[number % len(requests)], self._plan.seconds, per_second=per_second
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
