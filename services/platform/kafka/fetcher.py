"""Runs the fetcher thread of one consumer. The thread does not wait until events are applied, so it continues to send
heartbeats and the group does not remove this member."""

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
from services.platform.kafka.records import PartitionKey, RateLimitedErrors, client_settings, to_consumed_event
from services.platform.log_events import LogEvent

# If a member sends no heartbeat for this many seconds, the group removes the member and reassigns the member's
# partitions.
SESSION_TIMEOUT_S = 10.0
# Seconds between two heartbeats: several can be lost before the session times out.
HEARTBEAT_INTERVAL_S = 2.0
# Seconds between two commits. After a crash, events that were applied after the last commit are applied again.
COMMIT_EVERY_S = 1.0
# Maximum number of seconds of one poll. The thread notices a stop or a seek after at most this time.
POLL_TIMEOUT_S = 0.1
# Maximum number of messages per fetch. Decoding them holds the GIL for about 1 ms.
FETCH_MESSAGES = 200
# Seconds for which the thread waits for space in the backlog before it pauses the partitions. It does not pause them at
# once, because pausing discards the messages that librdkafka has prefetched.
PAUSE_AFTER_S = 1.0
# librdkafka prefetches into a queue of its own, outside Python's memory, until the queue holds PREFETCH_MESSAGES
# messages of each partition or PREFETCH_KIB KiB in all.
PREFETCH_MESSAGES, PREFETCH_KIB = 10_000, 16 * 1024
# Maximum number of milliseconds that a broker waits for new events before it answers a fetch.
FETCH_WAIT_MS = 200
# Maximum number of seconds that a rebalance waits until the batch in progress is applied. If the batch takes longer,
# the next owner of the partition gets the events of the batch again.
REVOKE_TIMEOUT_S = 10.0
# Time limits in seconds of the last commit, and of `stop` as a whole.
LAST_COMMIT_TIMEOUT_S, STOP_TIMEOUT_S = 3.0, 12.0
# Maximum number of attempts of one seek, and seconds between two attempts: five seconds in all.
_SEEK_TRIES, _SEEK_RETRY_S = 50, 0.1

log = structlog.get_logger(__name__)

ClientRequest = Callable[[Client], None]


