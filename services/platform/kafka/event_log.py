"""The event log on Kafka: one Kafka topic per entity (`tweet`, `user`), partitioned by the event's key, with
at-least-once delivery and without transactions.

An event stays in the outbox of its service until Kafka has acknowledged it, so an outage of Kafka loses no event.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import orjson
import structlog

from services.platform.config import Settings
from services.platform.events import log as event_log
from services.platform.events.log import Apply, ConsumedEvent, DeadLetter, EventLog, Record
from services.platform.events.worker_loop import RETRY_FIRST_S
from services.platform.ids.snowflake import wall_clock_ms
from services.platform.kafka.admin import LATEST, KafkaAdmin, at_time
from services.platform.kafka.consumer import KafkaConsumer
from services.platform.kafka.dead_letters import DeadLetters
from services.platform.kafka.producer import KafkaProducer
from services.platform.kafka.records import DEAD_LETTER_TOPIC, PartitionKey, entities
from services.platform.log_events import LogEvent

# A seek of a group is broadcast as an event of this topic, which every process reads. No entity has this name.
SEEK_TOPIC = "log.moved"

log = structlog.get_logger(__name__)


class KafkaLog(EventLog):
    """The adapter of the port EventLog on Kafka. All events of one entity (`tweet.created`, `tweet.deleted`) are in one
    Kafka topic, partitioned by the event's key. So consumers get the events of one entity and key in the order of their
    appends, if one process appends them one after the other."""

    def __init__(self, settings: Settings, clock_ms: Callable[[], int], retry_first_s: float) -> None:
        self.settings = settings
        self.clock_ms = clock_ms
        self.retry_first_s = retry_first_s
        self.admin = KafkaAdmin(settings)
        self.producer = KafkaProducer(settings, clock_ms)
        self.dead_letter_store = DeadLetters(settings, self.admin, self.producer, clock_ms)
        self.running: dict[str, KafkaConsumer] = {}
        self._process_id = uuid.uuid4().hex
        self._seek_consumer: KafkaConsumer | None = None

    @classmethod
    async def open(
        cls, settings: Settings, clock_ms: Callable[[], int] = wall_clock_ms, retry_first_s: float = RETRY_FIRST_S
    ) -> Self:
        """Connects and creates missing topics. Raises UNAVAILABLE if no broker answers within OPEN_TIMEOUT_S
        seconds."""
        opened = cls(settings, clock_ms, retry_first_s)
        try:
            await opened.admin.check()
            await opened.admin.ensure([*entities(), DEAD_LETTER_TOPIC, SEEK_TOPIC])
        except BaseException:
            await opened.close()
            raise
        return opened

    async def append(self, records: Sequence[Record]) -> None:
        await self.admin.ensure({record.topic for record in records})
        await self.producer.append(records)

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        apply: Apply,
        max_batch: int = event_log.DEFAULT_BATCH,
        broadcast: bool = False,
    ) -> KafkaConsumer:
        return KafkaConsumer(self, group, topics, apply, event_log.check_batch(max_batch), broadcast)

    async def dead_letters(self, group: str) -> list[DeadLetter]:
        return await self.dead_letter_store.of_group(group)

    async def redrive(self, group: str) -> int:
        return await self.dead_letter_store.redrive(group)

    async def close(self) -> None:
        for consumer in list(self.running.values()):
            await consumer.stop()
        self._seek_consumer = None
        await self.producer.close()

    async def replay(self, group: str, time_ms: int) -> int | None:
        """Moves a group in all its partitions to the first event at or after `time_ms` (Unix milliseconds).

        Returns how many events the group has to read from there on, over all its topics, or None if the group does not
        exist. Raises UNAVAILABLE if Kafka does not answer; the group may have been moved all the same.
        """
        committed = list(await self.admin.committed(f"{self.settings.namespace}.{group}"))
        if not committed:
            return None
        targets = await self.admin.offsets(committed, at_time(time_ms))
        await self.seek_group(group, targets)
        ends = await self.admin.offsets(committed, LATEST)
        return sum(ends[partition] - offset for partition, offset in targets.items())

    async def seek_group(self, group: str, targets: Mapping[PartitionKey, int]) -> None:
        """Moves a group that has no consumer in this process to these offsets: commits them for the group, or, if the
        group has members in other processes, broadcasts a seek to these members. Raises UNAVAILABLE if Kafka does not
        answer; the group may have been moved all the same."""
        if not await self.admin.seek_group(f"{self.settings.namespace}.{group}", targets):
            await self.broadcast_seek(group, targets)

    async def broadcast_seek(self, group: str, targets: Mapping[PartitionKey, int]) -> None:
        """Publishes a seek for the group's members in all other processes. Raises UNAVAILABLE if Kafka does not confirm
        the seek; it may have been published all the same."""
        request = {
            "group": group,
            "by": self._process_id,
            "places": [[*partition, offset] for partition, offset in targets.items()],
        }
        await self.append([Record(SEEK_TOPIC, 0, 0, orjson.dumps(request))])

    async def subscribe_to_seeks(self) -> None:
        """Starts the consumer of seeks that other processes publish; has no effect if this consumer runs."""
        if self._seek_consumer is None:
            self._seek_consumer = self.consumer("moves", [SEEK_TOPIC], self._on_seek, broadcast=True)
            await self._seek_consumer.start()

    async def _on_seek(self, events: Sequence[ConsumedEvent]) -> None:
        for event in events:
            request = orjson.loads(event.payload)
            consumer = self.running.get(request["group"])
            if consumer is None or request["by"] == self._process_id:
                continue
            targets = {(topic, partition): offset for topic, partition, offset in request["places"]}
            log.info(LogEvent.CONSUMER_SOUGHT, group=consumer.group)
            await consumer.seek_here(targets)
