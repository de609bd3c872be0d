"""`roost load`: loads a graph and tweets from files, and performs random operations, through RPCs.

The command creates the users and the follows, waits for the margin, reads every home timeline once, and then posts the
tweets. So every home timeline is warm before the tweets are posted, and fan-out appends the tweets to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from roost_cli import connection, options, progress
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.load import edge_list as edges
from roost_cli.load import mutate
from roost_cli.load.loader import CONCURRENCY, Loader, NewUser, Operator, Post, PostOutcome
from roost_cli.supervisor import control
from roost_cli.tokens import TokenCache
from services.platform.config import margin_of_several_processes_s

# Number of connections to the mesh. gRPC reads each connection in one task, so a few connections use the CPU better
# than one.
CHANNELS = 4
MAX_CONCURRENCY = 1_024
# Number of hexadecimal digits of the file's SHA-256 in idempotency keys. Half of the digits are enough to distinguish
# files.
HASH_DIGITS = 32
# Maximum size in bytes of the file of tweets. The whole file is read into memory, because its hash is part of every
# idempotency key.
MAX_TWEETS_BYTES = 256 * 1024 * 1024
# Maximum number of random operations. All are planned before the first is sent, and each uses some hundred bytes of
# memory.
MAX_OPERATIONS = 1_000_000
# Maximum number of line numbers printed per reason. The total number of lines is printed too.
SHOWN_SOURCES = 5


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file of tweets: its 1-based number, its text and its idempotency key."""

    number: int
    text: str
    key: str


def _file(option: str, help_text: str) -> Any:
    return typer.Option(option, exists=True, dir_okay=False, readable=True, help=help_text)


def load(
    graph: Annotated[Path | None, _file("--graph", "A UTF-8 file of edges: two node numbers on each line.")] = None,
    tweets: Annotated[Path | None, _file("--tweets", "A UTF-8 file of tweets, one on each line.")] = None,
    directed: Annotated[
        bool, typer.Option("--directed", help="Read an edge as FROM follows TO. By default each follows the other.")
    ] = False,
    operations: Annotated[
        int,
        typer.Option(
            "--mutate",
            min=0,
            max=MAX_OPERATIONS,
            metavar="N",
            help="Then perform N random operations as existing users: posts, replies, retweets, edits, blocks and more.",
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option("--seed", help="The seed of all random choices: who posts which tweet, and every operation.")
    ] = 1,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=MAX_CONCURRENCY, help="The maximum number of concurrent calls.")
    ] = CONCURRENCY,
    grpc: options.Grpc = None,
) -> None:
    """Load a graph and tweets from files, do random operations, or both.

    A second run with the same files continues the first and adds nothing twice. Random operations are performed again
    by each run.
    """
    if (graph is None) != (tweets is None):
        raise CommandError("give both --graph and --tweets: the users of the graph post the tweets")
    if graph is not None and tweets is not None:
        _load_files(graph, tweets, directed, seed, concurrency, grpc)
    elif not operations:
        raise CommandError(
            "nothing to do: give --graph and --tweets to load files, --mutate N for random operations, or both"
        )
    if operations and not asyncio.run(mutate.mutate(connection.find(grpc), operations, seed, concurrency)):
        raise typer.Exit(FAULTS)


def _load_files(graph: Path, tweets: Path, directed: bool, seed: int, concurrency: int, grpc: str | None) -> None:
    # The tweets are read first, so that errors in them are reported at once: reading the graph may take a minute.
    usable, blank = tweet_lines(_whole(tweets), tweets.name)
    if not usable:
        raise CommandError(f"{tweets.name} contains no tweet: write one on each line")
    with graph.open("rb") as lines:
        edge_list = edges.parse(utf8_lines(lines, graph.name), directed=directed, name=graph.name)
    if not edge_list.nodes:
        raise CommandError(f"{graph.name} contains no edge: write two node numbers on each line")
    asyncio.run(_load(connection.find(grpc), edge_list, usable, blank, seed, concurrency))


def utf8_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Yields the lines of the file `name` as text, without a byte order mark. Raises CommandError, which names the
    line, if a line is not UTF-8."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise CommandError(
                f"{name}, line {number}: byte {line[error.start]:#04x} is not UTF-8; convert the file first, "
                "such as with `iconv -f LATIN1 -t UTF-8`"
            ) from None
        yield text.removeprefix("\ufeff") if number == 1 else text


