"""Appending to Kafka: durable when it returns, in order per key, and nothing that blocks the loop.

librdkafka sends on threads of its own and reports each delivery on ours, which wakes the loop once for all that came together.
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

# An event that is not delivered by then is given up; its outbox keeps it.
DELIVERY_TIMEOUT_S = 5.0
# Events in memory that wait for the brokers: some 30 MB. Beyond it appends wait, and then are refused.
MAX_QUEUED = 50_000
QUEUE_TIMEOUT_S = 2.0
_QUEUE_POLL_S = 0.01
# What comes within it leaves together; a lone append waits that much longer.
LINGER_MS = 2
# How often the thread looks whether it is to stop.
_POLL_S = 0.2
FLUSH_TIMEOUT_S = 6.0

_log = structlog.get_logger(__name__)


class OutgoingMessage(NamedTuple):
    """A message to send; no value takes away what has the same key, in a topic that keeps the last of each."""

    topic: str
    key: str
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]
    timestamp_ms: int


class _PendingSend:
    """One call of `send`: how many deliveries it waits for, and the first failure. Only the loop touches it."""

    __slots__ = ("failure", "future", "left")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        # One of them is the call itself, until it has handed all over.
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
            self.future.set_exception(unavailable("the log did not take the events", KafkaException(self.failure)))


class KafkaProducer:
    """The one producer of a process: idempotent, acknowledged by all copies. `clock_ms` stamps events, in ms since 1970."""

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
            # As Java's clients spread keys, so that tools agree.
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
        """Sends events. Errors as `send`."""
        now = self._clock_ms()
        await self.send(
            OutgoingMessage(
                topic_of(self._namespace, record.topic), str(record.key), record.payload, headers_of(record), now
            )
            for record in records
        )

    async def send(self, messages: Iterable[OutgoingMessage]) -> None:
        """Returns when all are durable. UNAVAILABLE within DELIVERY_TIMEOUT_S + QUEUE_TIMEOUT_S: any of them may be appended then.

        ValueError for one that no broker would take, with those before it sent.
        """
        pending = _PendingSend(self._loop.create_future())
        try:
            for message in messages:
                await self._produce(message, pending)
        except BaseException:
            # Nobody waits for those before it any more.
            pending.future.cancel()
            raise
        pending.settle(None)
        await pending.future

    async def close(self) -> None:
        """Gives what is out FLUSH_TIMEOUT_S, refuses what comes, and ends the thread."""
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
                raise unavailable("the log is closed")
            try:
                self._producer.produce(topic, value, key, timestamp=timestamp_ms, headers=headers, on_delivery=report)
                pending.left += 1
                return
            except BufferError:
                if self._loop.time() >= give_up:
                    raise unavailable("the log does not take events as fast as they come") from None
            except KafkaException as error:
                if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise ValueError(f"an event of {len(value or b'')} bytes is too large for the log") from error
                self._broken = self._broken or error.args[0].fatal()
                raise unavailable("the log does not take events", error) from error
            await asyncio.sleep(_QUEUE_POLL_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            # Serves whatever reports are there, or waits for one.
            self._producer.poll(_POLL_S)
            self._pass_reports()
            if self._broken:
                self._replace()
        self._producer.flush(FLUSH_TIMEOUT_S)
        self._pass_reports()

    def _pass_reports(self) -> None:
        reports = [self._reports.popleft() for _ in range(len(self._reports))]
        if reports:
            # A loop that was closed before the log has nobody waiting.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_settle, reports)

    def _replace(self) -> None:
        """A new producer, where the brokers have lost track of this one's sequence: it would refuse for ever."""
        _log.error("kafka producer replaced")
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
