"""Maps events to Kafka records. There is one Kafka topic per entity; a record's key is the event's key in decimal, its
headers are the event's name, id and trace, and its value is the serialized event."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message
from roost.event.v1 import event_pb2

from services.platform.config import Settings
from services.platform.events.log import ConsumedEvent, Record
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

PartitionKey = tuple[str, int]
"""Kafka's topic and the number of the partition."""

# Timeout in seconds of each request that the admin client and `roost` commands send to Kafka; requests usually take
# milliseconds.
REQUEST_TIMEOUT_S = 10.0
# Minimum number of seconds between two log lines with the same error code of one client.
LOG_INTERVAL_S = 30.0
log = structlog.get_logger(__name__)

TYPE, ID, TRACE = "type", "id", "trace"
# Topic of dead letters. No entity has this name.
DEAD_LETTER_TOPIC = "dead"


def client_settings(settings: Settings) -> dict[str, Any]:
    """Returns the librdkafka settings that producers, consumers and admin clients share."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": "roost",
        "socket.timeout.ms": int(REQUEST_TIMEOUT_S * 1_000),
        "socket.keepalive.enable": True,
        # In milliseconds: the delay between attempts to connect doubles from 100 ms to at most 2,000 ms, so that the
        # end of an outage is noticed soon.
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 2_000,
        # In milliseconds: a new partition has no leader for a short time, so the first retry comes soon.
        "retry.backoff.ms": 50,
        "retry.backoff.max.ms": 500,
        "topic.metadata.refresh.fast.interval.ms": 50,
        # librdkafka reports errors by callbacks; with this level it does not write them to stderr too.
        "log_level": 2,
    }


class RateLimitedErrors:
    """Logs the broker errors of a client: each error code at most once per LOG_INTERVAL_S seconds, because during an
    outage the same errors are reported continually."""

    def __init__(self, client: str) -> None:
        self._client = client
        self._last_logged: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._last_logged.get(error.code(), -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._last_logged[error.code()] = now
            log.warning(LogEvent.KAFKA_CLIENT_FAILED, client=self._client, error=error.str())


def topic_of(namespace: str, name: str) -> str:
    """Returns the Kafka topic of an event name: `<namespace>.tweet` for `tweet.created`. All events of an entity share
    a topic, so that they keep their order."""
    return f"{namespace}.{name.partition('.')[0]}"


def entities() -> list[str]:
    """Returns the entities that have events, sorted, as the proto's event oneof declares them."""
    return sorted({field.name.partition("_")[0] for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["body"].fields})


def headers_of(record: Record) -> list[tuple[str, str | bytes | None]]:
    """Returns the headers of an event's record."""
    return [(TYPE, record.topic), (ID, str(record.event_id)), (TRACE, record.traceparent)]


def to_consumed_event(message: Message, event_names: frozenset[str] | None = None) -> ConsumedEvent | None:
    """Returns the event of a record; None if its name is not in `event_names`, or if the record does not have the
    headers that Roost writes."""
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
    """Returns a record's headers as text; the last one if several have the same name."""
    found: Iterable[tuple[str, Any]] = message.headers() or ()  # type: ignore[assignment]
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes) else str(value or "") for name, value in found
    }


def unavailable(what: str, error: BaseException | None = None) -> errors.RoostError:
    """Returns UNAVAILABLE, reason LOG_UNAVAILABLE. `what` is the message for callers. The text of `error`, if it is a
    KafkaException, becomes a note of the returned error."""
    mapped = errors.unavailable(what, reason=Reason.LOG_UNAVAILABLE)
    if isinstance(error, KafkaException) and error.args:
        cause = error.args[0]
        # A note is logged but not sent to callers: the text of librdkafka names brokers.
        mapped.add_note(cause.str() if hasattr(cause, "str") else str(cause))
    return mapped
