"""Derives from the contract which services a process calls, and finds those of them that run in other processes."""

from __future__ import annotations

from collections.abc import Collection

import grpc.aio
from roost.options.v1 import options_pb2 as options

from services.platform.rpc.contract import called_by, methods
from services.platform.transport.remote_services import REGISTRY, RemoteServices

BATCH = "roost.batch.v1.BatchService"
# Services without an address in `static_peers`: each process serves batches itself, and the registry has its own
# setting.
_WITHOUT_PEER = frozenset({BATCH.split(".")[1], REGISTRY})


def callees_of(name: str, token_issuer: str) -> frozenset[str]:
    """Returns the names of the services that a process with the service `name` calls.

    These services have methods whose policy allows `name` as a caller. If the service `name` has methods for clients,
    the process also calls `token_issuer`, the service whose keys verify access tokens.
    """
    serves_users = any(m.service_name == name and m.policy.access != options.ACCESS_MESH for m in methods().values())
    return called_by(name) | ({token_issuer} if serves_users else frozenset())


class Callees:
    """The services in other processes that this process calls.

    `services` are the names of the services of this process. `is_edge` is true if the process forwards calls from
    outside, because it then calls every service. `remotes` finds the addresses.
    """

    def __init__(self, remotes: RemoteServices, services: Collection[str], token_issuer: str, *, is_edge: bool) -> None:
        self._remotes = remotes
        self._services = frozenset(services)
        self._is_edge = is_edge
        self._names = frozenset().union(*(callees_of(name, token_issuer) for name in services))

    def channels(self) -> dict[str, grpc.aio.Channel]:
        """Returns, by service name, the channels to the services in other processes that this process calls.

        Leaves out other services: if a network policy makes one unreachable, this process must not count as degraded.
        """
        found = self._remotes.channels("")
        return {name: channel for name, channel in found.items() if self._is_edge or name in self._names}

    def unaddressed(self) -> list[str]:
        """Returns the sorted names of the services that this process calls and whose addresses are neither in
        `static_peers` nor looked up in the registry."""
        called = {method.service_name for method in methods().values()} if self._is_edge else self._names
        return sorted(called - _WITHOUT_PEER - self._services - self._remotes.names)
