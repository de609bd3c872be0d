"""Builds the events that identity publishes, as records for the outbox."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2

from services.platform.events.log import Record
from services.platform.ids.snowflake import Snowflake
from services.platform.rpc import context

EventBody = (
    event_pb2.UserCreated
    | event_pb2.UserUpdated
    | event_pb2.UserSuspended
    | event_pb2.UserReinstated
    | event_pb2.UserDeleted
    | event_pb2.SessionRevoked
)
_FIELDS = {
    field.message_type.full_name: field.name
    for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields
    if field.message_type is not None
}


class EventBuilder:
    """Builds event records with unique ids. The key is the user id; the topic follows from the type of the body (`user.created`)."""

    def __init__(self, ids: Snowflake, clock: Callable[[], float]) -> None:
        self._ids = ids
        self._clock = clock

    async def record(self, body: EventBody) -> Record:
        """Returns the record of an event that occurs now, with the trace context of the current call."""
        field = _FIELDS[body.DESCRIPTOR.full_name]
        occurred_at = Timestamp()
        occurred_at.FromMilliseconds(int(self._clock() * 1000))
        event = event_pb2.Event(
            event_id=await self._ids.mint(),
            key=body.user_id,
            occurred_at=occurred_at,
            traceparent=context.current().traceparent,
        )
        getattr(event, field).CopyFrom(body)
        topic = field.replace("_", ".", 1)
        return Record(topic, event.key, event.event_id, event.SerializeToString(), event.traceparent)
