"""Measures reads of home timelines of a mesh, and of a minimal HTTP server (the baseline) that returns the same bytes.

Rounds of both alternate, so that other load on the machine affects both. The results are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import http.client
import platform
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc as grpc_lib
import orjson
from roost.identity.v1 import auth_service_pb2_grpc

from roost_cli import connection as target
from roost_cli import progress, runfile
from roost_cli.bench import baseline_server, cpu, table, wrk
from roost_cli.bench.background_posts import posting
from roost_cli.exit_codes import FAULTS, CommandError, call_error
from roost_cli.rate_control import batches
from roost_cli.scans import scan_users
from roost_cli.supervisor import control
from roost_cli.tokens import DEFAULT_TTL_S, MINT_BATCH, mint

HOME = "/v1/timelines/home"
# Maximum length of a round in seconds: a quarter of the tokens' lifetime, so that no token expires during the
# measurement.
MAX_SECONDS = DEFAULT_TTL_S // 4
MAX_ROUNDS = 99
MAX_CONNECTIONS = 1_000
# Maximum number of readers whose home timelines are read; further users are left out. wrk keeps a prepared request of
# 500 bytes for each.
MAX_READERS = 100_000
# Timeout in seconds of the first read of a home timeline, during which the mesh builds the home timeline.
FIRST_READ_S = 30.0
# Length in seconds of the load before each round that is not measured. It fills the caches.
WARM_UP_S = 2
# Default number of tweets per second in the rounds with writes. With 40 followers per author, fan-out appends 800
# entries to home timelines per second: with 1,000 readers, about one per reader.
DEFAULT_POSTS = 20
MAX_POSTS = 1_000

# Titles of the table's columns: the mesh without writes, the mesh with writes, and the baseline.
MESH, WRITTEN_TO, BARE = "Roost", "Roost, {} tweets/s posted meanwhile", "bare uvicorn, one page"
# Names of the tables in a Markdown document: for a mesh in one process, and for a mesh with a process per service.
HOME_TABLE, PROCESSES_TABLE = "home", "home --processes"


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one round: the figures of wrk, and the CPU time (`cpu_s`, user and system, in seconds) of all
    processes of the server."""

    seen: wrk.Figures
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Returns the number of responses per second."""
        return self.seen.requests / self.seen.seconds

    @property
    def cpu_us(self) -> float:
        """Returns the server's CPU time per response, in microseconds."""
        return self.cpu_s * 1e6 / self.seen.requests

    @property
    def bytes_each(self) -> float:
        """Returns the number of bytes per response, headers included."""
        return self.seen.bytes / self.seen.requests


