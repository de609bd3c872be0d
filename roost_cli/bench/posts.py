"""Measures durable posts over HTTP, their fan-out included, and a minimal HTTP server that returns the same bytes.

A post counts once the mesh has returned status 201, which it does after the commit. A round ends when fan-out has
delivered the last tweet to the warm home timelines of its author's followers, so fan-out is part of the rate and of the
CPU time.
"""

from __future__ import annotations

import asyncio
import platform
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from roost_cli import connection, progress
from roost_cli.bench import baseline_server, cpu, http_load, local_mesh, table
from roost_cli.bench.fanout_watch import Delivery, FanoutWatch
from roost_cli.bench.first_pages import first_pages
from roost_cli.bench.percentiles import percentile
from roost_cli.bench.tweet_texts import TweetTexts

POSTS = "/v1/tweets"
TABLE = "posts"
MESH, BARE = "Roost", "bare uvicorn, one response"
# Length in seconds of the load before each round that is not measured. It fills the caches of the CPU.
WARM_UP_S = 1.0
# Seconds after the last delivery for which the CPU time is still counted, because the search index and the counts
# process events after fan-out.
AFTER_S = 1.0
# Number of texts that are made before the measurement.
TEXTS = 2_000


@dataclass(frozen=True, slots=True)
class PostsPlan:
    """The size of a measurement: the number of rounds, the length of each in seconds, the number of callers, each with
    its own connection, and the posts per second of an open loop (0: a closed loop)."""

    rounds: int
    seconds: int
    callers: int
    per_second: int


@dataclass(frozen=True, slots=True)
class PostsRound:
    """The result of one round: the latencies of the posts in seconds, the seconds until the last tweet was delivered,
    the server's CPU time in seconds, and the deliveries of some tweets (none for the baseline)."""

    latencies_s: Sequence[float]
    seconds: float
    cpu_s: float
    deliveries: Sequence[Delivery] = ()

    def latency_ms(self, percent: float) -> float:
        """Returns a percentile of the latencies in milliseconds."""
        return percentile(self.latencies_s, percent) * 1e3

    def delivery_ms(self, percent: float) -> float | None:
        """Returns a percentile of the delivery times in milliseconds, None if there are none."""
        seconds = [delivery.seconds for delivery in self.deliveries]
        return percentile(seconds, percent) * 1e3 if seconds else None

    @property
    def homes_each(self) -> float | None:
        """Returns the mean number of home timelines that got a tweet, None if unknown."""
        homes = [delivery.homes for delivery in self.deliveries]
        return sum(homes) / len(homes) if homes else None

    @property
    def per_second(self) -> float:
        """Returns the number of posts per second, until the last tweet was delivered."""
        return len(self.latencies_s) / self.seconds

    @property
    def cpu_us(self) -> float:
        """Returns the server's CPU time per post, in microseconds."""
        return self.cpu_s * 1e6 / len(self.latencies_s)


MEASURES = (
    table.Measure[PostsRound]("posts/s", lambda one: one.per_second, ",.0f"),
    table.Measure[PostsRound]("p50 ms", lambda one: one.latency_ms(50), ".2f"),
    table.Measure[PostsRound]("p95 ms", lambda one: one.latency_ms(95), ".2f"),
    table.Measure[PostsRound]("p99 ms", lambda one: one.latency_ms(99), ".2f"),
    table.Measure[PostsRound]("CPU µs a post", lambda one: one.cpu_us, ",.0f", ratio=True),
    table.Measure[PostsRound]("home timelines a post", lambda one: one.homes_each, ".1f"),
    table.Measure[PostsRound]("delivery p50 ms", lambda one: one.delivery_ms(50), ",.0f"),
    table.Measure[PostsRound]("delivery p95 ms", lambda one: one.delivery_ms(95), ",.0f"),
    table.Measure[PostsRound]("delivery p99 ms", lambda one: one.delivery_ms(99), ",.0f"),
)


