"""`roost serve NAME…`: runs some services, with or without the gateway, in this process."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import GATEWAY, Cluster, Ops, settings_with
from roost_cli.server_runner import serve_until_stopped
from services.catalog import SERVICES


def serve(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME…", help=f"The services to run: {', '.join(SERVICES)}; and {GATEWAY}."),
    ],
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the gateway listens [127.0.0.1:8080].")
    ] = None,
    grpc: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where gRPC listens [127.0.0.1:50051].")] = None,
    ops: Ops = None,
    data: Annotated[Path | None, typer.Option(help="The data directory [`data` in the checkout].")] = None,
    cluster: Cluster = False,
) -> None:
    """Run the named services in this process, and the gateway if it is named.

    Calls to a service of this process stay in it. Services in other processes are found through
    ROOST_REGISTRY_ADDRESS (the host:port of a `serve registry`) or listed in ROOST_STATIC_PEERS (name=host:port,…);
    all processes need the same ROOST_MESH_SECRET. The gateway serves HTTP and forwards gRPC calls to the services
    in other processes. Embedded stores, which are the default, and their event log belong to one process: consumers
    receive only the events of services in the same process. --cluster or ROOST_BACKEND=cluster chooses the servers of
    the mesh instead; the line that says that the process is ready names the backend.
    """
    unknown = [name for name in names if name not in SERVICES and name != GATEWAY]
    if unknown:
        raise CommandError(
            f"no service {', '.join(unknown)}; there are {', '.join(SERVICES)}, and {GATEWAY}{_suggestion(unknown[0])}",
            UNUSABLE,
        )
    if http is not None and GATEWAY not in names:
        raise CommandError(
            f"--http is the address of the gateway: add {GATEWAY} to the names, or leave --http out", UNUSABLE
        )
    settings = settings_with(
        {
            "http_address": http,
            "grpc_address": grpc,
            "ops_address": ops,
            "data_dir": data,
            "backend": "cluster" if cluster else None,
        }
    )
    chosen = {name: build for name, build in SERVICES.items() if name in names}
    serve_until_stopped(settings, chosen, gateway=GATEWAY in names, with_demo=False)


def _suggestion(name: str) -> str:
    """Returns a hint at the name that is most similar to `name`; "" if none is similar."""
    similar = difflib.get_close_matches(name, [*SERVICES, GATEWAY], 1)
    return f"; did you mean {similar[0]}?" if similar else ""
