"""`roost drill`: starts a mesh, kills or restarts its processes, and checks that no acknowledged write is lost."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from roost_cli import progress
from roost_cli.drill import crash, kill
from roost_cli.drill.multi_process_mesh import MultiProcessMesh
from roost_cli.drill.single_process_mesh import MeshLauncher
from roost_cli.exit_codes import FAULTS, UNUSABLE, CommandError
from roost_cli.options import GATEWAY, settings_with
from roost_cli.supervisor.groups import ALL, MEMBERS

# Maximum number of seconds for a start after a crash, from the command to the line that says that the mesh is ready. If
# a start takes longer, the drill fails.
STARTUP_WITHIN_S = 10.0
MAX_ROUNDS = 1_000
ROUNDS = 20
# Number of processes of each service that is killed or restarted. While one of them is gone, the other one serves.
REPLICAS = 2
# Maximum number of violations that are printed per kind. The table has the total numbers.
SHOWN_FAULTS = 5


class Fault(StrEnum):
    """The fault to inject."""

    CRASH = "crash"
    KILL = "kill"
    RESTART = "restart"


class Shape(StrEnum):
    """The processes of the mesh: each service in its own, or equal ones with the gateway and all services."""

    SERVICES = "services"
    REPLICAS = "replicas"


def drill(
    fault: Annotated[
        Fault,
        typer.Argument(
            help="crash kills a whole mesh under load with SIGKILL, starts it again and compares its data with the writes. "
            "kill kills one process after another of a mesh with two of each service, on Cassandra, Redis, Kafka and OpenSearch. "
            "restart does the same with rolling restarts."
        ),
    ],
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=MAX_ROUNDS, help="The number of rounds.")] = ROUNDS,
    seed: Annotated[
        int, typer.Option("--seed", help="The seed of the random writes and of the times of the kills.")
    ] = 1,
    service: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="With kill and restart: only processes of this service. May be given several times."
        ),
    ] = None,
    shape: Annotated[
        Shape | None,
        typer.Option(
            help="With kill and restart. services: two processes of each service, and one gateway. replicas: two equal "
            "processes, each with the gateway and all services; a client repeats a request once if its connection breaks. "
            "[services]"
        ),
    ] = None,
) -> None:
    """Start a mesh, crash or restart it, and check that no acknowledged write was lost. Exits with 1 if one was lost.

    Every acknowledged write must have its effect exactly once, and every home timeline must equal the one that
    `roost verify` computes. After a crash, each start-up must take at most 10 s. While one of several processes is
    killed or restarted, every read and every write that is safe to repeat must succeed.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="roost-drill-") as folder:
        if fault is Fault.CRASH:
            if service or shape:
                raise CommandError(
                    "crash kills the whole mesh: give --service and --shape only with kill or restart", UNUSABLE
                )
            result = asyncio.run(crash.CrashDrill(MeshLauncher(Path(folder)), seed, progress.for_stream()).run(rounds))
            report(fault, result, time.monotonic() - began)
            clean = result.clean and max(result.startups_s) <= STARTUP_WITHIN_S
        elif shape is Shape.REPLICAS:
            if service:
                raise CommandError("each replica runs all services: leave --service out", UNUSABLE)
            clean = _one_by_one(fault, Path(folder), rounds, seed, REPLICAS_PLAN)
        else:
            clean = _one_by_one(fault, Path(folder), rounds, seed, services_plan(_chosen(service or [])))
    if not clean:
        raise typer.Exit(FAULTS)


def _chosen(services: Sequence[str]) -> Sequence[str]:
    """Returns the services whose processes are killed or restarted: `services`, or all but the registry if it is empty.
    Raises CommandError for any other name.

    The gateway and the registry are excluded, because a mesh has only one process of each, and all load passes through
    the gateway.
    """
    known = [name for name in MEMBERS if name != GATEWAY]
    if unknown := [name for name in services if name not in known]:
        raise CommandError(f"--service: no service {unknown[0]}; there are {', '.join(known)}", UNUSABLE)
    return services or known


@dataclass(frozen=True, slots=True)
class Plan:
    """The mesh of a kill or restart drill: the arguments of `roost up`, the groups whose processes are killed or
    restarted, and how often a client sends a request whose connection breaks."""

    shape: Sequence[str]
    groups: Sequence[str]
    attempts: int


