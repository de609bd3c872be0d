"""Dead letters on Kafka: a compacted topic with one record per failed event. When an event is redriven, a tombstone
with the same key deletes its record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from confluent_kafka import Message

from services.platform.config import Settings
from services.platform.events import log
from services.platform.events.log import ConsumedEvent, DeadLetter, Record
from services.platform.kafka.admin import EARLIEST, KafkaAdmin
from services.platform.kafka.producer import KafkaProducer, OutgoingMessage
from services.platform.kafka.records import DEAD_LETTER_TOPIC, headers_of, plain_headers, topic_of
from services.platform.kafka.scan import scan

MAX_REASON_CHARS = 1_000  # The rest is cut off: an error message may quote its whole input.
_GROUP, _REASON = "group", "reason"
_TOPIC, _PARTITION, _OFFSET, _KEY, _APPENDED = "topic", "partition", "offset", "key", "appended_ms"


class DeadLetters:
    """The dead letters of all groups. `clock_ms` returns Unix milliseconds."""

    def __init__(
        self, settings: Settings, admin: KafkaAdmin, producer: KafkaProducer, clock_ms: Callable[[], int]
    ) -> None:
        self._settings = settings
        self._admin = admin
        self._producer = producer
        self._clock_ms = clock_ms
        self._topic = topic_of(settings.namespace, DEAD_LETTER_TOPIC)

    async def add(self, group: str, source: tuple[str, int], event: ConsumedEvent, error: BaseException) -> None:
        """Stores an event of the partition `source` as a dead letter of the group, with its last error. Raises
        UNAVAILABLE if Kafka does not confirm the record in time, and ValueError if the record is too large."""
        reason = repr(error)[:MAX_REASON_CHARS]
        topic, partition = source
        headers = headers_of(Record(*event[2:]))
        headers += [(_GROUP, group), (_REASON, reason), (_TOPIC, topic), (_PARTITION, str(partition))]
        headers += [(_OFFSET, str(event.offset)), (_KEY, str(event.key)), (_APPENDED, str(event.appended_ms))]
        # The key consists of group, partition and offset, so an event that fails again overwrites its earlier record.
        key = f"{group}/{topic}/{partition}/{event.offset}"
        await self._producer.send([OutgoingMessage(self._topic, key, event.payload, headers, self._clock_ms())])

    async def of_group(self, group: str) -> list[DeadLetter]:
        """Returns the group's dead letters, oldest first, at most MAX_BATCH. Raises UNAVAILABLE if Kafka does not
        answer."""
        return list((await self._read(group)).values())

    async def redrive(self, group: str) -> int:
        """Appends the events of the group's dead letters again, then deletes the dead letters. Returns how many dead
        letters it deleted.

        Processes at most MAX_BATCH dead letters per call. A crash between the two steps repeats events and loses none.
        Events that fail again meanwhile are left for the next call.
        """
        dead_letters = await self._read(group)
        await self._producer.append([Record(*dead_letter.event[2:]) for dead_letter in dead_letters.values()])
        now = self._clock_ms()
        # The tombstone names the group too, because readers filter records by the group header.
        await self._producer.send(
            OutgoingMessage(self._topic, key, None, [(_GROUP, group)], now) for key in dead_letters
        )
        return len(dead_letters)

    async def _read(self, group: str) -> dict[str, DeadLetter]:
        begin = await self._admin.offsets(await self._admin.partitions([DEAD_LETTER_TOPIC]), EARLIEST)

        def fold() -> dict[str, DeadLetter]:
            found: dict[str, DeadLetter] = {}
            for message in scan(self._settings, begin):
                headers, key = plain_headers(message), (message.key() or b"").decode()
                if headers.get(_GROUP) != group:
                    continue
                found.pop(key, None)
                # If there are more than MAX_BATCH, the oldest are returned. When those have been redriven, a later call
                # returns the next ones.
                if message.value() is not None and len(found) < log.MAX_BATCH:
                    found[key] = _dead_letter_of(message, headers)
            return found

        return await asyncio.to_thread(fold)


def _dead_letter_of(message: Message, headers: dict[str, str]) -> DeadLetter:
    event = ConsumedEvent(
        int(headers[_OFFSET]),
        int(headers[_APPENDED]),
        headers["type"],
        int(headers[_KEY]),
        int(headers["id"]),
        message.value() or b"",
        headers["trace"],
    )
    return DeadLetter(headers[_REASON], message.timestamp()[1], event)
