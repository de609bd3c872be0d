"""`roost restart NAME`: a rolling restart of one group of a mesh of several processes."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from roost_cli import connection, options, runfile
from roost_cli.exit_codes import CommandError
from roost_cli.supervisor import control
from roost_cli.supervisor.groups import MEMBERS, parse_groups


def restart(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of a group, or of a service that it runs, or gateway.")
    ],
    grpc: options.Grpc = None,
) -> None:
    """Replace the processes of a group, one after the other, in a mesh that --replicas, --processes or --groups started.

    A new process is ready before the old one drains, so no HTTP request fails. A gRPC call from outside the mesh gets
    CANCELLED if it reaches a process in the moment of its stop: repeat it. The registry has a fixed address, so its old
    process stops before the new one starts; so does the process of the gateway if it has a fixed --ops port.
    """
    mesh = connection.find(grpc)
    run = connection.run_at(mesh.address)
    path = control.path_of(mesh.address if run is None else run.grpc)
    try:
        done = asyncio.run(control.ask_restart(path, name))
    except control.NoSupervisorError:
        raise CommandError(_no_supervisor(mesh.address, run)) from None
    whom = name if done.group == name else f"{done.group}, which runs {name},"
    typer.echo(f"{whom} restarted in {done.seconds:.1f} s")


def _no_supervisor(address: str, run: runfile.RunFile | None) -> str:
    """Returns why no supervisor can restart a process of the mesh at `address`, and what to do instead. `run` is its
    run file."""
    if run is None:
        return f"no mesh runs here at {address}: only the user who started a mesh can restart its processes, on the same machine"
    members = {member for group in parse_groups(run.groups, complete=False) for member in group.members}
    if members >= set(MEMBERS):
        return f"this mesh runs in one process (pid {run.pid}): stop it and start it again"
    return "no supervisor started this mesh: stop the process that is to be restarted, and start it again with `roost serve`"