def run(plan: PostsPlan, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    """Measures posts to the mesh as random users, and prints a table of the results.

    Raises CommandError if the mesh cannot be reached, has no users or limits rates, if a post fails, if fan-out takes
    longer than DELIVER_WITHIN_S seconds, or if `output` refuses the table.
    """
    asyncio.run(_run(plan, mesh, output))


async def _run(plan: PostsPlan, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    shown = progress.for_stream()
    tokens = await local_mesh.access_tokens(mesh)
    # Fan-out appends only to home timelines that are warm.
    pages = await first_pages(mesh.http, list(tokens.values()), shown)
    with cpu.Bystanders(mesh.pids) as bystanders:
        cases = await _measure(plan, mesh, list(tokens.values()), shown)
    loop = f"open loop, {plan.per_second:,} posts/s intended" if plan.per_second else "closed loop"
    note = (
        f"{pages.content} {plan.rounds} × {plan.seconds} s for each server in turn, {plan.callers} callers, {loop}; "
        f"{cpu.processor()}; Python {platform.python_version()}.{bystanders.warning()}"
    )
    output.publish(TABLE, note, table.compare(cases, MEASURES, BARE))


async def _measure(
    plan: PostsPlan, mesh: local_mesh.LocalMesh, tokens: Sequence[str], shown: progress.Progress
) -> Mapping[str, Sequence[PostsRound]]:
    cases: dict[str, list[PostsRound]] = {MESH: [], BARE: []}
    make = post_maker(mesh.http, tokens)
    async with connection.connect(mesh.target) as channels, http_load.connections(mesh.http, plan.callers) as opened:
        fanout = FanoutWatch(channels[0], mesh.target.operator())
        sample = await opened[0].ask(make(0))
        http_load.check(sample, 201)
        with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
            recorded = Path(folder) / "response"
            baseline_server.record(recorded, sample.headers, sample.body)
            async with (
                baseline_server.running(recorded) as (bare_pid, bare_port),
                http_load.connections(f"127.0.0.1:{bare_port}", plan.callers) as bare,
            ):
                for number in range(1, plan.rounds + 1):
                    for name, done in (
                        (MESH, await _mesh_round(plan, opened, make, mesh.pids, fanout)),
                        (BARE, await _bare_round(plan, bare, make, bare_pid)),
                    ):
                        cases[name].append(done)
                        shown.say(f"round {number}, {name}: {done.per_second:,.0f} posts/s, {done.cpu_us:,.0f} µs each")
    return cases


def post_maker(address: str, tokens: Sequence[str]) -> Callable[[int], bytes]:
    """Returns a function that returns a request to post a tweet, each as a random user of those whose access tokens are
    in `tokens`. `address` is that of the gateway."""
    texts = TweetTexts(seed=1)
    bodies = [orjson.dumps({"text": texts.next()}) for _ in range(TEXTS)]
    chance = random.SystemRandom()
    return lambda number: http_load.request("POST", POSTS, address, chance.choice(tokens), bodies[number % len(bodies)])


async def _mesh_round(
    plan: PostsPlan,
    opened: Sequence[http_load.Connection],
    make: Callable[[int], bytes],
    pids: Sequence[int],
    fanout: FanoutWatch,
) -> PostsRound:
    await http_load.run(opened, make, WARM_UP_S, expected=201)
    await fanout.until_done()
    loop = asyncio.get_running_loop()
    cpu_begun, begun = cpu.seconds(pids), loop.time()
    samples = await http_load.run(opened, make, plan.seconds, per_second=plan.per_second, expected=201, keep=True)
    await fanout.until_done()
    ended = loop.time()
    await asyncio.sleep(AFTER_S)
    cpu_s = cpu.seconds(pids) - cpu_begun
    deliveries = await fanout.deliveries(samples)
    return PostsRound([one.latency_s for one in samples], ended - begun, cpu_s, deliveries)


async def _bare_round(
    plan: PostsPlan, opened: Sequence[http_load.Connection], make: Callable[[int], bytes], pid: int
) -> PostsRound:
    await http_load.run(opened, make, WARM_UP_S)
    loop = asyncio.get_running_loop()
    cpu_begun, begun = cpu.seconds([pid]), loop.time()
    samples = await http_load.run(opened, make, plan.seconds, per_second=plan.per_second)
    return PostsRound([one.latency_s for one in samples], loop.time() - begun, cpu.seconds([pid]) - cpu_begun)
