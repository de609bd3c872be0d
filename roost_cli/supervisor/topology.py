"""Decides which processes make up a mesh on one machine, with their arguments and environment."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roost_cli.exit_codes import UNUSABLE, CommandError
from roost_cli.options import GATEWAY, address_of
from services.catalog import SERVICES
from services.platform.config import Settings

# The registry starts first and has one instance, because every process is given its address.
REGISTRY = "registry"
# A process uses about 100 MB; more replicas on one machine are probably a typing error.
MAX_REPLICAS = 16
# Seconds for which a stopping process still serves calls, so that the other processes notice in the registry that it is
# stopping.
DRAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to run: `name` is the service or `gateway`, `number` is its replica number from 1."""

    name: str
    number: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def label(self) -> str:
        return f"{self.name}-{self.number}"

    @property
    def has_fixed_address(self) -> bool:
        """Returns whether the process has a fixed address. The old process must then stop before the new one starts."""
        return self.name in (REGISTRY, GATEWAY)


def replicas_of(text: str) -> dict[str, int]:
    """Parses `timeline=3,fanout=2`. Raises CommandError if it is malformed or names a service that cannot have
    replicas."""
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
    """Returns the processes in start order: registry, services, gateway."""
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

    # An explicit option for each process: a ROOST_OPS_ADDRESS in the environment is meant for the gateway, and only one
    # process can bind that port.
    ops = ("--ops", "127.0.0.1:0")
    anywhere = ("--grpc", "127.0.0.1:0", *ops)
    door = ("--grpc", settings.grpc_address, "--http", settings.http_address, "--ops", settings.ops_address)
    for name in ("grpc", "http", "ops"):
        address_of(getattr(settings, f"{name}_address"), f"--{name}")
    # The registry uses the embedded backend, so it need not wait for Cassandra and the other servers.
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
