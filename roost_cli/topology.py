"""`roost topology`: prints which services run in which processes of a mesh, and who calls whom in which way."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import grpc as grpc_lib
import typer
from rich.console import Console
from rich.table import Table
from roost.options.v1 import options_pb2
from roost.registry.v1 import registry_service_pb2, registry_service_pb2_grpc

from roost_cli import connection, options
from roost_cli.exit_codes import CommandError, call_error
from roost_cli.options import GATEWAY
from roost_cli.rate_control import deadline_s
from roost_cli.supervisor import control
from roost_cli.supervisor.groups import MEMBERS, Group, parse_groups
from roost_cli.supervisor.supervisor import RunningProcess
from services.catalog import KEY_SOURCE
from services.platform.callees import callees_of
from services.platform.rpc.contract import methods

_LIST_INSTANCES = "/roost.registry.v1.RegistryService/ListInstances"
# Statuses with which a mesh without a registry answers.
_NO_REGISTRY = frozenset({grpc_lib.StatusCode.UNIMPLEMENTED, grpc_lib.StatusCode.UNAVAILABLE})


class Way(StrEnum):
    """How a call reaches the service that it calls."""

    LOCAL = "in process"
    REGISTRY = "gRPC via registry"
    STATIC = "gRPC static"
    UNKNOWN = "not found"


@dataclass(frozen=True, slots=True)
class Calls:
    """The services that `caller`, a service or the gateway, calls, by the way of the calls."""

    group: Group
    caller: str
    callees: Mapping[Way, Sequence[str]]


def topology(
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SERVICE,…*N;…",
            help="Print the topology that `roost up --groups` would have, instead of that of the mesh that runs.",
        ),
    ] = None,
    grpc: options.Grpc = None,
) -> None:
    """Print the groups of a mesh, for each service which services it calls and how, and the processes that run.

    A service of the same process is called in process. Others are called over gRPC, at the addresses in
    ROOST_STATIC_PEERS if it names the service, otherwise at those that the registry knows. The processes, and the
    registry among them, are listed with process id, gRPC address, and the ops address with /readyz and /metrics; those
    that `roost serve` started only with what the run file and the registry know of them.
    """
    static = options.settings_with({}).static_peers
    if groups is not None:
        _show(calls_of(parse_groups(groups), static))
        return
    found, processes = asyncio.run(_running(grpc))
    _show(calls_of(found, static))
    _show_processes(processes)


def callees_of_member(member: str) -> frozenset[str]:
    """Returns the services that a service or the gateway calls, without itself. The gateway calls every service that
    has methods for clients."""
    if member == GATEWAY:
        called = frozenset(m.service_name for m in methods().values() if m.policy.access != options_pb2.ACCESS_MESH)
    else:
        called = callees_of(member, KEY_SOURCE.service)
    return called & frozenset(MEMBERS) - {member}


def calls_of(groups: Sequence[Group], static: Iterable[str]) -> Sequence[Calls]:
    """Returns the calls of each service in `groups` and of the gateway. `static` are the services with an address in
    the setting `static_peers`."""
    found = []
    known = frozenset(member for group in groups for member in group.members)
    for group in groups:
        for member in group.members:
            ways: dict[Way, list[str]] = defaultdict(list)
            for callee in sorted(callees_of_member(member), key=MEMBERS.index):
                ways[_way(callee, group, known, frozenset(static))].append(callee)
            found.append(Calls(group, member, ways))
    return found


def _way(callee: str, group: Group, known: frozenset[str], static: frozenset[str]) -> Way:
    if callee in group.members:
        return Way.LOCAL
    if callee in static:
        return Way.STATIC
    return Way.REGISTRY if callee in known else Way.UNKNOWN


async def _running(grpc: str | None) -> tuple[Sequence[Group], Sequence[RunningProcess]]:
    """Returns the groups of the mesh that runs, and its processes.

    The groups are those in its run file, and if some services are missing there, those of the instances in its
    registry. The processes are those that its supervisor lists; without a supervisor, the process that wrote the run
    file and those of the instances. Raises CommandError if no mesh runs or its run file has no groups.
    """
    mesh = connection.find(grpc)
    run = connection.run_at(mesh.address)
    groups = parse_groups(run.groups, complete=False) if run is not None and run.groups else []
    processes = [RunningProcess(group.name, group.name, run.pid, run.grpc, run.ops) for group in groups[:1] if run]
    with contextlib.suppress(control.NoSupervisorError):
        processes = [*await control.ask_processes(control.path_of(run.grpc if run is not None else mesh.address))]
    listed = {member for group in groups for member in group.members}
    if listed >= set(MEMBERS):
        return groups, processes
    instances = await _instances(mesh)
    groups = [*groups, *groups_of_instances(instances, listed)]
    if not groups:
        raise CommandError(
            f"the mesh at {mesh.address} has neither a run file here nor a registry: describe it with --groups"
        )
    return groups, [*processes, *processes_of_instances(instances, listed)]


async def _instances(mesh: connection.MeshTarget) -> Sequence[registry_service_pb2.Instance]:
    """Returns the instances in the registry of the mesh; none if it has no registry."""
    async with connection.connect(mesh) as (channel,):
        stub = registry_service_pb2_grpc.RegistryServiceStub(channel)
        request = registry_service_pb2.ListInstancesRequest()
        try:
            answer = await stub.ListInstances(request, metadata=mesh.operator(), timeout=deadline_s(_LIST_INSTANCES))
        except grpc_lib.aio.AioRpcError as error:
            if error.code() in _NO_REGISTRY:
                return []
            raise call_error(error, "listing the instances of the registry") from error
    return list(answer.instances)


def processes_of_instances(
    instances: Iterable[registry_service_pb2.Instance], listed: Iterable[str]
) -> Sequence[RunningProcess]:
    """Returns the processes in the registry, by address, without their process ids and ops addresses. Leaves out
    processes all of whose services are in `listed`."""
    services: dict[str, set[str]] = defaultdict(set)
    for instance in instances:
        services[instance.address].add(instance.service)
    found = []
    for address, names in sorted(services.items()):
        if not names <= set(listed):
            ordered = sorted(names, key=lambda name: (MEMBERS.index(name) if name in MEMBERS else -1, name))
            found.append(RunningProcess(ordered[0], ",".join(ordered), 0, address, ""))
    return found


def groups_of_instances(instances: Iterable[registry_service_pb2.Instance], listed: Iterable[str]) -> Sequence[Group]:
    """Returns a group for each set of services that the processes in the registry have. Leaves out processes all of
    whose services are in `listed`. A group has the name of its first service."""
    services: dict[str, set[str]] = defaultdict(set)
    for instance in instances:
        services[instance.address].add(instance.service)
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    for names in services.values():
        counts[tuple(name for name in MEMBERS if name in names)] += 1
    return [
        Group(members[0], members, processes)
        for members, processes in sorted(counts.items())
        if members and not set(members) <= set(listed)
    ]


def _show(calls: Sequence[Calls]) -> None:
    used = [way for way in Way if any(way in row.callees for row in calls)]
    table = Table("group", "processes", "service", *(f"calls {way}" for way in used))
    shown: Group | None = None
    for row in calls:
        first = row.group is not shown
        shown = row.group
        if first and row is not calls[0]:
            table.add_section()
        table.add_row(
            row.group.name if first else "",
            str(row.group.processes) if first else "",
            row.caller,
            *(", ".join(row.callees.get(way, ())) for way in used),
        )
    Console(highlight=False).print(table)


def _show_processes(processes: Sequence[RunningProcess]) -> None:
    table = Table("process", "pid", "gRPC", "ops (/readyz, /metrics)")
    for process in processes:
        table.add_row(process.label, str(process.pid or "?"), process.grpc, process.ops or "?")
    Console(highlight=False).print(table)