class Fetcher:
    """Fetches events into a backlog, commits the offsets of applied events, and in rebalances adds partitions to the
    backlog or removes them. Calls `wake` on the event loop after each fetch.

    With `start_offsets`, reads these partitions from these offsets, without a consumer group, and commits nothing.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Sequence[str],
        event_names: frozenset[str],
        backlog: Backlog,
        wake: Callable[[], None],
        start_offsets: Mapping[PartitionKey, int] | None = None,
    ) -> None:
        self.has_partitions = asyncio.Event()
        self._group = group
        self._topics = list(topics)
        self._event_names = event_names
        self._backlog = backlog
        self._wake = wake
        self._start_offsets = start_offsets
        self._log_error = RateLimitedErrors(group)
        self._config = _consumer_settings(settings, group) | {"error_cb": self._log_error, "on_commit": self._on_commit}
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._requests: deque[tuple[ClientRequest, asyncio.Future[None]]] = deque()
        self._stopping = threading.Event()
        self._paused = False
        self._committing = 0
        self._commit_due = 0.0
        self._thread = threading.Thread(target=self._run, name=f"kafka-{group}", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Commits, leaves the group and stops the thread. If this takes longer than STOP_TIMEOUT_S seconds, logs a
        warning and returns."""
        self._stopping.set()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._ended.wait()
        except TimeoutError:
            log.warning(LogEvent.FETCHER_ABANDONED, group=self._group)

    async def seek(self, targets: Mapping[PartitionKey, int]) -> None:
        """Moves the partitions that are assigned to this consumer to these offsets; ignores other partitions. Raises
        KafkaException if Kafka rejects the seek."""

        def work(client: Client) -> None:
            for partition, offset in self._backlog.seek(targets).items():
                _seek(client, TopicPartition(*partition, offset))
            self._commit(client)

        future: asyncio.Future[None] = self._loop.create_future()
        self._requests.append((work, future))
        await future

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._run_client()
            except Exception as error:
                log.warning(LogEvent.FETCHER_FAILED, group=self._group, error=repr(error))
                self._stopping.wait(RETRY_MOST_S)
        self._on_loop(self._ended.set)

    def _run_client(self) -> None:
        client = Client(self._config)
        try:
            self._join(client)
            while not self._stopping.is_set():
                self._run_requests(client)
                self._commit_if_due(client)
                self._fetch(client)
            self._commit_last(client)
        finally:
            # The next run fetches unapplied events again: from the group's committed offsets, or, without a group,
            # from `_start_offsets`.
            if self._start_offsets is not None:
                self._start_offsets = {**self._start_offsets, **self._backlog.release(self._backlog.partitions(), 0.0)}
            self._backlog.release(self._backlog.partitions(), 0.0)
            client.close()

    def _join(self, client: Client) -> None:
        self._paused = False
        if self._start_offsets is None:
            client.subscribe(self._topics, self._on_assign, self._on_revoke, self._on_lost)
            return
        client.assign([TopicPartition(*partition, offset) for partition, offset in self._start_offsets.items()])
        self._backlog.assign(self._start_offsets, self._start_offsets)
        self._on_loop(self.has_partitions.set)

    def _run_requests(self, client: Client) -> None:
        while self._requests:
            work, future = self._requests.popleft()
            try:
                work(client)
                self._on_loop(_settle, future, None)
            except KafkaException as error:
                self._on_loop(_settle, future, error)

    def _fetch(self, client: Client) -> None:
        full = self._backlog.is_full()
        if full and not self._paused:
            full = not self._backlog.wait_for_room(PAUSE_AFTER_S)
            if full:
                client.pause(client.assignment())
                self._paused = True
        elif self._paused and not full:
            client.resume(client.assignment())
            self._paused = False
        first = client.poll(POLL_TIMEOUT_S)
        if first is None:
            return
        # `poll` waits for the first message; `consume` with timeout 0 adds the messages that have arrived. With a
        # timeout, `consume` would block until it has all messages that it may return.
        self._put([first, *client.consume(FETCH_MESSAGES - 1, 0.0)])

    def _put(self, messages: Sequence[Message]) -> None:
        found = []
        for message in messages:
            error = message.error()
            if error is not None:
                self._log_error(error)
                continue
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            assert topic is not None
            assert partition is not None
            assert offset is not None
            found.append(((topic, partition), offset, to_consumed_event(message, self._event_names)))
        self._backlog.append(found)
        self._on_loop(self._wake)

    def _commit_if_due(self, client: Client) -> None:
        if time.monotonic() >= self._commit_due:
            self._commit_due = time.monotonic() + COMMIT_EVERY_S
            self._commit(client)

    def _commit(self, client: Client) -> None:
        if self._start_offsets is not None:
            return
        changed = self._backlog.uncommitted()
        if changed:
            self._committing += 1
            client.commit(offsets=[TopicPartition(*partition, offset) for partition, offset in changed.items()])

    def _commit_last(self, client: Client) -> None:
        self._commit(client)
        give_up = time.monotonic() + LAST_COMMIT_TIMEOUT_S
        while self._committing and time.monotonic() < give_up:
            # Messages that arrive meanwhile are dropped: they were not applied, so the next owner reads them.
            client.poll(POLL_TIMEOUT_S)

    def _on_commit(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        self._committing = max(self._committing - 1, 0)
        failed = [(p.topic, p.partition) for p in partitions if error is not None or p.error is not None]
        if failed:
            log.warning(LogEvent.FETCHER_COMMIT_FAILED, group=self._group, error=error and error.str())
            self._backlog.commit_failed(failed)

    def _on_assign(self, client: Client, partitions: Sequence[TopicPartition]) -> None:
        self._backlog.assign((p.topic, p.partition) for p in partitions)
        # Newly assigned partitions are not paused.
        self._paused = False
        self._on_loop(self.has_partitions.set)

    def _on_revoke(self, client: Client, partitions: Sequence[TopicPartition]) -> None:
        within_s = 0.0 if self._stopping.is_set() else REVOKE_TIMEOUT_S
        changed = self._backlog.release({(p.topic, p.partition) for p in partitions}, within_s)
        if changed and not self._stopping.is_set():
            # Committed synchronously, because the next owner starts at the committed offset.
            with contextlib.suppress(KafkaException):
                client.commit(
                    offsets=[TopicPartition(*partition, offset) for partition, offset in changed.items()],
                    asynchronous=False,
                )

    def _on_lost(self, client: Client, partitions: Sequence[TopicPartition]) -> None:
        # Other members own the partitions already, so nothing may be committed.
        self._backlog.release({(p.topic, p.partition) for p in partitions}, 0.0)

    def _on_loop(self, work: Callable[..., object], *values: Any) -> None:
        # Raises RuntimeError if the event loop was closed before the log; then no task waits for the result.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work, *values)


def _consumer_settings(settings: Settings, group: str) -> dict[str, Any]:
    """Returns the librdkafka settings of a consumer in `group`, without callbacks."""
    return client_settings(settings) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        # Members keep their partitions and go on reading during a rebalance.
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": int(SESSION_TIMEOUT_S * 1_000),
        "heartbeat.interval.ms": int(HEARTBEAT_INTERVAL_S * 1_000),
        "queued.min.messages": PREFETCH_MESSAGES,
        "queued.max.messages.kbytes": PREFETCH_KIB,
        # Right after an assignment the broker waits up to this time for events of one partition before the other
        # partitions are fetched.
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        # Topics may be created after the consumer started.
        "topic.metadata.refresh.interval.ms": 30_000,
    }


def _seek(client: Client, target: TopicPartition) -> None:
    """Seeks, and retries for a few seconds: a partition that was just assigned rejects seeks at first."""
    for left in range(_SEEK_TRIES, 0, -1):
        try:
            client.seek(target)
            return
        except KafkaException as error:
            if left == 1 or error.args[0].code() != KafkaError._STATE:
                raise
            time.sleep(_SEEK_RETRY_S)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
