"""`roost drill`: breaks a mesh of its own on purpose, and says whether it kept its promises."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from roost_cli import progress
from roost_cli.child import Nursery
from roost_cli.crash import Drill, Result
from roost_cli.outcome import FAULTS

# What a restart may take, from the command to the ready line.
STARTUP_WITHIN_S = 10.0
MAX_ROUNDS = 1_000
# Of each kind of fault; the table has the count.
SHOWN_FAULTS = 5


class Fault(StrEnum):
    """What is done to the mesh."""

    CRASH = "crash"


def drill(
    fault: Annotated[Fault, typer.Argument(help="crash: SIGKILL under load, restart, and compare what is there.")],
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=MAX_ROUNDS, help="How often.")] = 20,
    seed: Annotated[
        int, typer.Option("--seed", help="Decides what is written, and for how long before each kill.")
    ] = 1,
) -> None:
    """Break a mesh of its own, in a temporary folder and on free ports; exit 1 where a promise was not kept.

    Every acknowledged write must be there once, every home exact, every start-up at most 10 s.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="roost-drill-") as folder:
        result = asyncio.run(Drill(Nursery(Path(folder)), seed, progress.for_stream()).run(rounds))
    report(fault, result, time.monotonic() - began)
    if not (result.clean and max(result.startups_s) <= STARTUP_WITHIN_S):
        raise typer.Exit(FAULTS)


def report(fault: Fault, result: Result, seconds: float) -> None:
    """Prints the first faults of each kind, and the table."""
    kinds: Sequence[tuple[str, Sequence[str]]] = (
        ("lost", result.lost),
        ("duplicated", result.duplicated),
        ("unasked", result.strange),
    )
    for title, faults in kinds:
        for line in faults[:SHOWN_FAULTS]:
            typer.echo(f"{title}: {line}")
    table = Table(title=f"{fault} drill, {seconds:.0f} s", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    rows = {
        "rounds": f"{result.rounds:,}",
        "restarts killed as well": f"{result.killed_restarts:,}",
        "acknowledged writes": f"{result.acknowledged:,}",
        "without an answer, repeated": f"{result.unknown:,}",
        "lost": f"{len(result.lost):,}",
        "duplicated": f"{len(result.duplicated):,}",
        "there or changed unasked": f"{len(result.strange):,}",
        "every home exact": "yes" if result.homes_exact else "no",
        "longest start-up": f"{max(result.startups_s):.1f} s of {STARTUP_WITHIN_S:.0f}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
