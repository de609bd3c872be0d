"""Reading a stretch of Kafka's log beside the consumers: dead letters, the oldest event of a lag, an operator's look."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, Message, TopicPartition

from services.platform.config import Settings
from services.platform.kafka.records import PartitionKey, client_settings, unavailable

# Without a message or an end for so long the brokers are taken for gone.
SILENCE_S = 5.0
_POLL_S = 0.2
_LOT = 500


def scan(settings: Settings, begin: Mapping[PartitionKey, int], each: int | None = None) -> Iterator[Message]:
    """Reads every partition from its offset to its end, or at most `each` messages of it. Blocks: for a thread.

    In order within a partition. Raises UNAVAILABLE where the brokers fall silent.
    """
    if not begin:
        return
    client = Client(
        client_settings(settings)
        | {
            # Needs a name, and joins nothing.
            "group.id": f"{settings.namespace}.scan",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        client.assign([TopicPartition(*place, offset) for place, offset in begin.items()])
        left: dict[PartitionKey, int | None] = dict.fromkeys(begin, each)
        heard = time.monotonic()
        while left:
            for message in client.consume(_LOT, _POLL_S):
                heard = time.monotonic()
                yield from _counted(message, left)
            if time.monotonic() > heard + SILENCE_S:
                raise unavailable("Kafka does not answer")
    finally:
        client.close()


def _counted(message: Message, left: dict[PartitionKey, int | None]) -> Iterator[Message]:
    topic, partition = message.topic(), message.partition()
    place = (topic or "", -1 if partition is None else partition)
    error = message.error()
    if error is not None:
        if error.code() == KafkaError._PARTITION_EOF:
            left.pop(place, None)
        return
    if place not in left:
        return
    yield message
    many = left[place]
    if many is not None:
        left[place] = many - 1
        if many == 1:
            del left[place]
