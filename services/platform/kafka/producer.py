"""Appends records to Kafka: durable when `send` returns, in order per key, without blocking the event loop.

librdkafka sends on its own threads. A thread here collects the delivery reports and wakes the event loop once for all
that arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from services.platform.config import Settings
from services.platform.events.log import Record
from services.platform.kafka.records import RateLimitedErrors, client_settings, headers_of, topic_of, unavailable
from services.platform.log_events import LogEvent

# Seconds within which Kafka must confirm a message. Otherwise the send fails with UNAVAILABLE, and the event stays in
# its outbox.
DELIVERY_TIMEOUT_S = 5.0
# Maximum number of messages queued for the brokers, about 30 MB. If the queue is full, a send waits up to
# QUEUE_TIMEOUT_S seconds for space and then fails with UNAVAILABLE.
MAX_QUEUED = 50_000
QUEUE_TIMEOUT_S = 2.0
_QUEUE_POLL_S = 0.01
# Milliseconds for which librdkafka collects messages to send them in one request. Each append takes this much longer.
LINGER_MS = 2
# Seconds between two checks of the thread whether it must stop.
_POLL_S = 0.2
# Maximum number of seconds that `close` waits for outstanding deliveries, which end within DELIVERY_TIMEOUT_S seconds.
FLUSH_TIMEOUT_S = 6.0

log = structlog.get_logger(__name__)


class OutgoingMessage(NamedTuple):
    """A record to send. `value` None is a tombstone: it deletes the records with the same key from a compacted
    topic."""

    topic: str
    key: str
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]
    timestamp_ms: int


class _PendingSend:
    """Counts the outstanding deliveries of one `send` call and keeps the first failure. Used on the event loop only."""

    __slots__ = ("failure", "future", "left")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        # The `send` call itself counts as one, until it has produced all messages.
        self.left = 1
        self.failure: KafkaError | None = None

    def settle(self, failure: KafkaError | None) -> None:
        self.left -= 1
        self.failure = self.failure or failure
        if self.left or self.future.done():
            return
        if self.failure is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(
                unavailable("Kafka did not accept the events: retry later", KafkaException(self.failure))
            )


class KafkaProducer:
    """The producer of a process: idempotent, acknowledged by all in-sync replicas. `clock_ms` returns Unix
    milliseconds."""

    def __init__(self, settings: Settings, clock_ms: Callable[[], int]) -> None:
        self._namespace = settings.namespace
        self._clock_ms = clock_ms
        self._loop = asyncio.get_running_loop()
        self._log_error = RateLimitedErrors("producer")
        self._config: dict[str, Any] = client_settings(settings) | {
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": LINGER_MS,
            "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1_000),
            "queue.buffering.max.messages": MAX_QUEUED,
            # The partitioner of the Java clients, so that other tools compute the same partition of a key.
            "partitioner": "murmur2_random",
            "error_cb": self._on_error,
        }
        self._producer = Producer(self._config)
        self._broken = False
        self._reports: deque[tuple[_PendingSend, KafkaError | None]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-producer", daemon=True)
        self._thread.start()

    async def append(self, records: Sequence[Record]) -> None:
        """Sends events and returns when all are durable. Raises UNAVAILABLE if Kafka does not confirm them in time (any
        of them may be appended then), and ValueError for an event that is too large."""
        now = self._clock_ms()
        await self.send(
            OutgoingMessage(
                topic_of(self._namespace, record.topic), str(record.key), record.payload, headers_of(record), now
            )
            for record in records
        )

    async def send(self, messages: Iterable[OutgoingMessage]) -> None:
        """Sends messages and returns when all are durable.

        Raises UNAVAILABLE, after at most DELIVERY_TIMEOUT_S + QUEUE_TIMEOUT_S seconds, if Kafka does not confirm them;
        any of the messages can be appended all the same. Raises ValueError for a message that is too large; the
        messages before it are sent.
        """
        pending = _PendingSend(self._loop.create_future())
        try:
            for message in messages:
                await self._produce(message, pending)
        except BaseException:
            # The caller gets this error and does not await the deliveries of the earlier messages.
            pending.future.cancel()
            raise
        pending.settle(None)
        await pending.future

    async def close(self) -> None:
        """Waits at most FLUSH_TIMEOUT_S seconds for outstanding deliveries, rejects later messages, and stops the
        thread."""
        if not self._stopping.is_set():
            self._stopping.set()
            await asyncio.to_thread(self._thread.join, FLUSH_TIMEOUT_S + _POLL_S)

    async def _produce(self, message: OutgoingMessage, pending: _PendingSend) -> None:
        def report(error: KafkaError | None, _: Message) -> None:
            self._reports.append((pending, error))

        topic, key, value, headers, timestamp_ms = message
        give_up = self._loop.time() + QUEUE_TIMEOUT_S
        while True:
            if self._stopping.is_set():
                raise unavailable("the event log is closed: the process is stopping")
            try:
                self._producer.produce(topic, value, key, timestamp=timestamp_ms, headers=headers, on_delivery=report)
                pending.left += 1
                return
            except BufferError:
                if self._loop.time() >= give_up:
                    raise unavailable("the queue to Kafka is full: retry later") from None
            except KafkaException as error:
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise ValueError(
                        f"an event of {len(value or b'')} bytes is larger than Kafka's limit for a message"
                    ) from error
                self._broken = self._broken or error.args[0].fatal()
                raise unavailable("Kafka rejected the event", error) from error
            await asyncio.sleep(_QUEUE_POLL_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            # Calls `report` for each delivery report that has arrived; if none has, waits up to _POLL_S seconds for
            # one.
            self._producer.poll(_POLL_S)
            self._pass_reports()
            if self._broken:
                self._replace()
        self._producer.flush(FLUSH_TIMEOUT_S)
        self._pass_reports()

    def _pass_reports(self) -> None:
        reports = [self._reports.popleft() for _ in range(len(self._reports))]
        if reports:
            # Raises RuntimeError if the event loop was closed before the log; then no task waits for the result.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle, reports)

    def _replace(self) -> None:
        """Replaces a producer whose sequence numbers the brokers no longer accept: it would fail forever."""
        log.error(LogEvent.PRODUCER_REPLACED)
        broken, self._producer, self._broken = self._producer, Producer(self._config), False
        broken.purge()
        broken.flush(_POLL_S)
        self._pass_reports()

    def _on_error(self, error: KafkaError) -> None:
        self._broken = self._broken or error.fatal()
        self._log_error(error)


def _settle(reports: Sequence[tuple[_PendingSend, KafkaError | None]]) -> None:
    for pending, error in reports:
        pending.settle(error)
