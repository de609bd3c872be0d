"""`roost up`: runs every service and the gateway, in this process or in several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import Cluster, Ops, settings_with
from roost_cli.server_runner import serve_until_stopped
from roost_cli.supervisor.groups import (
    EXAMPLE,
    MAX_REPLICAS,
    Group,
    parse_groups,
    replica_groups,
    replicas_of,
    service_groups,
    with_replicas,
)
from roost_cli.supervisor.run import supervise
from services.catalog import SERVICES
from services.platform.config import Settings


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
    cluster: Cluster = False,
    processes: Annotated[
        bool, typer.Option("--processes", help="Run each service in a process of its own; needs --cluster.")
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(
            metavar="N or NAME=N,…",
            help="N: run N equal processes, each with the gateway and all services, on one address; needs --cluster. "
            "NAME=N,…: how many processes a service gets with --processes, or a group with --groups [1]. "
            f"Each N is a number from 1 to {MAX_REPLICAS}.",
        ),
    ] = "",
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SERVICE,…*N;…",
            help=f"Choose which services run in one process, and in how many, such as `{EXAMPLE}`; needs --cluster.",
        ),
    ] = None,
) -> None:
    """Run every service with the HTTP gateway. By default all run in this process and keep their data in embedded stores.

    Stops cleanly on SIGTERM and Ctrl-C. Settings are ROOST_… variables or come from the TOML file named by ROOST_CONFIG.
    Options override both. --processes, --replicas and --groups start several processes, which are restarted if they end;
    they load no demo.
    """
    settings = settings_with(
        {
            "http_address": http,
            "grpc_address": grpc,
            "ops_address": ops,
            "data_dir": data,
            "backend": "cluster" if cluster else None,
            "groups": groups,
        }
    )
    mesh = _groups(settings, processes, replicas.strip(), groups is not None)
    if mesh is None:
        serve_until_stopped(settings, SERVICES, gateway=True, with_demo=not no_demo)
        return
    if settings.backend != "cluster":
        raise CommandError("several processes need --cluster: an embedded store belongs to one process", UNUSABLE)
    supervise(settings, mesh)


def _groups(settings: Settings, processes: bool, replicas: str, chosen: bool) -> Sequence[Group] | None:
    """Returns the groups of the mesh, None for a mesh of one process. `chosen` is true if the option --groups is used;
    other options override the setting `groups`.

    Raises CommandError if options exclude each other or are malformed.
    """
    # "-1" and "1.5" are numbers that are out of range, and not malformed lists.
    is_number = bool(replicas) and "=" not in replicas
    if chosen and processes:
        raise CommandError("--groups and --processes exclude each other: leave one of them out", UNUSABLE)
    if is_number and (chosen or processes):
        other = "--groups" if chosen else "--processes"
        raise CommandError(f"write --replicas NAME=N,… with {other}, or leave {other} out", UNUSABLE)
    if is_number:
        return replica_groups(replicas)
    counts = replicas_of(replicas)
    if processes:
        return with_replicas(service_groups(), counts)
    if settings.groups or chosen:
        return with_replicas(parse_groups(settings.groups), counts)
    if counts:
        raise CommandError(
            "--replicas NAME=N needs --processes or --groups; --replicas N alone runs N equal processes", UNUSABLE
        )
    return None
