"""`roost restart NAME`: a rolling restart of one group of a mesh of several processes."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from roost_cli import connection, options, runfile
from roost_cli.supervisor import control


def restart(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of a group, or of a service that it runs, or gateway.")
    ],
    grpc: options.Grpc = None,
) -> None:
    """Replace the processes of a group, one after the other.

    A new process is ready before the old one drains, so no HTTP request fails. A gRPC call from outside the mesh gets
    CANCELLED if it reaches a process in the moment of its stop: repeat it. The registry has a fixed address, so its old
    process stops before the new one starts; so does the process of the gateway if it has a fixed --ops port.
    """
    # A mesh that is not ready yet has no run file, so the address of the settings is used.
    address = connection.find(grpc).address if grpc or runfile.running() else options.settings_with({}).grpc_address
    done = asyncio.run(control.ask_restart(control.path_of(address), name))
    whom = name if done.group == name else f"{done.group}, which runs {name},"
    typer.echo(f"{whom} restarted in {done.seconds:.1f} s")
