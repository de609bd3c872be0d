"""Measures reads of home timelines of a mesh, and of a minimal HTTP server (the baseline) that returns the same bytes.

Rounds of both alternate, so that other load on the machine affects both. The results are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import platform
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

from roost_cli import connection, progress
from roost_cli.bench import cpu, http_load, local_mesh, metrics, table, wrk
from roost_cli.bench.background_posts import poster
from roost_cli.bench.fanout_watch import FanoutWatch
from roost_cli.bench.first_pages import HOME, Pages, first_pages
from roost_cli.bench.percentiles import percentile
from roost_cli.bench.reads import BARE, CPU_TITLE, MEASURES, READS_A_POST, ReadPlan, Round, read_servers
from roost_cli.bench.tweet_mix import TweetMix
from roost_cli.tokens import DEFAULT_TTL_S

# Maximum length of a measurement in seconds, warm-up excluded: a quarter of the tokens' lifetime, so that no token
# expires during the measurement.
MAX_SECONDS = DEFAULT_TTL_S // 4
MAX_ROUNDS = 99
MAX_CONNECTIONS = 1_000
# Default number of tweets per second in the rounds with a constant rate of posts. With 40 followers per author, fan-out
# appends 800 entries to home timelines per second: with 1,000 readers, about one per reader.
DEFAULT_POSTS = 20
MAX_POSTS = 1_000
# Load of the open loop, as a share of the rate that the rounds with paced posts reached.
OPEN_LOAD = 0.7
# The home timelines count as cold at the first read if at least this share of the reads built one.
COLD_SHARE = 0.9
BUILDS = "roost_timeline_builds_total"

# The hint in place of the column of cold homes, for which a mesh of several processes has no figures.
WARM = (
    " There is no column of cold homes, because homes were read since the start of the mesh (`roost load` reads them too): "
    "restart the mesh and run this command first."
)

# Titles of the table's columns.
UNCHANGED = "unchanged"
PACED, OPEN = f"1 post : {READS_A_POST} reads", f"the same, open loop, load {OPEN_LOAD:g}"
WRITTEN_TO, COLD = "{} posts/s", "cold homes"
# Names of the tables in a Markdown document: for a mesh in one process, and for a mesh with a process per service.
HOME_TABLE, PROCESSES_TABLE = "home", "home --processes"
# Maximum of the CPU time of a read divided by that of the baseline. The limit of a page that does not change holds the
# figure of its release with a third to spare.
LIMITS = (table.Limit(PACED, CPU_TITLE, 3.5), table.Limit(UNCHANGED, CPU_TITLE, 4.0))


def table_of(mesh: local_mesh.LocalMesh) -> str:
    """Returns the name of the table of this mesh in a Markdown document."""
    return HOME_TABLE if len(mesh.pids) == 1 else PROCESSES_TABLE


def run(plan: ReadPlan, posts: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    """Measures reads of home timelines of the mesh and prints a table of the results. `posts` is the number of tweets
    per second in the rounds with a constant rate of posts; 0 leaves these rounds out.

    Raises CommandError if wrk is missing, if the mesh cannot be reached, if a read or a post fails, if every home
    timeline is empty, if rate limits are on, or if `output` refuses the table.
    """
    wrk.program()
    asyncio.run(_run(plan, posts, mesh, output))


async def _run(plan: ReadPlan, posts: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    shown = progress.for_stream()
    tokens = list((await local_mesh.access_tokens(mesh)).values())
    with cpu.Bystanders(mesh.pids) as bystanders:
        pages, cold = await read_first(mesh, tokens, shown)
        cases = await _measure(mesh, tokens, pages, plan, posts, shown)
    if cold is not None:
        cases = {COLD: [cold]} | cases
    note = conditions(pages, plan, len(mesh.pids)) + bystanders.warning()
    if cold is None and len(mesh.pids) == 1:
        note += WARM
    output.publish(table_of(mesh), note, table.compare(cases, MEASURES, BARE), LIMITS)


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
    mesh: local_mesh.LocalMesh,
    tokens: Sequence[str],
    pages: Pages,
    plan: ReadPlan,
    posts: int,
    shown: progress.Progress,
) -> dict[str, list[Round]]:
    """Returns the results of all rounds, by column title."""
    requests = [http_load.request("GET", HOME, mesh.http, token) for token in tokens]
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(
            read_servers(mesh, wrk.script([HOME], tokens), len(tokens), pages.headers, pages.body, plan)
        )
        mix = TweetMix(mesh.http, tokens, pages.tweet_ids, random.SystemRandom())
        writer = await stack.enter_async_context(poster(mesh.http, mix.write))
        channels = await stack.enter_async_context(connection.connect(mesh.target))
        opened = await stack.enter_async_context(http_load.connections(mesh.http, plan.connections))
        fanout = FanoutWatch(channels[0], mesh.target.operator())
        cases: dict[str, list[Round]] = {}
        for number in range(1, plan.rounds + 1):
            done = {UNCHANGED: await servers.mesh.closed(UNCHANGED)}
            done[PACED] = await servers.mesh.closed(PACED, writer, fanout, reads_a_post=READS_A_POST)
            rate = table.median([one.per_second for one in [*cases.get(PACED, ()), done[PACED]]]) * OPEN_LOAD
            done[OPEN] = await servers.mesh.open(opened, requests, writer, fanout, rate)
            if posts:
                title = WRITTEN_TO.format(posts)
                done[title] = await servers.mesh.closed(title, writer, fanout, posts=posts)
            done[BARE] = await servers.bare.closed(BARE)
            for name, one in done.items():
                cases.setdefault(name, []).append(one)
                shown.say(f"round {number}, {name}: {one.per_second:,.0f} reads/s, {one.cpu_us:,.0f} µs each")
    return cases


def conditions(pages: Pages, plan: ReadPlan, processes: int) -> str:
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
