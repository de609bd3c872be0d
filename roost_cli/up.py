"""`roost up`: runs every service and the gateway, in this process or each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import Ops, settings_with
from roost_cli.server_runner import serve_until_stopped
from roost_cli.supervisor.run import supervise
from services.catalog import SERVICES


def up(
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the gateway listens [127.0.0.1:8080].")
    ] = None,
    grpc: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where gRPC listens [127.0.0.1:50051].")] = None,
    ops: Ops = None,
    data: Annotated[Path | None, typer.Option(help="The data directory [`data` in the checkout].")] = None,
    no_demo: Annotated[
        bool, typer.Option("--no-demo", help="Do not load the demo users and tweets at the first run.")
    ] = False,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster", help="Keep data in Cassandra, Redis, Kafka and OpenSearch. `scripts/backends up` starts them."
        ),
    ] = False,
    processes: Annotated[
        bool, typer.Option("--processes", help="Run each service in a process of its own; needs --cluster.")
    ] = False,
    replicas: Annotated[
        str, typer.Option(metavar="NAME=N,…", help="With --processes: how many processes each service gets [1].")
    ] = "",
) -> None:
    """Run every service with the HTTP gateway. By default all run in this process and keep their data in embedded stores.

    Stops cleanly on SIGTERM and Ctrl-C. Settings are ROOST_… variables or come from the TOML file named by ROOST_CONFIG.
    Options override both.
    """
    settings = settings_with(
        {
            "http_address": http,
            "grpc_address": grpc,
            "ops_address": ops,
            "data_dir": data,
            "backend": "cluster" if cluster else None,
        }
    )
    if processes and settings.backend != "cluster":
        raise CommandError("--processes needs --cluster: an embedded store belongs to one process", UNUSABLE)
    if replicas and not processes:
        raise CommandError("--replicas needs --processes", UNUSABLE)
    if processes:
        supervise(settings, replicas)
        return
    serve_until_stopped(settings, SERVICES, gateway=True, with_demo=not no_demo)
