"""Defines the port of the event log, which delivers appended events at least once to each consumer group.

Events of one key are delivered in the order in which they were appended, over all topics of one entity
(`tweet.created`, `tweet.deleted`). The embedded log keeps this order for all events. Consumers must be idempotent:
events are delivered again after a crash, on a replay, and after a rebalance of the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import grpc

from services.platform.rpc import errors

# Default and largest allowed value of `max_batch`, the maximum number of events per batch. The default is enough to
# share the cost of a commit among the events, and few enough to be applied within a second.
DEFAULT_BATCH = 500
MAX_BATCH = 5_000
# After this many failures that are not transient, an event that is applied alone becomes a dead letter.
MAX_TRIES = 5
# Seconds after which events may be deleted: a week, in which a broken consumer can be repaired, or the events be
# replayed after a faulty release.
RETENTION_S = 7 * 24 * 3600
# Maximum number of events in a Lag. A longer lag is reported as this number, so that counting does not scan the whole
# log.
MAX_LAG_COUNTED = 100_000

_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED", "ABORTED"})


class Record(NamedTuple):
    """An event to append.

    `topic` is the name of the event, such as `tweet.created`; `key` is the id of the entity that the event is about.
    Events with the same key are ordered. `event_id` is a Snowflake; `payload` is a serialized roost.event.v1.Event;
    `traceparent` is W3C's, or "".
    """

    topic: str
    key: int
    event_id: int
    payload: bytes
    traceparent: str = ""


class ConsumedEvent(NamedTuple):
    """An event as a consumer gets it: the fields of the Record, its offset, and its append time in Unix milliseconds.

    In the embedded log an `offset` is unique and orders all events. In Kafka an `offset` is unique only within one
    partition of one entity's topic, so offsets of events with different keys cannot be compared.
    """

    offset: int
    appended_ms: int
    topic: str
    key: int
    event_id: int
    payload: bytes
    traceparent: str


class DeadLetter(NamedTuple):
    """An event that a group failed to apply MAX_TRIES times. `reason` is the last error, `failed_ms` its time in Unix
    milliseconds."""

    reason: str
    failed_ms: int
    event: ConsumedEvent


class Lag(NamedTuple):
    """The events that a group has not applied yet.

    `events` is their number, at most MAX_LAG_COUNTED; `age_s` is the age of the oldest event in seconds, 0.0 if there
    are no events.
    """

    events: int
    age_s: float


Apply = Callable[[Sequence[ConsumedEvent]], Awaitable[None]]


class Consumer(Protocol):
    """A member of a consumer group. Its offset is committed only after `apply` has returned.

    In the embedded log a group has one member. In Kafka the members in several processes share the group's partitions.
    """

    async def start(self) -> None:
        """Starts delivery at the committed offset of the group; a new group starts at the oldest event.

        Raises ValueError if a consumer of the group runs in this process, and UNAVAILABLE if the log cannot be reached.
        """

    async def stop(self) -> None:
        """Stops after the batch in progress and commits its offset. A batch that is being retried is not committed."""

    def pause(self) -> None:
        """Suspends delivery after the batch in progress."""

    def resume(self) -> None:
        """Continues delivery after `pause`."""

    async def lag(self) -> Lag:
        """Returns the lag of the whole group: events that are appended and that no member has applied yet.

        In Kafka the result can be too high, but not too low: other members commit their offsets once a second, and
        events of topics that the group does not consume count until the group has skipped them. Raises UNAVAILABLE if
        the log cannot be reached.
        """

    async def seek(self, *, offset: int | None = None, time_ms: int | None = None) -> None:
        """Moves all members of the group to the first event at or after `offset` or `time_ms` (Unix milliseconds).

        Exactly one of the two must be given; 0 is the oldest event. If there is no such event, the first one is the next
        that is appended. In Kafka `offset` applies to every partition.
        Raises UNAVAILABLE if the log cannot be reached.
        """


class EventLog(Protocol):
    """Appends events and creates consumers."""

    async def append(self, records: Sequence[Record]) -> None:
        """Appends the records, which are durable when this method returns.

        Raises UNAVAILABLE if the log does not confirm them; they may have been appended all the same.
        """

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        apply: Apply,
        max_batch: int = DEFAULT_BATCH,
        broadcast: bool = False,
    ) -> Consumer:
        """Returns a consumer of these topics, not started yet. Raises ValueError if `max_batch` is not 1..MAX_BATCH.

        `apply` gets 1 to `max_batch` events in order; calls do not overlap. If `apply` raises a transient error (see
        `is_transient`), the batch is retried until `apply` succeeds, so an outage loses no event. After another error
        the batch is split into halves until the failing event is alone; after MAX_TRIES failures this event becomes a
        dead letter and delivery continues.

        With `broadcast`, every process gets every event. The offset is held in memory only: delivery starts where
        `seek` has moved the consumer, otherwise with the first event that is appended after its start.
        """

    async def dead_letters(self, group: str) -> list[DeadLetter]:
        """Returns the group's dead letters, the oldest first, at most MAX_BATCH."""

    async def redrive(self, group: str) -> int:
        """Appends the events of the group's dead letters again, deletes these dead letters, and returns their number.

        All groups get the events again. In Kafka a call processes at most MAX_BATCH dead letters.
        """

    async def close(self) -> None:
        """Stops the running consumers, then closes the log."""


def check_batch(max_batch: int) -> int:
    """Returns `max_batch`; raises ValueError if it is not within 1..MAX_BATCH."""
    if not 1 <= max_batch <= MAX_BATCH:
        raise ValueError(f"max_batch {max_batch} is not within 1..{MAX_BATCH}")
    return max_batch


def is_transient(error: BaseException) -> bool:
    """Returns True if the error comes from an unavailable or slow dependency rather than from the event.

    Transient errors are UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, CANCELLED and ABORTED, timeouts and
    connection errors.
    """
    if isinstance(error, errors.RoostError):
        return error.code.name in _PASSING
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name in _PASSING
    return isinstance(error, TimeoutError | ConnectionError | asyncio.CancelledError)
