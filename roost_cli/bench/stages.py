"""Measures the stages of a home read and of a post against their time budgets.

The times are those of the metrics that a mesh has anyway, so measuring costs the mesh nothing. A stage that is no call
between services has no time of its own; it is in the rest of the call around it.
"""

from __future__ import annotations

import asyncio
import platform
import random
from collections.abc import Sequence
from dataclasses import dataclass

from roost_cli import connection, progress
from roost_cli.bench import cpu, http_load, local_mesh, metrics, table
from roost_cli.bench.fanout_watch import FanoutWatch
from roost_cli.bench.first_pages import HOME, first_pages
from roost_cli.bench.tweet_mix import TweetMix
from roost_cli.exit_codes import CommandError

TABLE = "stages"
HTTP, RPC = "roost_http_request_seconds", "grpc_server_handling_seconds"
READ, WRITE = "ListHomeTimeline", "CreateTweet"
MERGE = ("BatchListAuthorTweetIds",)
HYDRATE = ("BatchGetTweetCores", "BatchGetUserRefs", "BatchGetCounts", "GetVisibilityFilter")
RANK = ("RankTweets",)


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the table: the title, the budget in milliseconds as text, and the mean time in milliseconds."""

    title: str
    budget: str
    ms: float


def run(operations: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    """Posts `operations` tweets of all kinds one after another, each followed by the read of a home timeline, and prints a table with
    the mean times of the stages.

    Raises CommandError if the mesh cannot be reached or has several processes, if a request fails, or if `output`
    refuses the table.
    """
    if len(mesh.pids) != 1:
        raise CommandError(
            "the stages of a mesh with several processes are in the metrics of each: measure one process"
        )
    asyncio.run(_run(operations, mesh, output))


async def _run(operations: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    shown = progress.for_stream()
    tokens = list((await local_mesh.access_tokens(mesh)).values())
    pages = await first_pages(mesh.http, tokens, shown)
    chance = random.SystemRandom()
    mix = TweetMix(mesh.http, tokens, pages.tweet_ids, chance)
    with cpu.Bystanders(mesh.pids) as bystanders:
        before = await metrics.current(mesh.ops)
        async with (
            connection.connect(mesh.target) as channels,
            http_load.connections(mesh.http, 1) as (one,),
        ):
            fanout = FanoutWatch(channels[0], mesh.target.operator())
            with shown.phase("posts and reads", operations) as phase:
                for _ in range(operations):
                    await mix.write(one)
                    await fanout.until_done()
                    token = chance.choice(tokens)
                    http_load.check(await one.ask(http_load.request("GET", HOME, mesh.http, token)), 200)
                    phase.advance()
        after = await metrics.current(mesh.ops)
    note = (
        f"{pages.graph} {operations} tweets of all kinds one after another, each followed by one read; mean times of "
        f"the mesh's own metrics; {cpu.processor()}; Python {platform.python_version()}.{bystanders.warning()}"
    )
    lines = [["", "budget ms", "mean ms"], *([one.title, one.budget, f"{one.ms:.2f}"] for one in stages(before, after))]
    table.publish(TABLE, note, lines, output.markdown)


def stages(before: metrics.Samples, after: metrics.Samples) -> Sequence[Stage]:
    """Returns the stages of the reads and posts between two readings of the metrics. Calls that a stage makes at the
    same time count one after another. Raises CommandError if there was no read or no post between them."""
    read_http, write_http = (_mean_ms(before, after, HTTP, name, name) for name in (READ, WRITE))
    read, write = (_mean_ms(before, after, RPC, name, name) for name in (READ, WRITE))
    merge, hydrate, rank = (
        sum(_mean_ms(before, after, RPC, method, READ) for method in methods) for methods in (MERGE, HYDRATE, RANK)
    )
    return (
        Stage("read: HTTP, token, JSON, ETag", "1 (auth)", read_http - read),
        Stage("read: ids of the home timeline, merge, page", "1 (base ids)", max(read - merge - hydrate - rank, 0.0)),
        Stage("read: tweets of celebrities", "5", merge),
        Stage("read: hydration and visibility", "5", hydrate),
        Stage("read: ranking", "5", rank),
        Stage("read, whole", "15–20", read_http),
        Stage("post: HTTP, token, JSON", "1 (auth)", write_http - write),
        Stage("post: validation, durable commit with its event", "<1 + 5–20 + 2", write),
        Stage("post, whole", "10–25", write_http),
    )


def _mean_ms(before: metrics.Samples, after: metrics.Samples, metric: str, method: str, per: str) -> float:
    """Returns the time of all calls of `method` in milliseconds, divided by the number of requests to the method `per`.
    `metric` is HTTP or RPC."""

    def grown(name: str, called: str, kind: str) -> float:
        services = ("TimelineService", "TweetService") if name == HTTP else ("",)
        labels = [{"route": f"{service}/{called}"} if name == HTTP else {"grpc_method": called} for service in services]
        return sum(
            metrics.total(after, f"{name}_{kind}", **one) - metrics.total(before, f"{name}_{kind}", **one)
            for one in labels
        )

    requests = grown(HTTP, per, "count")
    if not requests:
        raise CommandError(f"the metrics of the mesh show no request to {per}")
    return grown(metric, method, "sum") * 1e3 / requests
