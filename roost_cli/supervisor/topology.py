"""Defines the processes of a mesh on one machine, with their arguments and environment."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import address_of
from roost_cli.supervisor.groups import Group
from roost_cli.supervisor.shared_addresses import SharedAddresses
from services.platform.config import Settings, margin_of_several_processes_s
from services.platform.transport.remote_services import REGISTRY

# Seconds for which a process still serves calls after it began to drain. Within this time, the registry notifies the
# other processes, which then call another process, and clients learn from a response that their connection ends.
DRAIN_S = 0.5
_ANY_PORT = "127.0.0.1:0"


class Phase(IntEnum):
    """When a process starts: those of a phase together, after those of earlier phases. They stop in reverse order."""

    REGISTRY = 0
    SERVICES = 1
    GATEWAY = 2


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process of the mesh. `name` is the name of its group, or `registry`; `members` are what it runs: names of
    services, and `gateway`. `number` is the 1-based number of the process in its group.

    `environment` has the values of settings by name. The process inherits the file descriptors `inherited`. If
    `has_fixed_address` is true, it always has the same address, so at a restart the old process must stop before the
    new one starts.
    """

    name: str
    number: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    members: tuple[str, ...] = ()
    phase: Phase = Phase.SERVICES
    inherited: tuple[int, ...] = ()
    has_fixed_address: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}-{self.number}"


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets that all processes of a mesh share: those of the settings, or random ones."""

    mesh_secret: str
    operator_token: str

    @classmethod
    def of(cls, settings: Settings) -> Secrets:
        return cls(
            settings.mesh_secret or secrets.token_urlsafe(32), settings.operator_token or secrets.token_urlsafe(32)
        )


def process_specs(
    settings: Settings, groups: Sequence[Group], addresses: SharedAddresses, shared: Secrets
) -> Sequence[ProcessSpec]:
    """Returns the processes of the mesh in start order: the registry, groups without the gateway, groups with it.

    A mesh of one group has no registry: each of its processes has all services and calls no other process. Raises
    CommandError if the ops address has a port and several processes would listen on it.
    """
    common = {
        "mesh_secret": shared.mesh_secret,
        "operator_token": shared.operator_token,
        "backend": settings.backend,
        "exit_with_parent": "true",
    }
    if sum(group.processes for group in groups) > 1:
        common["clock_margin_s"] = str(margin_of_several_processes_s(settings))
    found: list[ProcessSpec] = []
    if len(groups) > 1:
        common["registry_address"] = addresses.registry
        found.append(_registry(settings, common))
    for group in sorted(groups, key=lambda group: group.has_gateway):
        found += _processes(settings, group, addresses, common)
    return found


def _registry(settings: Settings, common: Mapping[str, str]) -> ProcessSpec:
    # The registry uses the embedded backend, so that its start does not depend on Cassandra and the other servers.
    return ProcessSpec(
        REGISTRY,
        1,
        (
            "serve",
            REGISTRY,
            "--grpc",
            common["registry_address"],
            "--ops",
            _ANY_PORT,
            *_data(settings, f"{REGISTRY}-1"),
        ),
        {**common, "backend": "embedded", "grpc_address_shared": "true"},
        members=(REGISTRY,),
        phase=Phase.REGISTRY,
        has_fixed_address=True,
    )


def _processes(
    settings: Settings, group: Group, addresses: SharedAddresses, common: Mapping[str, str]
) -> Sequence[ProcessSpec]:
    # Without the option --ops, processes would use ROOST_OPS_ADDRESS of the environment, on which only one can listen.
    ops = settings.ops_address if group.has_gateway else _ANY_PORT
    has_fixed_ops = address_of(ops, "--ops")[1] > 0
    if has_fixed_ops and group.processes > 1:
        raise CommandError(
            f"{group.processes} processes of {group.name} cannot share the ops address {ops}: leave --ops and ROOST_OPS_ADDRESS "
            "out; each process prints its own",
            UNUSABLE,
        )
    environment = {**common, "drain_s": str(DRAIN_S)}
    place: tuple[str, ...] = ("--grpc", _ANY_PORT)
    if group.has_gateway:
        place = ("--grpc", addresses.grpc, "--http", addresses.http)
        environment |= {"grpc_address_shared": "true", "inherited_listener_fd": str(addresses.http_fd)}
    return [
        ProcessSpec(
            group.name,
            number,
            ("serve", *group.members, *place, "--ops", ops, *_data(settings, f"{group.name}-{number}")),
            environment,
            members=group.members,
            phase=Phase.GATEWAY if group.has_gateway else Phase.SERVICES,
            inherited=(addresses.http_fd,) if group.has_gateway else (),
            has_fixed_address=has_fixed_ops,
        )
        for number in range(1, group.processes + 1)
    ]


def _data(settings: Settings, label: str) -> tuple[str, str]:
    return ("--data", str(settings.data_dir / "processes" / label))
