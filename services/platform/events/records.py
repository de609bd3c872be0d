"""Builds the records of events. Topic and key follow from the event's body, so no caller can mix them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2

from services.platform.events.log import Record
from services.platform.ids.snowflake import Snowflake
from services.platform.rpc import context
from services.platform.rpc.contract import field_policy


class _Body(NamedTuple):
    """A declared event body: the field of `Event` that holds it, the topic of its events, and the field of the body
    that is the event's key."""

    field: str
    topic: str
    key: str


def _bodies() -> Mapping[str, _Body]:
    """Returns the declared event bodies by the full name of their message type."""
    found: dict[str, _Body] = {}
    for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields:
        if (body := field.message_type) is not None:
            (key,) = (one.name for one in body.fields if field_policy(one).event_key)
            found[body.full_name] = _Body(field.name, _topic(field.name), key)
    return found


def _topic(field: str) -> str:
    return field.replace("_", ".", 1)


_BODIES = _bodies()


def new_record(body: Message, event_id: int, at_ms: int, traceparent: str) -> Record:
    """Returns the record of an event with this body, such as TweetCreated, which occurred at `at_ms` (Unix
    milliseconds).

    Equal arguments give equal records. Raises KeyError if `body` is not declared in roost.event.v1.Event.
    """
    field, topic, key = _BODIES[body.DESCRIPTOR.full_name]
    event = event_pb2.Event(
        event_id=event_id,
        key=getattr(body, key),
        occurred_at=Timestamp(seconds=at_ms // 1000, nanos=at_ms % 1000 * 1_000_000),
        traceparent=traceparent,
    )
    getattr(event, field).CopyFrom(body)
    return Record(topic, event.key, event_id, event.SerializeToString(), traceparent)


def record_of(payload: bytes) -> Record:
    """Returns the record that has the serialized event `payload` as its payload. Raises ValueError if the event has no
    body."""
    event = event_pb2.Event.FromString(payload)
    field = event.WhichOneof("body")
    if field is None:
        raise ValueError(f"event {event.event_id} has no body")
    return Record(_topic(field), event.key, event.event_id, payload, event.traceparent)


class EventBuilder:
    """Builds the records of events that occur now, each with an id of its own. `clock` returns Unix seconds."""

    def __init__(self, ids: Snowflake, clock: Callable[[], float]) -> None:
        self._ids = ids
        self._clock = clock

    async def record(self, body: Message) -> Record:
        """Returns the record of an event with the trace context of the current call. Raises UNAVAILABLE if no id can be
        minted, and KeyError if `body` is not declared in roost.event.v1.Event."""
        return new_record(body, await self._ids.mint(), int(self._clock() * 1000), context.current().traceparent)
