"""How events lie in Kafka: one topic an entity, the key in decimal, the event's name and id in headers, its message as the value."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message
from roost.event.v1 import event_pb2

from services.platform.config import Settings
from services.platform.events.log import ConsumedEvent, Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

PartitionKey = tuple[str, int]
"""A partition: Kafka's topic and the partition's number."""

# Above what any command or start-up would wait for; ordinary requests take milliseconds.
REQUEST_TIMEOUT_S = 10.0
LOG_INTERVAL_S = 30.0
_log = structlog.get_logger(__name__)

TYPE, ID, TRACE = "type", "id", "trace"
# Of events that a group gave up on. No entity has this name.
DEAD_LETTER_TOPIC = "dead"


def client_settings(settings: Settings) -> dict[str, Any]:
    """What every client of ours is set up with."""
    return {
        "bootstrap.servers": settings.kafka,
        "client.id": "roost",
        "socket.timeout.ms": int(REQUEST_TIMEOUT_S * 1_000),
        "socket.keepalive.enable": True,
        # The end of an outage is noticed within about two seconds.
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        # Partitions that were just made have no leader for some milliseconds.
        "retry.backoff.ms": 50,
        "retry.backoff.max.ms": 500,
        "topic.metadata.refresh.fast.interval.ms": 50,
        # What librdkafka has to say comes by callbacks, not on stderr.
        "log_level": 2,
    }


class RateLimitedErrors:
    """What a client says of its brokers, for the log: the same again only every LOG_INTERVAL_S, for in an outage it repeats itself."""

    def __init__(self, client: str) -> None:
        self._client = client
        self._last_logged: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._last_logged.get(error.code(), -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._last_logged[error.code()] = now
            _log.warning("kafka", client=self._client, error=error.str())


def topic_of(namespace: str, name: str) -> str:
    """Kafka's topic of an event's name: one an entity, so that what happens to it keeps its order."""
    return f"{namespace}.{name.partition('.')[0]}"


def entities() -> list[str]:
    """The entities that events tell of, from the contract."""
    return sorted({field.name.partition("_")[0] for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields})


def headers_of(record: Record) -> list[tuple[str, str | bytes | None]]:
    """What stands beside the event's message."""
    return [(TYPE, record.topic), (ID, str(record.event_id)), (TRACE, record.traceparent)]


def to_consumed_event(message: Message, event_names: frozenset[str] | None = None) -> ConsumedEvent | None:
    """The event; None where its name is not wanted, or where it was not appended by us."""
    headers = plain_headers(message)
    name = headers.get(TYPE, "")
    if not name or (event_names is not None and name not in event_names):
        return None
    try:
        key, event_id = int(message.key() or b""), int(headers[ID])
    except (KeyError, ValueError):
        return None
    offset, appended_ms = message.offset() or 0, message.timestamp()[1]
    return ConsumedEvent(offset, appended_ms, name, key, event_id, message.value() or b"", headers.get(TRACE, ""))


def plain_headers(message: Message) -> dict[str, str]:
    """A message's headers as text; of several with one name the last."""
    found: Iterable[tuple[str, Any]] = message.headers() or ()  # type: ignore[assignment]
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else str(value or "") for name, value in found
    }


def unavailable(what: str, error: BaseException | None = None) -> errors.RoostError:
    """Returns that the log cannot do it now: `what` says what, and Kafka's own words are a note."""
    told = errors.unavailable(what, reason=Reason.LOG_UNAVAILABLE)
    if isinstance(error, KafkaException) and error.args:
        cause = error.args[0]
        # librdkafka names brokers.
        told.add_note(cause.str() if hasattr(cause, "str") else str(cause))
    return told
