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

    A new process is ready before the old one drains, so no call fails. The gateway and the registry have fixed
    addresses, so their old process stops before the new one starts.
    """
    # A mesh whose gateway failed to start has no run file. Its gateway must still be restartable, so the address of the
    # settings is used.
    address = connection.find(grpc).address if grpc or runfile.running() else options.settings_with({}).grpc_address
    seconds = asyncio.run(control.ask_restart(control.path_of(address), name))
    typer.echo(f"{name} restarted in {seconds:.1f} s")
