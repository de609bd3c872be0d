"""`roost bench`: measures a running mesh on this machine and a baseline in the same run, or the writes of fan-out to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from roost_cli import options
from roost_cli.bench import delivery, home, local_mesh, login, other_reads, posts, reads, stages, table
from roost_cli.exit_codes import FAULTS, CommandError

MAX_CALLERS = 1_000
MAX_POSTS_PER_SECOND = 100_000
MAX_OPERATIONS = 10_000
# With more users, filling the stores takes minutes.
MAX_START_USERS = 100_000
DEFAULT_START_USERS = 1_000
# Length of a round of `all` in seconds, so that the whole takes about five minutes.
ALL_SECONDS = 3

Rounds = Annotated[int, typer.Option("--rounds", min=1, max=home.MAX_ROUNDS, help="The number of rounds per server.")]
Seconds = Annotated[
    int, typer.Option("--seconds", min=1, max=home.MAX_SECONDS, help="The length of a round in seconds.")
]
Connections = Annotated[
    int, typer.Option("--connections", min=1, max=home.MAX_CONNECTIONS, help="The number of HTTP connections.")
]
Markdown = Annotated[
    Path | None,
    typer.Option(
        "--markdown", exists=True, dir_okay=False, writable=True, help="Also write the table into this document."
    ),
]
Http = Annotated[
    str | None,
    typer.Option("--http", metavar="HOST:PORT", help="The address of the gateway [from the run file of the mesh]."),
]
Ci = Annotated[bool, typer.Option("--ci", help="Fail if a ratio to the baseline is above its limit.")]

bench = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Measure a loaded mesh on this machine, and a minimal HTTP server with the same bytes in the same run.\n\n"
    "Start the mesh with ROOST_RATE_LIMITS=off.",
)


@bench.command("home")
def bench_home(
    rounds: Rounds = 3,
    seconds: Seconds = 3,
    connections: Connections = 16,
    posts: Annotated[
        int,
        typer.Option(
            "--posts",
            min=0,
            max=home.MAX_POSTS,
            help="Tweets posted per second in rounds of their own; 0 leaves those rounds out.",
        ),
    ] = home.DEFAULT_POSTS,
    markdown: Markdown = None,
    ci: Ci = False,
    http: Http = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure first pages of home timelines: unchanged, with 1 post per 100 reads, with posts at a constant rate, and
    cold if the mesh was just started. Needs wrk."""
    plan = reads.ReadPlan(rounds, _round_s(seconds, rounds), connections)
    found = local_mesh.find(grpc, http)
    home.run(plan, posts, found, _output(markdown, home.table_of(found), ci=ci))


