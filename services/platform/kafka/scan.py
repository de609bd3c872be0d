"""Reads a range of Kafka's log outside of any consumer group: for dead letters, for the oldest event of a lag, and for
operators."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, Message, TopicPartition

from services.platform.config import Settings
from services.platform.kafka.records import PartitionKey, client_settings, unavailable

# If no message and no end-of-partition event arrives for this many seconds, the brokers count as unavailable.
READ_TIMEOUT_S = 5.0
_POLL_S = 0.2
_CONSUME_MESSAGES = 500


def scan(
    settings: Settings, start_offsets: Mapping[PartitionKey, int], max_per_partition: int | None = None
) -> Iterator[Message]:
    """Yields the messages of every partition from its start offset to its end, at most `max_per_partition` of each.

    The messages of one partition come in order. Blocks the calling thread: call it outside the event loop's thread.
    Raises UNAVAILABLE if no message and no end-of-partition event arrives for READ_TIMEOUT_S seconds.
    """
    if not start_offsets:
        return
    client = Client(
        client_settings(settings)
        | {
            # Required by librdkafka; the client does not join the group.
            "group.id": f"{settings.namespace}.scan",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        client.assign([TopicPartition(*source, offset) for source, offset in start_offsets.items()])
        left: dict[PartitionKey, int | None] = dict.fromkeys(start_offsets, max_per_partition)
        last_message_at = time.monotonic()
        while left:
            for message in client.consume(_CONSUME_MESSAGES, _POLL_S):
                last_message_at = time.monotonic()
                yield from _yield_counted(message, left)
            if time.monotonic() > last_message_at + READ_TIMEOUT_S:
                raise unavailable("Kafka does not answer: retry later")
    finally:
        client.close()


def _yield_counted(message: Message, left: dict[PartitionKey, int | None]) -> Iterator[Message]:
    topic, partition = message.topic(), message.partition()
    source = (topic or "", -1 if partition is None else partition)
    error = message.error()
    if error is not None:
        if error.code() == KafkaError._PARTITION_EOF:
            left.pop(source, None)
        return
    if source not in left:
        return
    yield message
    remaining = left[source]
    if remaining is not None:
        left[source] = remaining - 1
        if remaining == 1:
            del left[source]
