"""A consumer on Kafka: what a thread fetched is applied on the loop, and then counts as done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
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

# Fetched ahead of what is applied: batches, and never less than this.
BATCHES_AHEAD, MIN_AHEAD = 2, 400
# A new member waits for the others to let partitions go, each at the end of its batch.
JOIN_WITHIN_S = 30.0

_log = structlog.get_logger(__name__)


class KafkaConsumer(Consumer):
    """The Consumer port. One task applies; the thread of a `Fetcher` brings events and commits."""

    def __init__(
        self, log: KafkaLog, group: str, topics: Sequence[str], apply: Apply, max_batch: int, broadcast: bool
    ) -> None:
        self.group = group
        self.pump = WorkerLoop(f"consumer-{group}", self._step, log.retry_first_s)
        self.backlog = Backlog(max(max_batch * BATCHES_AHEAD, MIN_AHEAD))
        self._log = log
        self._name = f"{log.settings.namespace}.{group}"
        self._topics = list(topics)
        self._apply = apply
        self._max_batch = max_batch
        self._everywhere = broadcast
        # Of an `broadcast` consumer that does not run: where it goes on.
        self._places: dict[PartitionKey, int] = {}
        self._fetching: Fetcher | None = None
        self._paused = False

    async def start(self) -> None:
        if self._log.running.setdefault(self.group, self) is not self or self._fetching is not None:
            raise ValueError(
                f"group {self.group} has a consumer in this process: one shares its work better with others'"
            )
        try:
            await self._log.admin.ensure(self._topics)
            begin = await self._beginning() if self._everywhere else None
            if not self._everywhere:
                await self._log.listen()
        except BaseException:
            del self._log.running[self.group]
            raise
        settings, wanted = self._log.settings, frozenset(self._topics)
        topics = sorted({topic_of(settings.namespace, name) for name in self._topics})
        self._fetching = Fetcher(settings, self._name, topics, wanted, self.backlog, self.pump.wake, begin)
        self.pump.start()

    async def stop(self) -> None:
        await self.pump.stop()
        if self._fetching is not None:
            fetching, self._fetching = self._fetching, None
            self._places = {place: known.position for place, known in self.backlog.standings().items()}
            await fetching.stop()
        if self._log.running.get(self.group) is self:
            del self._log.running[self.group]

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.pump.wake()

    async def lag(self) -> Lag:
        places = await self._log.admin.places(self._topics)
        # Ends first: what is applied meanwhile then counts as applied.
        ends = await self._log.admin.offsets(places, LATEST)
        begins = await self._begins(places)
        mine = self.backlog.standings() if self._fetching is not None else {}
        count, oldest = 0, None
        unseen: dict[PartitionKey, int] = {}
        for place, end in ends.items():
            known = mine.get(place)
            if known is not None:
                count += known.events
                if known.oldest_ms is not None:
                    oldest = min(oldest or known.oldest_ms, known.oldest_ms)
            begin = known.fetched if known is not None else begins[place]
            if end > begin:
                count += end - begin
                if known is None or known.oldest_ms is None:
                    unseen[place] = begin
        if unseen:
            seen = await asyncio.to_thread(lambda: [m.timestamp()[1] for m in scan(self._log.settings, unseen, 1)])
            oldest = min([stamp for stamp in (oldest, *seen) if stamp is not None], default=None)
        age_ms = 0 if oldest is None else max(self._log.clock_ms() - oldest, 0)
        return Lag(min(count, event_log.MAX_LAG_COUNTED), age_ms / 1000 if count else 0.0)

    async def seek(self, *, offset: int | None = None, time_ms: int | None = None) -> None:
        places = await self._log.admin.places(self._topics)
        if offset is None:
            assert time_ms is not None
            targets = await self._log.admin.offsets(places, at_time(time_ms))
        else:
            first = await self._log.admin.offsets(places, EARLIEST)
            last = await self._log.admin.offsets(places, LATEST)
            targets = {place: min(max(offset, first[place]), last[place]) for place in places}
        if self._fetching is not None:
            await self.go_to(targets)
            if not self._everywhere:
                await self._log.tell(self.group, targets)
        elif self._everywhere:
            self._places = targets
        else:
            await self._log.move(self.group, targets)

    async def go_to(self, targets: Mapping[PartitionKey, int]) -> None:
        """Goes on at these offsets, in the partitions that are held here. UNAVAILABLE where none come to be held for long."""
        fetching = self._fetching
        if fetching is None:
            return
        try:
            async with asyncio.timeout(JOIN_WITHIN_S):
                await fetching.has_partitions.wait()
                await fetching.seek(targets)
        except TimeoutError:
            raise unavailable(f"group {self.group} has no partitions here yet") from None
        except KafkaException as error:
            raise unavailable(f"group {self.group} could not be moved", error) from error

    async def _beginning(self) -> dict[PartitionKey, int]:
        places = await self._log.admin.places(self._topics)
        return {**await self._log.admin.offsets(places, LATEST), **self._places}

    async def _begins(self, places: Sequence[PartitionKey]) -> dict[PartitionKey, int]:
        """Where the group, or this consumer, stands as far as anybody told; what is past retention is not waited for."""
        if self._everywhere:
            return await self._beginning()
        first = await self._log.admin.offsets(places, EARLIEST)
        told = await self._log.admin.committed(self._name, places)
        return {place: max(told.get(place, 0), first[place]) for place in places}

    async def _step(self) -> bool:
        """Applies the next batch; False if there is none."""
        if self._paused:
            return False
        entries = self.backlog.take(self._max_batch)
        if not entries:
            return False
        events = [entry.event for entry in entries if entry.event is not None]
        sources = {id(entry.event): entry.place for entry in entries}

        async def dead_letter(event: ConsumedEvent, error: BaseException) -> None:
            await self._log.dead.dead_letter(self.group, sources[id(event)], event, error)

        try:
            if events:
                await apply_with_dead_letters(self.group, events, self._apply, self._rest, dead_letter)
        except BaseException:
            self.backlog.put_back()
            raise
        self.backlog.applied()
        return True

    async def _rest(self, failures: int) -> bool:
        return await self.pump.rest(failures) and not self.backlog.is_wanted_back()
