"""`roost bench`: measures reads of home timelines of a running mesh, or the writes of fan-out to Redis."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from roost_cli import options
from roost_cli.bench import home


class Workload(StrEnum):
    """The workload to measure."""

    HOME = "home"
    FANOUT = "fanout"


def bench(
    what: Annotated[
        Workload, typer.Argument(help="home reads first pages of home timelines; fanout writes entries to Redis.")
    ] = Workload.HOME,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=home.MAX_ROUNDS, help="The number of rounds per server.")
    ] = 3,
    seconds: Annotated[
        int, typer.Option("--seconds", min=1, max=home.MAX_SECONDS, help="The length of a round in seconds.")
    ] = 6,
    connections: Annotated[
        int,
        typer.Option("--connections", min=1, max=home.MAX_CONNECTIONS, help="The number of HTTP connections."),
    ] = 16,
    posts: Annotated[
        int,
        typer.Option(
            "--posts",
            min=0,
            max=home.MAX_POSTS,
            help="With home: tweets posted per second in rounds of their own; 0 leaves those rounds out.",
        ),
    ] = home.DEFAULT_POSTS,
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
        typer.Option(
            "--redis", metavar="URL", help="With fanout: the URL of an empty Redis database [a temporary server]."
        ),
    ] = None,
    grpc: options.Grpc = None,
) -> None:
    """Measure home reads of a loaded mesh on this machine with wrk, or fan-out's writes to Redis.

    For home, start the mesh with ROOST_RATE_LIMITS=off. For fanout no mesh is needed.
    """
    if what is Workload.FANOUT:
        from roost_cli.bench import fanout  # imported here: its driver is slow to import

        fanout.run(rounds, redis, markdown)
        return
    home.run(home.BenchPlan(rounds, min(seconds, home.MAX_SECONDS // rounds), connections, posts), grpc, http, markdown)
