"""What a service is given, and what it gives back: the types between a composition root (`services/<name>/server.py`) and the process."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc.aio

from services.platform.config import Settings
from services.platform.events.log import EventLog
from services.platform.ids.snowflake import Snowflake
from services.platform.pagination.cursors import Cursors


class Worker(Protocol):
    """Something that runs beside the servicers: a consumer, a relay, a stream client."""

    async def start(self) -> None:
        """Begins; called once every service of the process can be reached."""

    async def stop(self) -> None:
        """Ends after the work at hand; called before any server or store closes."""


class Closable(Protocol):
    """A store or a pool, closed after everything that uses it has stopped."""

    async def close(self) -> None:
        """Releases what it holds."""


@dataclass(frozen=True, slots=True)
class Backends:
    """What all services of a process stand on, by family. `cursor_key` is the same in every process of a mesh, and kept over restarts.

    `cluster` are the open connections of the cluster backend, which the kit knows nothing of; None in the embedded one. `ids_fault` says
    why no ids can be minted for now, and so nothing be written; "" if they can.
    """

    log: EventLog
    ids: Snowflake
    cursor_key: bytes
    ids_fault: Callable[[], str]
    cluster: object | None = None


BackendFactory = Callable[[Settings, AsyncExitStack], Awaitable[Backends]]
"""Opens a family's ground; what it opened is closed by the stack, after everything else of the process."""


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What a service is built from. `clock` gives unix seconds; `channel` reaches every service with this one as the caller.

    `cluster` is the ground's: composition roots turn it into connections by `services.platform.backends.cluster_backends_of`.
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
    cluster: object | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """A built service. `servicers` maps gRPC's full service name to the object that serves it; resources close in reverse order."""

    name: str
    servicers: Mapping[str, object]
    workers: Sequence[Worker] = field(default_factory=tuple)
    resources: Sequence[Closable] = field(default_factory=tuple)


ServiceFactory = Callable[[ServiceContext], Awaitable[Service]]
