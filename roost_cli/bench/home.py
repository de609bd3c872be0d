"""`roost bench`: what a read costs, beside a bare HTTP server that gives the same bytes in the same run; `bench_fanout.py` has the
other measurement.

Rounds of the two alternate, so that whatever else the machine does meets both; the figures are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import http.client
import platform
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import grpc as grpc_lib
import orjson
import typer
from rich.console import Console
from rich.table import Table
from roost.identity.v1 import auth_service_pb2_grpc

from roost_cli import connection as target
from roost_cli import options, progress, runfile
from roost_cli.bench import baseline_server, cpu, wrk
from roost_cli.bench.background_posts import posting
from roost_cli.exit_codes import FAULTS, CommandError, refused
from roost_cli.load.loader import scan_users
from roost_cli.load.rate_control import batches
from roost_cli.load.tokens import DEFAULT_TTL_S, MINT_BATCH, mint
from roost_cli.supervisor import control

HOME = "/v1/timelines/home"
# Half of what a token's life allows for: none expires under way.
MAX_SECONDS = DEFAULT_TTL_S // 4
MAX_ROUNDS = 99
MAX_CONNECTIONS = 1_000
# Readers beyond these are left out, and that is said: wrk keeps a request of 500 bytes for each.
MAX_READERS = 100_000
# A home that has to be built may take its deadline, and this much more until it is given up.
FIRST_READ_S = 30.0
# Before each round, not measured: what a server does once, it does here.
WARM_UP_S = 2
# With 40 followers each, 800 home entries a second, and each of 1,000 homes has a new one every second or so.
DEFAULT_POSTS = 20
MAX_POSTS = 1_000

# The columns, each one way of reading.
MESH, WRITTEN_TO, BARE = "Roost", "Roost, {} tweets/s posted meanwhile", "bare uvicorn, one page"
# What a document calls the tables of home reads: of all services in one process, and of each in processes of its own.
HOME_TABLE, PROCESSES_TABLE = "home", "home --processes"
BEGIN, END = "<!-- roost bench {} -->", "<!-- end of roost bench {} -->"


class What(StrEnum):
    """What is measured."""

    HOME = "home"
    FANOUT = "fanout"


@dataclass(frozen=True, slots=True)
class Round:
    """One run against one server. `cpu_s` is that of all its processes, user and system together, in seconds."""

    seen: wrk.Figures
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.seen.requests / self.seen.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time of the server an answer, in microseconds."""
        return self.cpu_s * 1e6 / self.seen.requests

    @property
    def bytes_each(self) -> float:
        """Bytes an answer, with its headers."""
        return self.seen.bytes / self.seen.requests


@dataclass(frozen=True, slots=True)
class Pages:
    """Everybody's first page, as it was before the load: which one the bare server repeats, and how full they are."""

    headers: baseline_server.Headers
    body: bytes
    tweets_each: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is measured; `seconds` are each round's, `posts` are tweets a second in those with writes."""

    rounds: int
    seconds: int
    connections: int
    posts: int