REPLICAS_PLAN = Plan(("--replicas", str(REPLICAS)), (ALL,), kill.ATTEMPTS_AT_KILLED_GATEWAY)


def services_plan(services: Sequence[str]) -> Plan:
    """Returns the plan of a mesh with REPLICAS processes of each of `services`, and one of each other service."""
    counts = ",".join(f"{name}={REPLICAS}" for name in services)
    return Plan(("--processes", "--replicas", counts), services, 1)


def _one_by_one(fault: Fault, folder: Path, rounds: int, seed: int, plan: Plan) -> bool:
    # Imported in the function: the drivers of the four servers take a second to import, and the crash drill needs none.

    from roost_cli.drill.temp_namespace import temp_namespace

    shown = progress.for_stream()
    disturb = kill.kill_process if fault is Fault.KILL else kill.restart_service
    began = time.monotonic()

    async def run() -> kill.Result:
        async with temp_namespace(settings_with({})) as settings:
            shown.say(f"starting a mesh with `roost up --cluster {' '.join(plan.shape)}`")
            mesh_processes = await MultiProcessMesh.start(folder, settings, plan.shape)
            try:
                drill = kill.KillDrill(mesh_processes, seed, shown, attempts=plan.attempts)
                result = await drill.run(plan.groups, rounds, disturb)
                await mesh_processes.stop()
            finally:
                await mesh_processes.kill_all()
        return result

    result = asyncio.run(run())
    report_requests(fault, result, time.monotonic() - began)
    return result.clean


def report(fault: Fault, result: crash.Result, seconds: float) -> None:
    """Prints the result of a crash drill that took `seconds` seconds: the first violations of each kind, and the
    table."""
    _show_faults({"lost": result.lost, "duplicated": result.duplicated, "unexpected": result.strange})
    rows = {
        "rounds": f"{result.rounds:,}",
        "restarts killed as well": f"{result.killed_restarts:,}",
        "acknowledged writes": f"{result.acknowledged:,}",
        "repeated, because the outcome was unknown": f"{result.unknown:,}",
        "lost": f"{len(result.lost):,}",
        "duplicated": f"{len(result.duplicated):,}",
        "unexpected data": f"{len(result.strange):,}",
        "every home exact": "yes" if result.homes_exact else "no",
        "longest start-up": f"{max(result.startups_s):.1f} s of {STARTUP_WITHIN_S:.0f}",
    }
    _show_table(f"{fault} drill, {seconds:.0f} s", rows)


def report_requests(fault: Fault, result: kill.Result, seconds: float) -> None:
    """Prints the result of a kill or restart drill that took `seconds` seconds: the first failed requests and
    violations of each kind, and the table."""
    _show_faults(
        {
            "not answered": result.failures,
            "lost": result.lost,
            "duplicated": result.duplicated,
            "unexpected": result.strange,
        }
    )
    failed = ", ".join(f"{count:,} after {name}" for name, count in result.by_service.items())
    rows = {
        "rounds": f"{result.rounds:,}",
        "reads": f"{result.reads:,}",
        "writes": f"{result.writes:,}",
        "requests not answered": f"{result.failed:,}" + (f" ({failed})" if failed else ""),
        "repeated on another connection": f"{result.reconnected:,}",
        "succeeded when repeated, the store was too slow": f"{result.slow:,}",
        "longest answer": f"{result.longest_s:.1f} s",
        "longest recovery": f"{max(result.recoveries_s):.1f} s",
        "acknowledged writes": f"{result.acknowledged:,}",
        "lost": f"{len(result.lost):,}",
        "duplicated": f"{len(result.duplicated):,}",
        "unexpected data": f"{len(result.strange):,}",
        "every home exact": "yes" if result.homes_exact else "no",
    }
    _show_table(f"{fault} drill, {seconds:.0f} s", rows)


def _show_faults(kinds: Mapping[str, Sequence[str]]) -> None:
    for title, faults in kinds.items():
        for line in faults[:SHOWN_FAULTS]:
            typer.echo(f"{title}: {line}")


def _show_table(title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)
