"""The services in other processes: their addresses, and one channel to each for each caller in this process."""

from __future__ import annotations

from collections.abc import Collection

import grpc.aio

from services.platform.config import Settings
from services.platform.rpc.context import OPERATOR
from services.platform.transport.batching import BatchingChannel
from services.platform.transport.discovery import DiscoveredChannel, Watch
from services.platform.transport.remote import MeshChannel

# The name of the service that stores the addresses of all other services. Its own address is the setting
# `registry_address`.
REGISTRY = "registry"


class RemoteServices:
    """Finds the address of a service in the setting `static_peers`, or if the setting does not name the service, in the
    registry.

    Channels authenticate with `mesh_secret`; channels of the operator authenticate with `operator_token` as well. A
    channel is opened at its first use. `close` closes all channels.
    """

    def __init__(self, settings: Settings, mesh_secret: str, operator_token: str) -> None:
        self._registry_address = settings.registry_address
        self._mesh_secret = mesh_secret
        self._operator_token = operator_token
        # The gRPC target of each service in `static_peers`, except the services of this process.
        self._static = dict(settings.static_peers)
        self._watches: dict[str, Watch] = {}
        # Open channels by name of the called service and of the caller.
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def start(self, local: Collection[str], discovered: Collection[str]) -> None:
        """Starts to look up `discovered` in the registry. Leaves out `local`, the services of this process.

        So all processes can be started with the same list `discovered`.
        """
        for name in local:
            self._static.pop(name, None)
        for name in discovered:
            if name not in local:
                self._watches[name] = Watch(self.registry(name), name)
                await self._watches[name].start()

    @property
    def names(self) -> frozenset[str]:
        """Returns the names of all services that have a fixed address or are looked up in the registry."""
        return frozenset({*self._watches, *self._static})

    def target_of(self, name: str) -> str:
        """Returns the gRPC target, or comma-separated addresses, of a service; "" if it is not known."""
        watch = self._watches.get(name)
        return self._static.get(name) or (",".join(watch.addresses) if watch else "")

    def channels(self, caller: str) -> dict[str, grpc.aio.Channel]:
        """Returns one channel for each service, by the name of the service. `caller` is the name of the service that
        makes the calls on these channels."""
        found = {name: self._discovered(watch, caller) for name, watch in self._watches.items()}
        return found | {name: self.connect(name, target, caller) for name, target in self._static.items()}

    def registry(self, user: str) -> grpc.aio.Channel:
        """Returns a channel to the registry. Each `user` (any text) gets a channel of its own."""
        return self.connect(f"registry for {user}", self._registry_address, REGISTRY)

    def connect(self, name: str, target: str, caller: str) -> grpc.aio.Channel:
        """Returns a channel to `target`, always the same one for the same `name` and `caller`."""
        key = f"{caller}>{name}"
        if key not in self._channels:
            self._channels[key] = self._open(target, caller)
        return self._channels[key]

    async def stop_watches(self) -> None:
        """Ends the streams from the registry. The last known addresses remain usable.

        An open stream would delay the stop of the registry's server.
        """
        for watch in self._watches.values():
            await watch.stop()

    async def close(self) -> None:
        """Closes all channels, the last opened first."""
        while self._channels:
            await self._channels.popitem()[1].close()

    def _discovered(self, watch: Watch, caller: str) -> grpc.aio.Channel:
        key = f"{caller}>{watch.service}"
        if key not in self._channels:
            self._channels[key] = DiscoveredChannel(watch, lambda target: self._open(target, caller))
        return self._channels[key]

    def _open(self, target: str, caller: str) -> grpc.aio.Channel:
        if caller == OPERATOR:
            # The operator authenticates with its token only, which every process of the mesh knows.
            return MeshChannel(target, "", self._mesh_secret, self._operator_token)
        channel = MeshChannel(target, caller, self._mesh_secret)
        # Only services may call the batch service; a client's batch would get PERMISSION_DENIED.
        return BatchingChannel(channel) if caller else channel