def bench(
    what: Annotated[
        What, typer.Argument(help="home reads first pages of home timelines; fanout writes entries to Redis.")
    ] = What.HOME,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=MAX_ROUNDS, help="How many rounds each server is measured.")
    ] = 3,
    seconds: Annotated[
        int, typer.Option("--seconds", min=1, max=MAX_SECONDS, help="How many seconds a round takes.")
    ] = 6,
    connections: Annotated[
        int,
        typer.Option("--connections", min=1, max=MAX_CONNECTIONS, help="How many HTTP connections are open at once."),
    ] = 16,
    posts: Annotated[
        int,
        typer.Option(
            "--posts",
            min=0,
            max=MAX_POSTS,
            help="With home: tweets posted per second in rounds of their own; 0 leaves those rounds out.",
        ),
    ] = DEFAULT_POSTS,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown", exists=True, dir_okay=False, writable=True, help="Also write the table into this document."
        ),
    ] = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="HOST:PORT", help="The address of the gateway [that of the mesh].")
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option("--redis", metavar="URL", help="With fanout: an empty database of a Redis [a server of its own]."),
    ] = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure home reads of a loaded mesh on this machine with wrk, or fan-out's writes to Redis.

    For home, start the mesh with ROOST_RATE_LIMITS=off. For fanout no mesh is needed.
    """
    if what is What.FANOUT:
        from roost_cli.bench import fanout  # its driver takes long to import

        fanout.run(rounds, redis, markdown)
        return
    wrk.program()
    mesh = target.find(grpc)
    token = mesh.operator_token or mesh.operator()[0][1]
    run = next(run for run in runfile.running() if run.operator_token == token)
    address = http or run.http
    if not address:
        raise CommandError(f"the mesh at {mesh.address} serves no HTTP; name its gateway with --http")
    # Of a mesh of many processes the gateway is the one that is found; whoever supervises it started them all.
    supervised = control.path_of(run.grpc).exists()
    pids = cpu.backend(cpu.parent(run.pid) if supervised else run.pid)
    plan = Plan(rounds, min(seconds, MAX_SECONDS // rounds), connections, posts)
    tokens = asyncio.run(_tokens(mesh))
    shown = progress.for_stream()
    pages = first_pages(address, tokens, shown)
    cases = asyncio.run(_measure(mesh, pids, address, tokens, pages, plan, shown))
    table = HOME_TABLE if len(pids) == 1 else PROCESSES_TABLE
    publish(table, circumstances(len(tokens), pages, plan, len(pids)), rows(cases), markdown)


def publish(what: str, note: str, lines: Sequence[Sequence[str]], markdown: Path | None) -> None:
    """Prints the table with what it holds for, and writes it into the document."""
    typer.echo(note)
    _print(lines)
    if markdown is not None:
        markdown.write_text(inserted(markdown.read_text(), what, f"{note}\n\n{as_markdown(lines)}"))


async def _tokens(mesh: target.Target) -> list[str]:
    """A token of everybody who may have one, by ascending user id."""
    tokens: list[str] = []
    async with target.connect(mesh) as channels:
        stub = auth_service_pb2_grpc.AuthServiceStub(channels[0])
        try:
            ids = [user.user.id async for user in scan_users(channels[0], mesh.operator())]
            for some in batches(ids[:MAX_READERS], MINT_BATCH):
                tokens.extend((await mint(stub, mesh.operator(), some, DEFAULT_TTL_S)).values())
        except grpc_lib.aio.AioRpcError as error:
            raise refused(error, "minting tokens") from error
    if not tokens:
        raise CommandError("the mesh has no people: load a graph first with `roost load`")
    return tokens


def first_pages(address: str, tokens: Sequence[str], shown: progress.Progress) -> Pages:
    """Reads every home once, which makes it warm; the page nearest to the mean size is the one recorded.

    CommandError where an answer is not a page, where rate limits are on, and where nobody's home holds a tweet.
    """
    read: list[tuple[baseline_server.Headers, bytes]] = []
    connection = http.client.HTTPConnection(address, timeout=FIRST_READ_S)
    with shown.phase("homes read once", len(tokens)) as phase:
        try:
            for token in tokens:
                connection.request("GET", HOME, headers={"Authorization": f"Bearer {token}"})
                answer = connection.getresponse()
                read.append((answer.getheaders(), answer.read()))
                explain(answer.status, dict(answer.getheaders()))
                phase.advance()
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"no gateway answers at {address}: {error}") from error
        finally:
            connection.close()
    tweets = sum(len(orjson.loads(body)["tweets"]) for _, body in read) / len(read)
    if not tweets:
        raise CommandError("every home is empty: load tweets first with `roost load`")
    mean = sum(len(body) for _, body in read) / len(read)
    headers, body = min(read, key=lambda page: abs(len(page[1]) - mean))
    return Pages(headers, body, tweets)


def explain(status: int, headers: dict[str, str]) -> None:
    """CommandError where an answer shows that what would be measured is not what is meant."""
    names = {name.lower() for name in headers}
    if status == http.HTTPStatus.TOO_MANY_REQUESTS or "ratelimit-policy" in names:
        raise CommandError("rate limits are on: start the mesh with ROOST_RATE_LIMITS=off to measure it")
    if status != http.HTTPStatus.OK:
        raise CommandError(f"GET {HOME} was answered with status {status}", FAULTS)


async def _measure(
    mesh: target.Target,
    pids: Sequence[int],
    address: str,
    tokens: Sequence[str],
    pages: Pages,
    plan: Plan,
    shown: progress.Progress,
) -> dict[str, list[Round]]:
    """The rounds by column: of the mesh, of the mesh with writes where some are wanted, and of the bare server."""
    chance = random.SystemRandom()
    cases: dict[str, list[Round]] = {}
    # The folder is this user's alone: what lies in it are tokens.
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        script, page = Path(folder) / "home.lua", Path(folder) / "page"
        script.write_text(wrk.script(tokens))
        baseline_server.record(page, pages.headers, pages.body)
        async with baseline_server.running(page) as (bare_pid, bare_port):
            servers = [(MESH, pids, address, 0), (BARE, [bare_pid], f"127.0.0.1:{bare_port}", 0)]
            if plan.posts:
                servers.insert(1, (WRITTEN_TO.format(plan.posts), pids, address, plan.posts))
            for number in range(1, plan.rounds + 1):
                for name, server, where, posts in servers:
                    start = chance.randrange(len(tokens))
                    url = f"http://{where}{HOME}"
                    # Each case finds its servers as it leaves them, not as the one before did.
                    await wrk.run(script, url, connections=plan.connections, seconds=WARM_UP_S, start=start)
                    async with posting(mesh, tokens, posts):
                        begun = cpu.seconds(server)
                        seen = await wrk.run(
                            script, url, connections=plan.connections, seconds=plan.seconds, start=start
                        )
                        done = Round(seen, cpu.seconds(server) - begun)
                    check(name, seen)
                    cases.setdefault(name, []).append(done)
                    shown.say(f"round {number}, {name}: {done.per_second:,.0f} requests/s, {done.cpu_us:.0f} µs each")
    return cases


def check(name: str, seen: wrk.Figures) -> None:
    """CommandError where a run held anything but answers of status 200."""
    if seen.refused or seen.broken or not seen.requests:
        raise CommandError(
            f"{name}: of {seen.requests:,} requests {seen.refused:,} were refused and {seen.broken:,} broken; "
            "figures of them would say nothing",
            FAULTS,
        )


def circumstances(readers: int, pages: Pages, plan: Plan, processes: int) -> str:
    """What the table's figures hold for, in a sentence or two."""
    where = (
        "" if processes == 1 else " CPU is that of all {} processes of the mesh, and not that of the servers below it."
    )
    return (
        f"{readers:,} readers, {pages.tweets_each:.1f} tweets a page; {plan.rounds} × {plan.seconds} s for each "
        f"server in turn, {plan.connections} connections; {cpu.processor()}; Python {platform.python_version()}."
        f"{where.format(processes)}"
    )