def tweet_lines(content: bytes, name: str) -> tuple[list[Line], list[int]]:
    """Returns the lines of the file `name` that are not blank, and the 1-based numbers of those that are.

    The idempotency key of a line contains the hash of the file and the number of the line. Raises CommandError, which
    names the line, if the file is not UTF-8.
    """
    digest = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    usable: list[Line] = []
    blank: list[int] = []
    # Split at newlines only, because a tweet may contain other Unicode line separators.
    for number, text in enumerate(utf8_lines(content.removesuffix(b"\n").split(b"\n"), name), 1):
        if stripped := text.strip():
            usable.append(Line(number, stripped, f"load:{digest}:{number}"))
        elif content:
            blank.append(number)
    return usable, blank


def authors(nodes: Sequence[int], lines: int, seed: int) -> list[int]:
    """Returns the author of each of the `lines` lines of the file of tweets: a random element of `nodes`. The same seed
    gives the same authors."""
    chance = random.Random(seed)  # noqa: S311 (must be reproducible)
    return [nodes[chance.randrange(len(nodes))] for _ in range(lines)]


def _whole(path: Path) -> bytes:
    if path.stat().st_size > MAX_TWEETS_BYTES:
        raise CommandError(f"{path.name} is larger than {MAX_TWEETS_BYTES // 2**20} MiB; load it in parts")
    return path.read_bytes()


async def _load(
    mesh: connection.MeshTarget,
    edge_list: edges.EdgeList,
    usable: Sequence[Line],
    blank: Sequence[int],
    seed: int,
    concurrency: int,
) -> None:
    began = time.monotonic()
    shown = progress.for_stream()
    operator = mesh.operator()
    async with connection.connect(mesh, min(CHANNELS, concurrency)) as channels:
        actors = TokenCache(channels[0], operator)
        loader = Loader(channels, Operator(channels[0], operator), actors, shown, concurrency)
        people = [NewUser(edges.username(node), f"User {node}") for node in edge_list.nodes]
        ids = await loader.import_users(people)
        by_node = {node: ids[edges.username(node)] for node in edge_list.nodes}
        barred = await loader.follow(
            [(by_node[follower], by_node[followee]) for follower, followee in edge_list.follows]
        )
        settings = options.settings_with({})
        is_supervised = control.path_of(mesh.address).exists()
        await loader.settle(margin_of_several_processes_s(settings) if is_supervised else settings.clock_margin_s)
        whole = await loader.warm(list(by_node.values()))
        chosen = authors(edge_list.nodes, max((line.number for line in usable), default=0), seed)
        posts = [Post(by_node[chosen[line.number - 1]], line.text, line.key, f"line {line.number}") for line in usable]
        posted = await loader.post(posts, time.time())
    report(edge_list, posted, blank)
    if barred:
        typer.echo(f"follows left out: {barred:,}: one of the two blocks the other")
    if whole < len(by_node):
        typer.echo(f"homes still being built when the tweets came: {len(by_node) - whole:,} of {len(by_node):,}")
    typer.echo(f"done in {time.monotonic() - began:.1f} s")


def report(edge_list: edges.EdgeList, posted: PostOutcome, blank: Sequence[int]) -> None:
    """Prints how many users, follows and tweets were loaded, and which lines were left out and why. `blank` are the
    numbers of the blank lines."""
    typer.echo(f"people: {len(edge_list.nodes):,}; follows: {len(edge_list.follows):,}")
    if edge_list.self_loops or edge_list.repeats:
        typer.echo(f"edges left out: {edge_list.self_loops:,} from a node to itself, {edge_list.repeats:,} repeated")
    typer.echo(f"tweets: {posted.created:,} posted, {posted.existing:,} already there")
    left_out = dict(posted.refused)
    if blank:
        left_out["empty line"] = [f"line {number}" for number in blank]
    for reason, places in left_out.items():
        more = ", …" if len(places) > SHOWN_SOURCES else ""
        typer.echo(f"tweets left out: {len(places):,}: {reason} ({', '.join(places[:SHOWN_SOURCES])}{more})")