@dataclass(frozen=True, slots=True)
class Pages:
    """The result of reading all home timelines once: the headers and body of the page that the baseline returns, and
    the mean number of tweets per page (`tweets_each`)."""

    headers: baseline_server.Headers
    body: bytes
    tweets_each: float


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The size of a measurement: the number of rounds, the length of each in seconds, the number of HTTP connections,
    and the tweets posted per second in the rounds with writes (`posts`; 0 leaves these rounds out)."""

    rounds: int
    seconds: int
    connections: int
    posts: int


def run(plan: BenchPlan, grpc: str | None, http_address: str | None, markdown: Path | None) -> None:
    """Measures reads of home timelines of the mesh at the gRPC address `grpc` (None: the mesh that runs on this
    machine) and prints a table of the results.

    `http_address` is the address of the gateway (None: the one in the mesh's run file). If `markdown` is not None, also
    replaces the previous table in this Markdown document. Raises CommandError if wrk is missing, if the mesh cannot be
    reached or does not run on this machine, if a read fails, if every home timeline is empty, if rate limits are on, or
    if the document has no markers for the table.
    """
    wrk.program()
    mesh = target.find(grpc)
    token = mesh.operator_token or mesh.operator()[0][1]
    found = next((run for run in runfile.running() if run.operator_token == token), None)
    if found is None:
        raise CommandError(f"the mesh at {mesh.address} does not run on this machine: run the benchmark on its machine")
    address = http_address or found.http
    if not address:
        raise CommandError(f"the mesh at {mesh.address} serves no HTTP; name its gateway with --http")
    # The run file contains the process id of the gateway. With `up --processes`, the gateway's parent process is the
    # supervisor, which is the parent of all processes of the mesh.
    supervised = control.path_of(found.grpc).exists()
    pids = cpu.backend(cpu.parent(found.pid) if supervised else found.pid)
    tokens = asyncio.run(_tokens(mesh))
    shown = progress.for_stream()
    pages = first_pages(address, tokens, shown)
    cases = asyncio.run(_measure(mesh, pids, address, tokens, pages, plan, shown))
    title = HOME_TABLE if len(pids) == 1 else PROCESSES_TABLE
    table.publish(title, conditions(len(tokens), pages, plan, len(pids)), rows(cases), markdown)


async def _tokens(mesh: target.MeshTarget) -> list[str]:
    """Returns the access tokens of all active users, by ascending user id, at most MAX_READERS. Raises CommandError if
    there are none."""
    tokens: list[str] = []
    async with target.connect(mesh) as channels:
        stub = auth_service_pb2_grpc.AuthServiceStub(channels[0])
        try:
            ids = [user.user.id async for user in scan_users(channels[0], mesh.operator())]
            for some in batches(ids[:MAX_READERS], MINT_BATCH):
                tokens.extend((await mint(stub, mesh.operator(), some, DEFAULT_TTL_S)).values())
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error, "minting tokens") from error
    if not tokens:
        raise CommandError("the mesh has no users: load a graph first with `roost load`")
    return tokens


def first_pages(address: str, tokens: Sequence[str], shown: progress.Progress) -> Pages:
    """Reads the first page of every home timeline once, which makes the home timelines warm. Returns the page whose
    size is closest to the mean, for the baseline.

    `tokens` are the access tokens of the readers. Raises CommandError if a response is not 200, if rate limits are on,
    or if all home timelines are empty.
    """
    read: list[tuple[baseline_server.Headers, bytes]] = []
    connection = http.client.HTTPConnection(address, timeout=FIRST_READ_S)
    with shown.phase("homes read once", len(tokens)) as phase:
        try:
            for token in tokens:
                connection.request("GET", HOME, headers={"Authorization": f"Bearer {token}"})
                answer = connection.getresponse()
                read.append((answer.getheaders(), answer.read()))
                check_response(answer.status, dict(answer.getheaders()))
                phase.advance()
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"no gateway answers at {address}: {error}") from error
        finally:
            connection.close()
    tweets = sum(len(orjson.loads(body)["tweets"]) for _, body in read) / len(read)
    if not tweets:
        raise CommandError("every home timeline is empty: load tweets first with `roost load`")
    mean = sum(len(body) for _, body in read) / len(read)
    headers, body = min(read, key=lambda page: abs(len(page[1]) - mean))
    return Pages(headers, body, tweets)


def check_response(status: int, headers: dict[str, str]) -> None:
    """Raises CommandError if the status of a response is not 200, or if its headers show that rate limits are on."""
    names = {name.lower() for name in headers}
    if status == http.HTTPStatus.TOO_MANY_REQUESTS or "ratelimit-policy" in names:
        raise CommandError("rate limits are on: start the mesh with ROOST_RATE_LIMITS=off to measure it")
    if status != http.HTTPStatus.OK:
        raise CommandError(f"GET {HOME} returned status {status}", FAULTS)


async def _measure(
    mesh: target.MeshTarget,
    pids: Sequence[int],
    address: str,
    tokens: Sequence[str],
    pages: Pages,
    plan: BenchPlan,
    shown: progress.Progress,
) -> dict[str, list[Round]]:
    """Returns the results of all rounds, by column title: of the mesh, of the mesh with writes (if `plan.posts` is not
    0), and of the baseline."""
    chance = random.SystemRandom()
    cases: dict[str, list[Round]] = {}
    # A temporary directory is readable only by its owner. That is needed, because the script contains access tokens.
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
                    # Fills the caches of the CPU and of the server again, because the previous round measured another
                    # server.
                    await wrk.run(script, url, connections=plan.connections, seconds=WARM_UP_S, start=start)
                    async with posting(mesh, tokens, posts):
                        begun = cpu.seconds(server)
                        seen = await wrk.run(
                            script, url, connections=plan.connections, seconds=plan.seconds, start=start
                        )
                        done = Round(seen, cpu.seconds(server) - begun)
                    check_run(name, seen)
                    cases.setdefault(name, []).append(done)
                    shown.say(f"round {number}, {name}: {done.per_second:,.0f} requests/s, {done.cpu_us:.0f} µs each")
    return cases


def check_run(name: str, seen: wrk.Figures) -> None:
    """Raises CommandError if wrk got no response in a round, an incomplete one, or one with an error status. `name` is
    the column title."""
    if seen.refused or seen.broken or not seen.requests:
        raise CommandError(
            f"{name}: of {seen.requests:,} requests {seen.refused:,} were refused and {seen.broken:,} broken; "
            "the figures of this run are not valid: read the log of the mesh",
            FAULTS,
        )


def conditions(readers: int, pages: Pages, plan: BenchPlan, processes: int) -> str:
    """Returns a sentence with the conditions of the measurement, which is printed with the table. `processes` is the
    number of processes of the mesh."""
    where = (
        "" if processes == 1 else " CPU is that of all {} processes of the mesh, and not that of the servers below it."
    )
    return (
        f"{readers:,} readers, {pages.tweets_each:.1f} tweets a page; {plan.rounds} × {plan.seconds} s for each "
        f"server in turn, {plan.connections} connections; {cpu.processor()}; Python {platform.python_version()}."
        f"{where.format(processes)}"
    )


def rows(cases: Mapping[str, Sequence[Round]]) -> list[list[str]]:
    """Returns the rows of the table, header first: medians over the rounds with the range in parentheses, and a
    quotient of two medians: the mesh without writes divided by the baseline."""
    measures: Sequence[tuple[str, Callable[[Round], float], str]] = (
        ("requests/s", lambda round_: round_.per_second, ",.0f"),
        ("p50 ms", lambda round_: round_.seen.p50_ms, ".2f"),
        ("p99 ms", lambda round_: round_.seen.p99_ms, ".2f"),
        ("CPU µs a request", lambda round_: round_.cpu_us, ".0f"),
        ("bytes an answer", lambda round_: round_.bytes_each, ",.0f"),
    )
    lines = [["", *cases, f"{MESH} ÷ bare"]]
    for title, value, form in measures:
        found = {name: [value(one) for one in rounds] for name, rounds in cases.items()}
        cells = [table.spread(values, form) for values in found.values()]
        lines.append([title, *cells, f"{table.ratio(found[MESH], found[BARE]):.2f}"])
    return lines
