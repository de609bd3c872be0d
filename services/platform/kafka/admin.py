"""Creates the topics of Kafka, and reads and commits the offsets of consumer groups."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]

from services.platform.config import Settings
from services.platform.events import log
from services.platform.kafka.records import (
    DEAD_LETTER_TOPIC,
    REQUEST_TIMEOUT_S,
    PartitionKey,
    RateLimitedErrors,
    client_settings,
    topic_of,
    unavailable,
)

# Maximum number of seconds that `check` waits for a broker. A running broker answers in milliseconds, a starting one
# within seconds.
OPEN_TIMEOUT_S = 10.0
# Seconds for which a partition may have no leader before Kafka counts as unavailable, and seconds between two attempts.
METADATA_TIMEOUT_S, _METADATA_RETRY_S = 5.0, 0.05
# Seconds after which dead letters are deleted: longer than events are kept, so that operators have time to redrive
# them.
DEAD_LETTERS_KEPT_S = 30 * 24 * 3600
# With three replicas, two must store an event before it counts as appended, so one broker may fail.
MIN_COPIES_OF_THREE = 2

EARLIEST: Any = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
LATEST: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]
# Errors of a partition that was just created, or whose leader just failed. Requests with these errors are retried.
_ELECTING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    # The broker does not know yet that it, or another broker, is the partition's leader now.
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
)
_NO_MEMBERS_ALLOWED = (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP)


def at_time(time_ms: int) -> Any:
    """Returns the position of the first event at or after `time_ms` (Unix milliseconds), for the parameter `position`
    of `KafkaAdmin.offsets`."""
    return OffsetSpec.for_timestamp(time_ms)


class KafkaAdmin:
    """Kafka's admin client. Every method raises UNAVAILABLE if the brokers do not answer within REQUEST_TIMEOUT_S
    seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = AdminClient(client_settings(settings) | {"error_cb": RateLimitedErrors("admin")})
        self._known: set[str] = set()
        self._partitions: dict[str, int] = {}

    async def check(self) -> None:
        """Raises UNAVAILABLE if no broker answers within OPEN_TIMEOUT_S seconds."""
        try:
            await asyncio.to_thread(self._client.list_topics, timeout=OPEN_TIMEOUT_S)
        except KafkaException as error:
            unreachable = unavailable("Kafka cannot be reached: check that it runs", error)
            unreachable.add_note(f"the setting kafka_bootstrap_servers is {self._settings.kafka_bootstrap_servers}")
            raise unreachable from error

    async def ensure(self, names: Iterable[str]) -> None:
        """Creates the topics of these event names, if they do not exist. Raises UNAVAILABLE if Kafka does not answer or
        cannot create a topic."""
        missing = {topic_of(self._settings.namespace, name): name for name in names}.items()
        new = [self._topic_spec(topic, name) for topic, name in missing if topic not in self._known]
        if not new:
            return
        for topic, future in self._client.create_topics(new, request_timeout=REQUEST_TIMEOUT_S).items():
            try:
                await asyncio.wrap_future(future)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise unavailable(f"Kafka could not create the topic {topic}: retry later", error) from error
            self._known.add(topic)

    async def partitions(self, names: Sequence[str]) -> list[PartitionKey]:
        """Returns all partitions of the topics of these event names; creates the topics that do not exist. Raises
        UNAVAILABLE if Kafka does not answer, cannot create a topic, or still has no metadata of a topic after
        METADATA_TIMEOUT_S seconds."""
        await self.ensure(names)
        topics = sorted({topic_of(self._settings.namespace, name) for name in names})
        give_up = time.monotonic() + METADATA_TIMEOUT_S
        while missing := [topic for topic in topics if topic not in self._partitions]:
            try:
                found = await asyncio.to_thread(self._client.list_topics, missing[0], timeout=REQUEST_TIMEOUT_S)
            except KafkaException as error:
                raise unavailable("Kafka does not answer: retry later", error) from error
            if partitions := len(found.topics[missing[0]].partitions):
                self._partitions[missing[0]] = partitions
            elif time.monotonic() > give_up:
                raise unavailable(f"Kafka has no metadata of the topic {missing[0]} yet: retry later")
            else:
                # The metadata of a new topic has not reached this broker yet.
                await asyncio.sleep(_METADATA_RETRY_S)
        return [(topic, number) for topic in topics for number in range(self._partitions[topic])]

    async def offsets(self, partitions: Sequence[PartitionKey], position: Any) -> dict[PartitionKey, int]:
        """Returns an offset for each partition. `position` is EARLIEST (the oldest event), LATEST (the end), or the
        result of `at_time` (the first event at or after a time; the end if there is no such event). Raises UNAVAILABLE
        if Kafka does not answer, or if a partition still has no leader after METADATA_TIMEOUT_S seconds."""
        found: dict[PartitionKey, int] = {}
        missing, give_up = list(partitions), time.monotonic() + METADATA_TIMEOUT_S
        while missing:
            requested = {TopicPartition(*tp): position for tp in missing}
            for tp, future in self._client.list_offsets(requested, request_timeout=REQUEST_TIMEOUT_S).items():
                try:
                    found[tp.topic, tp.partition] = int((await asyncio.wrap_future(future)).offset)
                except KafkaException as error:
                    if error.args[0].code() not in _ELECTING or time.monotonic() > give_up:
                        raise unavailable("Kafka does not answer: retry later", error) from error
            missing = [tp for tp in missing if tp not in found]
            if missing:
                await asyncio.sleep(_METADATA_RETRY_S)
        none = [tp for tp, offset in found.items() if offset < 0]
        return {**found, **await self.offsets(none, LATEST)} if none else found

    async def groups(self) -> list[str]:
        """Returns the consumer groups of this namespace, sorted, without the namespace prefix."""
        begin = f"{self._settings.namespace}."
        found = await self._result(self._client.list_consumer_groups(request_timeout=REQUEST_TIMEOUT_S))
        return sorted(g.group_id.removeprefix(begin) for g in found.valid if g.group_id.startswith(begin))

    async def committed(self, group: str, partitions: Sequence[PartitionKey] | None = None) -> dict[PartitionKey, int]:
        """Returns, by partition, the next offset that the group will read; omits partitions without a committed offset.

        `group` includes the namespace prefix. If `partitions` is None, returns all partitions of the group.
        """
        if partitions is not None and not partitions:
            return {}
        requested = ConsumerGroupTopicPartitions(
            group, None if partitions is None else [TopicPartition(*p) for p in partitions]
        )
        (future,) = self._client.list_consumer_group_offsets([requested], request_timeout=REQUEST_TIMEOUT_S).values()
        answer = await self._result(future)
        return {(p.topic, p.partition): p.offset for p in answer.topic_partitions if p.offset >= 0}

    async def seek_group(self, group: str, targets: Mapping[PartitionKey, int]) -> bool:
        """Commits the offsets `targets`, by partition, for a group without members. Returns False, and commits nothing,
        if the group has members. Raises UNAVAILABLE if Kafka does not commit all of them; some may be committed
        then."""
        if not targets:
            return True
        requested = [TopicPartition(*tp, offset) for tp, offset in targets.items()]
        request = [ConsumerGroupTopicPartitions(group, requested)]
        (future,) = self._client.alter_consumer_group_offsets(request, request_timeout=REQUEST_TIMEOUT_S).values()
        try:
            answer = await asyncio.wrap_future(future)
        except KafkaException as error:
            if error.args[0].code() in _NO_MEMBERS_ALLOWED:
                return False
            raise unavailable("Kafka did not commit the group's offsets: retry later", error) from error
        failed = [p.error for p in answer.topic_partitions if p.error is not None]
        if any(error.code() in _NO_MEMBERS_ALLOWED for error in failed):
            return False
        if failed:
            raise unavailable("Kafka did not commit the group's offsets: retry later", KafkaException(failed[0]))
        return True

    async def _result(self, future: concurrent.futures.Future[Any]) -> Any:
        try:
            return await asyncio.wrap_future(future)
        except KafkaException as error:
            raise unavailable("Kafka does not answer: retry later", error) from error

    def _topic_spec(self, topic: str, name: str) -> NewTopic:
        copies = self._settings.kafka_replication
        kept_s, partitions = log.RETENTION_S, self._settings.kafka_partitions
        config = {"min.insync.replicas": str(min(copies, MIN_COPIES_OF_THREE) if copies > 2 else 1)}
        if name == DEAD_LETTER_TOPIC:
            # The key of a dead letter is the topic, partition and offset of its event. When an operator redrives the
            # dead letter, a record with the same key and no value is appended, and compaction then removes both
            # records. One partition is enough: dead letters are few and are read together.
            kept_s, partitions = DEAD_LETTERS_KEPT_S, 1
            config["cleanup.policy"] = "compact,delete"
        config["retention.ms"] = str(kept_s * 1_000)
        return NewTopic(topic, num_partitions=partitions, replication_factor=copies, config=config)
