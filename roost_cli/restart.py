"""`roost restart NAME`: a rolling restart of one service of `roost up --processes`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from roost_cli import connection, options, runfile
from roost_cli.supervisor import control


def restart(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a service, or gateway.")],
    grpc: options.Grpc = None,
) -> None:
    """Replace the processes of a service, one after the other.

    The new process is ready before the old one drains, so that no call fails. The gateway and the registry have a
    fixed address each, so they stop before they start again.
    """
    # A gateway that cannot start has no run file, and is what one may want to restart.
    address = connection.find(grpc).address if grpc or runfile.running() else options.settings_with({}).grpc
    seconds = asyncio.run(control.ask_restart(control.path_of(address), name))
    typer.echo(f"{name} restarted in {seconds:.1f} s")