@bench.command("posts")
def bench_posts(
    rounds: Rounds = 3,
    seconds: Seconds = 5,
    callers: Annotated[
        int, typer.Option("--callers", min=1, max=MAX_CALLERS, help="The number of concurrent callers.")
    ] = 32,
    rate: Annotated[
        int,
        typer.Option(
            "--rate",
            min=0,
            max=MAX_POSTS_PER_SECOND,
            help="Posts per second of an open loop; 0 is a closed loop: a caller posts when it has its last response.",
        ),
    ] = 0,
    markdown: Markdown = None,
    ci: Ci = False,
    http: Http = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure durable posts with their fan-out, and the time until tweets are in the followers' home timelines."""
    plan = posts.PostsPlan(rounds, _round_s(seconds, rounds), callers, rate)
    posts.run(plan, local_mesh.find(grpc, http), _output(markdown, posts.TABLE, ci=ci))


@bench.command("thread")
def bench_thread(
    rounds: Rounds = 3,
    seconds: Seconds = 3,
    connections: Connections = 16,
    markdown: Markdown = None,
    http: Http = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure reads of threads that have replies. Needs wrk."""
    plan = reads.ReadPlan(rounds, _round_s(seconds, rounds), connections)
    _measure_reads(other_reads.Read.THREAD, plan, markdown, http, grpc)


@bench.command("search")
def bench_search(
    rounds: Rounds = 3,
    seconds: Seconds = 3,
    connections: Connections = 16,
    markdown: Markdown = None,
    http: Http = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure searches for tweets with a word. Needs wrk."""
    plan = reads.ReadPlan(rounds, _round_s(seconds, rounds), connections)
    _measure_reads(other_reads.Read.SEARCH, plan, markdown, http, grpc)


@bench.command("login")
def bench_login(
    rounds: Rounds = 3,
    seconds: Seconds = 5,
    callers: Annotated[
        int, typer.Option("--callers", min=1, max=MAX_CALLERS, help="The number of concurrent callers.")
    ] = 4,
    markdown: Markdown = None,
    ci: Ci = False,
    http: Http = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure log-ins, and the check of a password alone."""
    found, output = local_mesh.find(grpc, http), _output(markdown, login.TABLE, ci=ci)
    login.run(rounds, _round_s(seconds, rounds), callers, found, output)


@bench.command("delivery")
def bench_delivery(
    rounds: Rounds = 3,
    seconds: Seconds = 5,
    posts: Annotated[
        int,
        typer.Option(
            "--posts",
            min=0,
            max=home.MAX_POSTS,
            help="Other tweets posted per second in rounds of their own; 0 leaves those rounds out.",
        ),
    ] = home.DEFAULT_POSTS,
    markdown: Markdown = None,
    http: Http = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure the time from the response to a post until followers read the tweet."""
    found, output = local_mesh.find(grpc, http), _output(markdown, delivery.TABLE)
    delivery.run(rounds, _round_s(seconds, rounds), posts, found, output)


@bench.command("stages")
def bench_stages(
    operations: Annotated[
        int, typer.Option("--operations", min=1, max=MAX_OPERATIONS, help="The number of posts and of reads.")
    ] = 500,
    markdown: Markdown = None,
    http: Http = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure the stages of a home read and of a post against their time budgets, from the metrics of the mesh."""
    stages.run(operations, local_mesh.find(grpc, http), _output(markdown, stages.TABLE))


@bench.command("start")
def bench_start(
    rounds: Rounds = 3,
    users: Annotated[
        int, typer.Option("--users", min=2, max=MAX_START_USERS, help="The number of users.")
    ] = DEFAULT_START_USERS,
    markdown: Markdown = None,
) -> None:
    """Measure the start of a mesh, and its memory per user and per warm home. Needs no running mesh."""
    from roost_cli.bench import start  # imported here: the services' stores are slow to import

    start.run(rounds, users, _output(markdown, start.TABLE))


@bench.command("all")
def bench_all(
    rounds: Rounds = 3, markdown: Markdown = None, ci: Ci = False, http: Http = None, grpc: options.Grpc = None
) -> None:
    """Measure home, thread, search, delivery, stages, login and posts on the running mesh, and start."""
    from roost_cli.bench import start  # imported here: the services' stores are slow to import

    found = local_mesh.find(grpc, http)
    single = (delivery.TABLE, stages.TABLE, login.TABLE, posts.TABLE, start.TABLE)
    output = _output(markdown, home.table_of(found), *other_reads.Read, *single, ci=ci)
    plan = reads.ReadPlan(rounds, ALL_SECONDS, connections=16)
    faults: list[str] = []
    workloads: list[Callable[[], None]] = [
        lambda: home.run(plan, home.DEFAULT_POSTS, found, output),
        *(lambda what=what: other_reads.run(what, plan, found, output) for what in other_reads.Read),
        lambda: delivery.run(rounds, ALL_SECONDS, home.DEFAULT_POSTS, found, output),
        lambda: stages.run(500, found, output),
        lambda: login.run(rounds, ALL_SECONDS, 4, found, output),
        # Last of those on this mesh, because it fills all pages with plain tweets.
        lambda: posts.run(posts.PostsPlan(rounds, ALL_SECONDS, 32, 0), found, output),
        lambda: start.run(rounds, DEFAULT_START_USERS, output),
    ]
    for workload in workloads:
        try:
            workload()
        except CommandError as error:
            # A ratio above its limit must not hide the others.
            faults.append(error.message)
    if faults:
        raise CommandError("\n".join(faults), FAULTS)


def _measure_reads(
    what: other_reads.Read, plan: reads.ReadPlan, markdown: Path | None, http: str | None, grpc: str | None
) -> None:
    other_reads.run(what, plan, local_mesh.find(grpc, http), _output(markdown, what))


def _round_s(seconds: int, rounds: int) -> int:
    """Returns the length of a round in seconds: `seconds`, but so short that no access token expires before the last
    round."""
    return min(seconds, home.MAX_SECONDS // rounds)


def _output(markdown: Path | None, *tables: str, ci: bool = False) -> table.Output:
    """Returns the output of a measurement that writes these tables. Raises CommandError if the document at `markdown`
    lacks the markers of one."""
    return table.Output(table.Document.of(markdown, *tables), ci)


@bench.command("growth")
def bench_growth(
    series: Annotated[
        list[str] | None,
        typer.Argument(help="followers, length, celebrities, users, tweets [all]."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also a million followers and users, and ten million tweets: half an hour.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Leave out sizes above this [none].")] = None,
    plots: Annotated[
        Path | None,
        typer.Option("--plots", exists=True, file_okay=False, writable=True, help="Write SVG plots into this folder."),
    ] = None,
    markdown: Markdown = None,
    ci: Annotated[bool, typer.Option("--ci", help="Fail if an exponent is above its limit.")] = False,
) -> None:
    """Measure how the cost of posts and reads grows, in meshes of this process. Needs no running mesh."""
    from roost_cli.bench.growth.run import TABLE, run  # imported here: the services are slow to import
    from roost_cli.bench.growth.series import SERIES

    if unknown := set(series or ()) - SERIES.keys():
        raise CommandError(f"there is no series {min(unknown)}: choose {', '.join(SERIES)}")
    chosen = [SERIES[name] for name in series or SERIES]
    document = table.Document.of(markdown, *(TABLE.format(one.name) for one in chosen))
    asyncio.run(run(chosen, full=full, limit=limit, plots=plots, markdown=document, ci=ci))


@bench.command("fanout")
def bench_fanout(
    rounds: Rounds = 5,
    redis: Annotated[
        str | None,
        typer.Option("--redis", metavar="URL", help="The URL of an empty Redis database [a temporary server]."),
    ] = None,
    markdown: Markdown = None,
) -> None:
    """Measure fan-out's writes to Redis, and those of the usual design. Needs no mesh."""
    from roost_cli.bench import fanout  # imported here: its driver is slow to import

    fanout.run(rounds, redis, table.Document.of(markdown, fanout.TABLE))
