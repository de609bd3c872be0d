"""Defines the processes of a mesh on one machine, with their arguments and environment."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import GATEWAY, address_of
from services.catalog import SERVICES
from services.platform.config import Settings

# The service that starts first and has only one process, because all other processes need its address.
REGISTRY = "registry"
# Maximum number of processes of one service. A process uses about 100 MB of memory, so a larger number is probably a
# typing error.
MAX_REPLICAS = 16
# Seconds for which a process still serves calls after it began to drain. Within this time, the registry notifies the
# other processes, which then call another process.
DRAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process of the mesh. `name` is the name of its service, or `gateway`; `number` is the 1-based number of the
    process in its service. `environment` has the values of settings by name."""

    name: str
    number: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def label(self) -> str:
        return f"{self.name}-{self.number}"

    @property
    def has_fixed_address(self) -> bool:
        """Returns whether the process must always have the same address. At a restart, the old process must then stop
        before the new one starts."""
        return self.name in (REGISTRY, GATEWAY)


def replicas_of(text: str) -> dict[str, int]:
    """Returns the number of processes by service from a text such as `timeline=3,fanout=2`. Raises CommandError if the
    text is malformed, or names the registry or an unknown service."""
    counts: dict[str, int] = {}
    for pair in filter(None, text.split(",")):
        name, _, number = pair.partition("=")
        if name not in SERVICES or name == REGISTRY:
            known = ", ".join(service for service in SERVICES if service != REGISTRY)
            raise CommandError(f"--replicas: {name!r} cannot have replicas; these can: {known}", UNUSABLE)
        if not number.isdigit() or not 1 <= int(number) <= MAX_REPLICAS:
            raise CommandError(
                f"--replicas: {pair!r} is invalid; write NAME=N with N from 1 to {MAX_REPLICAS}", UNUSABLE
            )
        counts[name] = int(number)
    return counts


def process_specs(settings: Settings, replicas: Mapping[str, int]) -> Sequence[ProcessSpec]:
    """Returns the processes of the mesh in start order: registry, services, gateway. `replicas` is the number of
    processes by service; a service that `replicas` does not name gets one process."""
    registry = f"127.0.0.1:{_free_port()}"
    shared = {
        "mesh_secret": settings.mesh_secret or secrets.token_urlsafe(32),
        "operator_token": settings.operator_token or secrets.token_urlsafe(32),
        "registry_address": registry,
        "backend": settings.backend,
        "exit_with_parent": "true",
    }

    def spec(name: str, number: int, addresses: Sequence[str], **changed: str) -> ProcessSpec:
        data = settings.data_dir / "processes" / f"{name}-{number}"
        return ProcessSpec(name, number, ("serve", name, *addresses, "--data", str(data)), {**shared, **changed})

    # All processes but the gateway get a free ops port. Without this option they would use ROOST_OPS_ADDRESS of the
    # environment, on which only one process can listen.
    ops = ("--ops", "127.0.0.1:0")
    anywhere = ("--grpc", "127.0.0.1:0", *ops)
    door = ("--grpc", settings.grpc_address, "--http", settings.http_address, "--ops", settings.ops_address)
    for name in ("grpc", "http", "ops"):
        address_of(getattr(settings, f"{name}_address"), f"--{name}")
    # The registry uses the embedded backend, so that its start does not depend on Cassandra and the other servers.
    found = [spec(REGISTRY, 1, ("--grpc", registry, *ops), backend="embedded")]
    found += [
        spec(name, number, anywhere, drain_s=str(DRAIN_S))
        for name in SERVICES
        for number in range(1, replicas.get(name, 1) + 1)
        if name != REGISTRY
    ]
    return [*found, spec(GATEWAY, 1, door)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
