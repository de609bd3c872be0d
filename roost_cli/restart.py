"""`roost restart NAME`: a rolling restart of one service of `roost up --processes`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from roost_cli.processes import control
from services.common.config import Settings


def restart(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A service, or gateway.")],
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The mesh's gRPC address [127.0.0.1:50051].")
    ] = None,
) -> None:
    """Replace every process of a service, one after the other.

    The new process is ready before the old one drains, so that no call fails. The gateway and the registry have one address each: they
    stop, then start.
    """
    seconds = asyncio.run(control.ask_restart(control.path_of(grpc or Settings().grpc), name))
    typer.echo(f"{name} restarted in {seconds:.1f} s")
