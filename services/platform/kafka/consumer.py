"""The Kafka consumer: a thread fetches events, the event loop applies them, and their offsets are committed
afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException

from services.platform.events import log as event_log
from services.platform.events.batch_retry import apply_with_dead_letters
from services.platform.events.log import Apply, ConsumedEvent, Consumer, Lag
from services.platform.events.worker_loop import WorkerLoop
from services.platform.kafka.admin import EARLIEST, LATEST, at_time
from services.platform.kafka.backlog import Backlog
from services.platform.kafka.fetcher import Fetcher
from services.platform.kafka.records import PartitionKey, topic_of, unavailable
from services.platform.kafka.scan import scan

if TYPE_CHECKING:
    from services.platform.kafka.event_log import KafkaLog

# The backlog holds PREFETCHED_BATCHES batches, at least MIN_PREFETCHED events, so that the next batch is fetched
# already when one has been applied.
PREFETCHED_BATCHES, MIN_PREFETCHED = 2, 400
# Maximum number of seconds that a seek waits until this process has partitions. A new member of the group gets
# partitions only when other members have finished their current batches.
JOIN_TIMEOUT_S = 30.0


class KafkaConsumer(Consumer):
    """The Kafka adapter of the port Consumer. A task of the event loop applies events; a `Fetcher` thread fetches them
    and commits offsets."""

    def __init__(
        self, log: KafkaLog, group: str, topics: Sequence[str], apply: Apply, max_batch: int, broadcast: bool
    ) -> None:
        self.group = group
        self.worker = WorkerLoop(f"consumer-{group}", self._step, log.retry_first_s)
        self.backlog = Backlog(max(max_batch * PREFETCHED_BATCHES, MIN_PREFETCHED))
        self._log = log
        self._name = f"{log.settings.namespace}.{group}"
        self._topics = list(topics)
        self._apply = apply
        self._max_batch = max_batch
        self._broadcast = broadcast
        # The offsets at which a `broadcast` consumer continues when it is started again.
        self._resume_offsets: dict[PartitionKey, int] = {}
        self._fetcher: Fetcher | None = None
        self._paused = False

    async def start(self) -> None:
        if self._log.running.setdefault(self.group, self) is not self or self._fetcher is not None:
            raise ValueError(
                f"group {self.group} has a consumer in this process already: start the second one in another process"
            )
        try:
            await self._log.admin.ensure(self._topics)
            begin = await self._broadcast_start() if self._broadcast else None
            if not self._broadcast:
                await self._log.subscribe_to_seeks()
        except BaseException:
            del self._log.running[self.group]
            raise
        settings, event_names = self._log.settings, frozenset(self._topics)
        topics = sorted({topic_of(settings.namespace, name) for name in self._topics})
        self._fetcher = Fetcher(settings, self._name, topics, event_names, self.backlog, self.worker.wake, begin)
        self.worker.start()

    async def stop(self) -> None:
        await self.worker.stop()
        if self._fetcher is not None:
            fetcher, self._fetcher = self._fetcher, None
            self._resume_offsets = {partition: known.position for partition, known in self.backlog.progress().items()}
            await fetcher.stop()
        if self._log.running.get(self.group) is self:
            del self._log.running[self.group]

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.worker.wake()

    async def lag(self) -> Lag:
        partitions = await self._log.admin.partitions(self._topics)
        # Reads the end offsets before the committed ones, so that events applied between the two reads do not count as
        # lag.
        ends = await self._log.admin.offsets(partitions, LATEST)
        begins = await self._start_offsets(partitions)
        mine = self.backlog.progress() if self._fetcher is not None else {}
        count, oldest = 0, None
        unread: dict[PartitionKey, int] = {}
        for partition, end in ends.items():
            known = mine.get(partition)
            if known is not None:
                count += known.events
                if known.oldest_ms is not None:
                    oldest = min(oldest or known.oldest_ms, known.oldest_ms)
            begin = known.fetched if known is not None else begins[partition]
            if end > begin:
                count += end - begin
                if known is None or known.oldest_ms is None:
                    unread[partition] = begin
        if unread:
            appended_ms = await asyncio.to_thread(
                lambda: [m.timestamp()[1] for m in scan(self._log.settings, unread, 1)]
            )
            oldest = min([stamp for stamp in (oldest, *appended_ms) if stamp is not None], default=None)
        age_ms = 0 if oldest is None else max(self._log.clock_ms() - oldest, 0)
        return Lag(min(count, event_log.MAX_LAG_COUNTED), age_ms / 1000 if count else 0.0)

    async def seek(self, *, offset: int | None = None, time_ms: int | None = None) -> None:
        partitions = await self._log.admin.partitions(self._topics)
        if offset is None:
            assert time_ms is not None
            targets = await self._log.admin.offsets(partitions, at_time(time_ms))
        else:
            first = await self._log.admin.offsets(partitions, EARLIEST)
            last = await self._log.admin.offsets(partitions, LATEST)
            targets = {partition: min(max(offset, first[partition]), last[partition]) for partition in partitions}
        if self._fetcher is not None:
            await self.seek_here(targets)
            if not self._broadcast:
                await self._log.broadcast_seek(self.group, targets)
        elif self._broadcast:
            self._resume_offsets = targets
        else:
            await self._log.seek_group(self.group, targets)

    async def seek_here(self, targets: Mapping[PartitionKey, int]) -> None:
        """Moves the partitions that are assigned to this process to these offsets.

        Raises UNAVAILABLE if no partition is assigned within JOIN_TIMEOUT_S seconds, or if Kafka rejects the seek.
        """
        fetcher = self._fetcher
        if fetcher is None:
            return
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await fetcher.has_partitions.wait()
                await fetcher.seek(targets)
        except TimeoutError:
            raise unavailable(f"group {self.group} has no partitions in this process yet: retry later") from None
        except KafkaException as error:
            raise unavailable(
                f"the consumer of group {self.group} could not seek to the new offsets: retry later", error
            ) from error

    async def _broadcast_start(self) -> dict[PartitionKey, int]:
        partitions = await self._log.admin.partitions(self._topics)
        return {**await self._log.admin.offsets(partitions, LATEST), **self._resume_offsets}

    async def _start_offsets(self, partitions: Sequence[PartitionKey]) -> dict[PartitionKey, int]:
        """Returns the next offset to read of each partition: for a broadcast consumer the offset in memory, otherwise
        the offset that the group committed, but not below the oldest event that retention has not deleted."""
        if self._broadcast:
            return await self._broadcast_start()
        first = await self._log.admin.offsets(partitions, EARLIEST)
        committed = await self._log.admin.committed(self._name, partitions)
        return {partition: max(committed.get(partition, 0), first[partition]) for partition in partitions}

    async def _step(self) -> bool:
        """Applies the next batch. Returns False if no fetched event is left or the consumer is paused."""
        if self._paused:
            return False
        entries = self.backlog.next_batch(self._max_batch)
        if not entries:
            return False
        events = [entry.event for entry in entries if entry.event is not None]
        sources = {id(entry.event): entry.partition for entry in entries}

        async def dead_letter(event: ConsumedEvent, error: BaseException) -> None:
            await self._log.dead_letter_store.add(self.group, sources[id(event)], event, error)

        try:
            if events:
                await apply_with_dead_letters(self.group, events, self._apply, self._backoff, dead_letter)
        except BaseException:
            self.backlog.return_batch()
            raise
        self.backlog.complete_batch()
        return True

    async def _backoff(self, failures: int) -> bool:
        return await self.worker.backoff(failures) and not self.backlog.is_revocation_pending()
