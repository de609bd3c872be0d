"""What a service is given, and what it gives back: the types between a composition root (`services/<name>/server.py`) and the process."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc.aio

from services.common.config import Settings
from services.common.cursor import Cursors
from services.common.event_log import EventLog
from services.common.snowflake import Snowflake


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
class Kit:
    """What a service is built from. `clock` gives unix seconds; `channel` reaches every service with this one as the caller."""

    name: str
    settings: Settings
    clock: Callable[[], float]
    random: random.Random
    ids: Snowflake
    cursors: Cursors
    log: EventLog
    channel: grpc.aio.Channel
    data_dir: Path


@dataclass(frozen=True, slots=True)
class Service:
    """A built service. `servicers` maps gRPC's full service name to the object that serves it; resources close in reverse order."""

    name: str
    servicers: Mapping[str, object]
    workers: Sequence[Worker] = field(default_factory=tuple)
    resources: Sequence[Closable] = field(default_factory=tuple)


Build = Callable[[Kit], Awaitable[Service]]
