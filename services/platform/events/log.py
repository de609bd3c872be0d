"""The event log, a port: facts in the order of their appending, delivered at least once to each group of consumers.

Order holds per key, over all topics of one entity (`tweet.created`, `tweet.deleted`); the embedded log keeps a total order.
Consumers are idempotent: after a crash, on replay, and where a group's members change, events come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import grpc

from services.platform.rpc import errors

# What a group gets at once: enough to spread a commit's cost, few enough to be applied within a second.
DEFAULT_BATCH = 500
MAX_BATCH = 5_000
# Failures of one event, by itself, before it goes to the dead letters.
MAX_TRIES = 5
# A week to notice that a consumer is broken, and to replay after a bad release.
RETENTION_S = 7 * 24 * 3600
# Beyond this a lag is only "far behind"; counting on would scan the whole log.
MAX_LAG_COUNTED = 100_000

_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "ABORTED"})


class Record(NamedTuple):
    """A fact to append. `topic` is the event's name, like `tweet.created`; `payload` a roost.event.v1.Event."""

    topic: str
    key: int
    event_id: int
    payload: bytes
    traceparent: str = ""


class ConsumedEvent(NamedTuple):
    """A fact as a consumer gets it: a Record's fields, its place, when it was appended (milliseconds since 1970).

    An `offset` counts within the embedded log as a whole, on Kafka within one partition of one entity's topic: there it says
    nothing about events of other keys.
    """

    offset: int
    appended_ms: int
    topic: str
    key: int
    event_id: int
    payload: bytes
    traceparent: str


class DeadLetter(NamedTuple):
    """An event that a group gave up on after MAX_TRIES, why, and when (milliseconds since 1970)."""

    reason: str
    failed_ms: int
    event: ConsumedEvent


class Lag(NamedTuple):
    """What a group has yet to apply: how many events (at most MAX_LAG_COUNTED), and the oldest one's age in seconds."""

    events: int
    age_s: float


Apply = Callable[[Sequence[ConsumedEvent]], Awaitable[None]]


class Consumer(Protocol):
    """One group's reader, or one of several processes' that share its events out. Its place is stored only after `apply` returned."""

    async def start(self) -> None:
        """Goes on where the group stopped; a new group begins at the oldest event. ValueError if it runs already in this process.

        UNAVAILABLE where the log cannot be reached.
        """

    async def stop(self) -> None:
        """Ends after the batch at hand, its offset stored. A batch that is being retried is left for the next start."""

    def pause(self) -> None:
        """Delivers nothing after the batch at hand."""

    def resume(self) -> None:
        """Undoes `pause`."""

    async def lag(self) -> Lag:
        """What is appended and not applied yet, by all of the group's members; (0, 0.0) when all is.

        On Kafka too much rather than too little: other processes tell how far they are once a second, and events of the same
        entity that the group does not take may count until it has passed over them. UNAVAILABLE where the log cannot be asked.
        """

    async def seek(self, *, offset: int | None = None, time_ms: int | None = None) -> None:
        """Goes on with the first event at or after the offset, or else the time (milliseconds since 1970); 0 is the beginning.

        For all members of the group. On Kafka an offset is taken in each partition alike.
        """


class EventLog(Protocol):
    """Where facts are appended, and consumers made."""

    async def append(self, records: Sequence[Record]) -> None:
        """Durable when it returns. UNAVAILABLE if it cannot be; whether it was appended is unknown then."""

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        apply: Apply,
        max_batch: int = DEFAULT_BATCH,
        broadcast: bool = False,
    ) -> Consumer:
        """A consumer of these topics, not started. `apply` gets 1 to `max_batch` events, in order, one call at a time.

        `broadcast`: each process gets every event, for what each must know. The place is kept in memory alone: it begins where
        `seek` said, else at what is appended after its start. ValueError where `max_batch` is not within 1..MAX_BATCH.

        If it raises something passing (see `is_transient`) the batch is retried until it works: an outage loses nothing.
        Else it is halved until the event at fault is alone; after MAX_TRIES that is a dead letter, the rest goes on.
        """

    async def dead_letters(self, group: str) -> list[DeadLetter]:
        """The group's dead letters, oldest first, at most MAX_BATCH."""

    async def redrive(self, group: str) -> int:
        """Appends the group's dead letters anew, for all groups, and returns how many; on Kafka at most MAX_BATCH a call."""

    async def close(self) -> None:
        """Stops the consumers, then the log."""


def check_batch(max_batch: int) -> int:
    """The size, where a consumer may have it; else ValueError."""
    if not 1 <= max_batch <= MAX_BATCH:
        raise ValueError(f"max_batch {max_batch} is not within 1..{MAX_BATCH}")
    return max_batch


def is_transient(error: BaseException) -> bool:
    """Whether the failure tells of the world and not of the event: a dependency that is down or slow."""
    if isinstance(error, errors.RoostError):
        return error.code.name in _PASSING
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name in _PASSING
    return isinstance(error, TimeoutError | ConnectionError | asyncio.CancelledError)