def rows(cases: Mapping[str, Sequence[Round]]) -> list[list[str]]:
    """The table, its head first: medians over the rounds, with lowest and highest in brackets, and MESH's by BARE's."""
    measures: Sequence[tuple[str, Callable[[Round], float], str]] = (
        ("requests/s", lambda round_: round_.per_second, ",.0f"),
        ("p50 ms", lambda round_: round_.seen.p50_ms, ".2f"),
        ("p99 ms", lambda round_: round_.seen.p99_ms, ".2f"),
        ("CPU µs a request", lambda round_: round_.cpu_us, ".0f"),
        ("bytes an answer", lambda round_: round_.bytes_each, ",.0f"),
    )
    table = [["", *cases, f"{MESH} ÷ bare"]]
    for title, value, form in measures:
        found = {name: [value(one) for one in rounds] for name, rounds in cases.items()}
        cells = [spread(values, form) for values in found.values()]
        table.append([title, *cells, f"{ratio(found[MESH], found[BARE]):.2f}"])
    return table


def spread(values: Sequence[float], form: str) -> str:
    """The median, and in brackets the lowest and the highest."""
    median, low, high = (f"{value:{form}}" for value in (statistics.median(values), min(values), max(values)))
    return median if low == high else f"{median} ({low}–{high})"


def ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """The median of the one by that of the other."""
    divisor = statistics.median(other)
    return statistics.median(mine) / divisor if divisor else float("nan")


def _print(lines: Sequence[Sequence[str]]) -> None:
    table = Table()
    for number, title in enumerate(lines[0]):
        table.add_column(title, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line)
    Console(highlight=False).print(table)


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    rule = ["---", *("---:" for _ in lines[0][1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def inserted(document: str, what: str, text: str) -> str:
    """The document with `text` between its markers; CommandError where it lacks them."""
    begin, end = BEGIN.format(what), END.format(what)
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise CommandError(f"the document has no place for the table: it lies between `{begin}` and `{end}`")
    return f"{before}{begin}\n{text}\n{end}{after}"
