"""Defines the interface between a process and the composition roots of its services (`services/<name>/server.py`): a
root gets a `ServiceContext` and returns a `Service`."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc.aio

from services.platform.config import Settings
from services.platform.events.log import EventLog
from services.platform.ids.snowflake import Snowflake
from services.platform.pagination.cursors import Cursors
from services.platform.rpc.rate_limit_counts import RateLimitCounts
from services.platform.versions import Versions

T = TypeVar("T")


class Worker(Protocol):
    """A background task of a service, such as an event consumer, an outbox relay or the client of a stream."""

    async def start(self) -> None:
        """Starts the task. The process calls this method when all its services accept calls."""

    async def stop(self) -> None:
        """Stops the task after the work in progress. The process calls this method before it stops its servers and
        closes its stores."""


class Closable(Protocol):
    """A store or a pool. The process closes it after all workers and servers have stopped."""

    async def close(self) -> None:
        """Releases files, connections and threads."""


@dataclass(frozen=True, slots=True)
class Backends:
    """The open connections and logs of a process, which all its services share.

    `cursor_key` signs page cursors. It is the same in every process of a mesh and survives restarts. `ids_fault`
    returns "" if ids can be minted, otherwise a sentence with the cause; all writes fail then. `cluster` is the
    ClusterBackends of the cluster backend, None with the embedded one; it is typed as `object`, because this module
    must not import the drivers. `rate_limit_counts` counts the requests of this process, on the cluster backend together
    with those of all other processes of the mesh.
    """

    log: EventLog
    ids: Snowflake
    cursor_key: bytes
    ids_fault: Callable[[], str]
    versions: Versions
    rate_limit_counts: RateLimitCounts
    cluster: object | None = None


BackendFactory = Callable[[Settings, AsyncExitStack], Awaitable[Backends]]
"""Opens the backends that the settings describe, and registers their closing on the stack, which the process closes
last."""


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """The dependencies with which a service is built.

    `clock` returns Unix seconds. Calls through `channel` reach every service of the mesh, with this service as the
    caller. `versions` are those of the whole mesh. `process_objects` are the objects that services of the process share,
    and its Revocations; get them by `shared_by_process`. `cluster` is `Backends.cluster`; composition roots read it with
    `services.platform.backends.cluster_backends_of`.
    """

    name: str
    settings: Settings
    clock: Callable[[], float]
    random: random.Random
    ids: Snowflake
    cursors: Cursors
    log: EventLog
    channel: grpc.aio.Channel
    data_dir: Path
    versions: Versions
    process_objects: dict[type[Any], Any]
    cluster: object | None = None

    def shared_by_process(self, kind: type[T], make: Callable[[], T]) -> T:
        """Returns the one object of this type that all services of the process share. The first call creates the
        object."""
        if kind not in self.process_objects:
            self.process_objects[kind] = make()
        shared: T = self.process_objects[kind]
        return shared


@dataclass(frozen=True, slots=True)
class Service:
    """A built service. `servicers` maps full gRPC service names, such as `roost.graph.v1.GraphService`, to servicers.

    The process starts `workers` in order, and closes `resources` in reverse order.
    """

    name: str
    servicers: Mapping[str, object]
    workers: Sequence[Worker] = field(default_factory=tuple)
    resources: Sequence[Closable] = field(default_factory=tuple)


ServiceFactory = Callable[[ServiceContext], Awaitable[Service]]
