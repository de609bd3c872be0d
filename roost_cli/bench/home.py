"""Measures reads of home timelines against a minimal HTTP server that returns the same bytes in the same run.

Rounds against the mesh and against that server alternate, so that other load on the machine affects both. The figures
are medians over the rounds.
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
# The longest round in seconds: a quarter of the tokens' lifetime, so that no token expires during a run.
MAX_SECONDS = DEFAULT_TTL_S // 4
MAX_ROUNDS = 99
MAX_CONNECTIONS = 1_000
# The most readers that are measured: wrk holds a prepared request of 500 bytes for each.
MAX_READERS = 100_000
# Timeout of the first read of a home timeline, which has to build it.
FIRST_READ_S = 30.0
# Unmeasured seconds before each round, for one-time costs such as filling caches.
WARM_UP_S = 2
# With 40 followers per author this makes 800 home timeline entries a second: of 1,000 readers each gets a new one about
# every second.
DEFAULT_POSTS = 20
MAX_POSTS = 1_000

# Column titles, one per server and load.
MESH, WRITTEN_TO, BARE = "Roost", "Roost, {} tweets/s posted meanwhile", "bare uvicorn, one page"
# Names of the tables in a document: all services in one process, or one process each.
HOME_TABLE, PROCESSES_TABLE = "home", "home --processes"


@dataclass(frozen=True, slots=True)
class Round:
    """One run against one server. `cpu_s` is user plus system time of all its processes, in seconds."""

    seen: wrk.Figures
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Returns responses per second."""
        return self.seen.requests / self.seen.seconds

    @property
    def cpu_us(self) -> float:
        """Returns the server's CPU time per response, in microseconds."""
        return self.cpu_s * 1e6 / self.seen.requests

    @property
    def bytes_each(self) -> float:
        """Returns bytes per response, headers included."""
        return self.seen.bytes / self.seen.requests


@dataclass(frozen=True, slots=True)
class Pages:
    """The first pages of all readers before the load: headers and body of the page that the baseline repeats, and
    the mean number of tweets."""

    headers: baseline_server.Headers
    body: bytes
    tweets_each: float


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The size of a measurement: `seconds` is the length of each round, `posts` the tweets per second in the rounds
    with writes (0: no such rounds)."""

    rounds: int
    seconds: int
    connections: int
    posts: int


def run(plan: BenchPlan, grpc: str | None, http_address: str | None, markdown: Path | None) -> None:
    """Measures home reads of the mesh at `grpc` (by default the one that runs here) and prints the table.

    `http_address` is the gateway's, by default that of the mesh; the table is also written into the document `markdown`.
    Raises CommandError if wrk is missing or the mesh cannot be measured.
    """
    wrk.program()
    mesh = target.find(grpc)
    token = mesh.operator_token or mesh.operator()[0][1]
    found = next(run for run in runfile.running() if run.operator_token == token)
    address = http_address or found.http
    if not address:
        raise CommandError(f"the mesh at {mesh.address} serves no HTTP; name its gateway with --http")
    # The run file names the gateway; the parent of the gateway is the supervisor, which started all processes.
    supervised = control.path_of(found.grpc).exists()
    pids = cpu.backend(cpu.parent(found.pid) if supervised else found.pid)
    tokens = asyncio.run(_tokens(mesh))
    shown = progress.for_stream()
    pages = first_pages(address, tokens, shown)
    cases = asyncio.run(_measure(mesh, pids, address, tokens, pages, plan, shown))
    title = HOME_TABLE if len(pids) == 1 else PROCESSES_TABLE
    table.publish(title, conditions(len(tokens), pages, plan, len(pids)), rows(cases), markdown)


async def _tokens(mesh: target.MeshTarget) -> list[str]:
    """Returns an access token for every active user, by ascending user id, at most MAX_READERS."""
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
    """Reads every home timeline once, which makes it warm, and selects the page closest to the mean size for the
    baseline.

    Raises CommandError if a response is not a page, if rate limits are on, or if all home timelines are empty.
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
    """Raises CommandError if a response shows that rate limits are on, or is not 200."""
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
    """Returns the rounds by column: the mesh, the mesh with writes if `plan.posts`, and the baseline."""
    chance = random.SystemRandom()
    cases: dict[str, list[Round]] = {}
    # A directory that only this user can read, because it contains tokens.
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
                    # Each server is warmed up again, because the previous round measured another one.
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
    """Raises CommandError if a response of the run was broken or had a status other than 200."""
    if seen.refused or seen.broken or not seen.requests:
        raise CommandError(
            f"{name}: of {seen.requests:,} requests {seen.refused:,} were refused and {seen.broken:,} broken; "
            "the figures of this run are not valid: read the log of the mesh",
            FAULTS,
        )


def conditions(readers: int, pages: Pages, plan: BenchPlan, processes: int) -> str:
    """Returns a sentence with the conditions of the measurement, to print with the table."""
    where = (
        "" if processes == 1 else " CPU is that of all {} processes of the mesh, and not that of the servers below it."
    )
    return (
        f"{readers:,} readers, {pages.tweets_each:.1f} tweets a page; {plan.rounds} × {plan.seconds} s for each "
        f"server in turn, {plan.connections} connections; {cpu.processor()}; Python {platform.python_version()}."
        f"{where.format(processes)}"
    )


def rows(cases: Mapping[str, Sequence[Round]]) -> list[list[str]]:
    """Returns the table, header first: medians over the rounds with the range in parentheses, and the mesh's figure
    divided by the baseline's."""
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
