"""The thread that fetches for one consumer. It never waits for what is applied, so it is never taken for dead."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from services.platform.config import Settings
from services.platform.events.worker_loop import RETRY_MOST_S
from services.platform.kafka.backlog import Backlog
from services.platform.kafka.records import PartitionKey, RateLimitedErrors, client_settings, delivered

# A member that says nothing for so long is given up by the group, and its partitions go to the others.
SESSION_S = 10.0
HEARTBEAT_S = 2.0
COMMIT_EVERY_S = 1.0
# How soon the thread sees that it is to stop or to seek.
POLL_S = 0.1
# Taken over at once; decoding them holds the GIL for about a millisecond.
FETCH = 200
# How long it does not look at Kafka while there is no room, before it pauses the partitions: pausing throws away what was prefetched.
HOLD_S = 1.0
# Prefetched by librdkafka, outside of Python.
PREFETCH_MESSAGES, PREFETCH_KIB = 10_000, 16 * 1024
FETCH_WAIT_MS = 200
# What others of the group may wait for a batch at hand. Its events come to them again then.
RELEASE_WITHIN_S = 10.0
# What the last commit may take, and all of the stopping.
LAST_COMMIT_S, STOP_WITHIN_S = 3.0, 12.0
_SEEK_TRIES, _SEEK_AGAIN_S = 50, 0.1

_log = structlog.get_logger(__name__)

Work = Callable[[Client], None]


class Fetcher:
    """Fills a backlog, commits what is applied, follows the group's changes. `wake` is called on the loop when there is something new.

    With `begin` the partitions are taken by hand, outside of any group, and nothing is committed.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Sequence[str],
        wanted: frozenset[str],
        backlog: Backlog,
        wake: Callable[[], None],
        begin: Mapping[PartitionKey, int] | None = None,
    ) -> None:
        self.has_partitions = asyncio.Event()
        self._group = group
        self._topics = list(topics)
        self._wanted = wanted
        self._backlog = backlog
        self._wake = wake
        self._begin = begin
        self._complain = RateLimitedErrors(group)
        self._config: dict[str, Any] = client_settings(settings) | {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            # Members that stay keep their partitions, and go on, while others come and go.
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": int(SESSION_S * 1_000),
            "heartbeat.interval.ms": int(HEARTBEAT_S * 1_000),
            "queued.min.messages": PREFETCH_MESSAGES,
            "queued.max.messages.kbytes": PREFETCH_KIB,
            # While the broker waits for one partition's events, none of another's are asked for: right after an assignment.
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            # Topics may be made after the group was.
            "topic.metadata.refresh.interval.ms": 30_000,
            "error_cb": self._complain,
            "on_commit": self._on_commit,
        }
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._asked: deque[tuple[Work, asyncio.Future[None]]] = deque()
        self._stopping = threading.Event()
        self._held = False
        self._committing = 0
        self._commit_due = 0.0
        self._thread = threading.Thread(target=self._run, name=f"kafka-{group}", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Commits, leaves the group and ends. What takes longer than STOP_WITHIN_S is left behind."""
        self._stopping.set()
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await self._ended.wait()
        except TimeoutError:
            _log.warning("kafka consumer did not stop", group=self._group)

    async def seek(self, targets: Mapping[PartitionKey, int]) -> None:
        """Goes on at these offsets in the partitions that are held here. UNAVAILABLE-like KafkaException where Kafka refuses."""

        def work(client: Client) -> None:
            for place, offset in self._backlog.seek(targets).items():
                _seek(client, TopicPartition(*place, offset))
            self._commit(client)

        future: asyncio.Future[None] = self._loop.create_future()
        self._asked.append((work, future))
        await future

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._live()
            except Exception as error:
                _log.warning("kafka consumer failed, will go on", group=self._group, error=repr(error))
                self._stopping.wait(RETRY_MOST_S)
        self._on_loop(self._ended.set)

    def _live(self) -> None:
        client = Client(self._config)
        try:
            self._take_part(client)
            while not self._stopping.is_set():
                self._do_what_is_asked(client)
                self._commit_if_due(client)
                self._fetch(client)
            self._commit_last(client)
        finally:
            # Whatever it held comes again, from the committed place; without a group, from where it was.
            if self._begin is not None:
                self._begin = {**self._begin, **self._backlog.release(self._backlog.places(), 0.0)}
            self._backlog.release(self._backlog.places(), 0.0)
            client.close()

    def _take_part(self, client: Client) -> None:
        self._held = False
        if self._begin is None:
            client.subscribe(self._topics, self._on_assign, self._on_revoke, self._on_lost)
            return
        client.assign([TopicPartition(*place, offset) for place, offset in self._begin.items()])
        self._backlog.hold(self._begin, self._begin)
        self._on_loop(self.has_partitions.set)

    def _do_what_is_asked(self, client: Client) -> None:
        while self._asked:
            work, future = self._asked.popleft()
            try:
                work(client)
                self._on_loop(_settle, future, None)
            except KafkaException as error:
                self._on_loop(_settle, future, error)

    def _fetch(self, client: Client) -> None:
        full = self._backlog.is_full()
        if full and not self._held:
            full = not self._backlog.wait_for_room(HOLD_S)
            if full:
                client.pause(client.assignment())
                self._held = True
        elif self._held and not full:
            client.resume(client.assignment())
            self._held = False
        first = client.poll(POLL_S)
        if first is None:
            return
        # `consume` alone would wait for its number to be full.
        self._put([first, *client.consume(FETCH - 1, 0.0)])

    def _put(self, messages: Sequence[Message]) -> None:
        found = []
        for message in messages:
            error = message.error()
            if error is not None:
                self._complain(error)
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None
            assert partition is not None
            assert offset is not None
            found.append(((topic, partition), offset, delivered(message, self._wanted)))
        self._backlog.put(found)
        self._on_loop(self._wake)

    def _commit_if_due(self, client: Client) -> None:
        if time.monotonic() >= self._commit_due:
            self._commit_due = time.monotonic() + COMMIT_EVERY_S
            self._commit(client)

    def _commit(self, client: Client) -> None:
        if self._begin is not None:
            return
        changed = self._backlog.uncommitted()
        if changed:
            self._committing += 1
            client.commit(offsets=[TopicPartition(*place, offset) for place, offset in changed.items()])

    def _commit_last(self, client: Client) -> None:
        self._commit(client)
        give_up = time.monotonic() + LAST_COMMIT_S
        while self._committing and time.monotonic() < give_up:
            # What comes meanwhile is not ours any more: it was not applied.
            client.poll(POLL_S)

    def _on_commit(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        self._committing = max(self._committing - 1, 0)
        failed = [(p.topic, p.partition) for p in partitions if error is not None or p.error is not None]
        if failed:
            _log.warning("kafka commit failed, will come again", group=self._group, error=error and error.str())
            self._backlog.not_committed(failed)

    def _on_assign(self, client: Client, partitions: Sequence[TopicPartition]) -> None:
        self._backlog.hold((p.topic, p.partition) for p in partitions)
        # New ones are not paused.
        self._held = False
        self._on_loop(self.has_partitions.set)

    def _on_revoke(self, client: Client, partitions: Sequence[TopicPartition]) -> None:
        within_s = 0.0 if self._stopping.is_set() else RELEASE_WITHIN_S
        changed = self._backlog.release({(p.topic, p.partition) for p in partitions}, within_s)
        if changed and not self._stopping.is_set():
            # The next owner begins there, so it must be known before the partitions are let go.
            with contextlib.suppress(KafkaException):
                client.commit(
                    offsets=[TopicPartition(*place, offset) for place, offset in changed.items()], asynchronous=False
                )

    def _on_lost(self, client: Client, partitions: Sequence[TopicPartition]) -> None:
        # Others have them by now: nothing may be committed.
        self._backlog.release({(p.topic, p.partition) for p in partitions}, 0.0)

    def _on_loop(self, work: Callable[..., object], *values: Any) -> None:
        # A loop that was closed before the log has nobody waiting.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work, *values)


def _seek(client: Client, target: TopicPartition) -> None:
    """Partitions that were just assigned cannot be sought for some milliseconds."""
    for left in range(_SEEK_TRIES, 0, -1):
        try:
            client.seek(target)
            return
        except KafkaException as error:
            if left == 1 or error.args[0].code() != KafkaError._STATE:
                raise
            time.sleep(_SEEK_AGAIN_S)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
