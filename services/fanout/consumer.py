"""Consumes tweet events and appends the tweets to home timelines.

Idempotent: a home timeline stores each id once, however often and in whatever order it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import grpc
from roost.event.v1 import event_pb2
from roost.fanout.v1 import fanout_service_pb2 as pb
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1 import graph_service_pb2_grpc as graph_grpc
from roost.timeline.v1 import timeline_service_pb2_grpc as timeline_grpc

from services.fanout.append_batcher import IDS_PER_ENTRY, AdaptiveBatchSize, HomeAppendBatcher
from services.fanout.delivery_status import DeliveryTracker
from services.platform.events.log import ConsumedEvent, EventLog, Record
from services.platform.rpc import errors
from services.shared.celebrity_tiers import CelebritySubscriber

TOPICS = ("tweet.created", "tweet.restored")
# A topic that only fan-out uses: the events of authors whose followers exceeded the quota of a batch, published a
# second time.
LARGE_TOPIC = "fanout.large"
# Events per batch of LARGE_TOPIC: each may need a hundred AppendHomeEntries calls.
LARGE_BATCH = 32
# Entries (pairs of tweet and follower) per author and batch: two full calls, which take some milliseconds. An author
# with more continues on LARGE_TOPIC.
QUOTA = 20_000
# Authors whose followers are read concurrently.
AUTHORS_IN_FLIGHT = 16
# Seconds after which the caller of a failed call should retry. The consumer of the log retries the batch with an
# increasing delay.
RETRY_AFTER_S = 1.0

HYBRID = "hybrid"


class BatchProgress:
    """Tracks which tweets of a failed batch were delivered, so that each retry starts where the last one stopped.

    Without it, a batch that takes longer than the time between two failures of a service would never finish.
    """

    def __init__(self) -> None:
        self._batch: list[int] = []
        self._tweets: set[int] = set()

    def of(self, events: Sequence[ConsumedEvent]) -> set[int]:
        """Returns the set of tweet ids of this batch that were delivered, to which the caller adds. The set is empty if
        the batch is not the one of the previous call."""
        batch = [event.event_id for event in events]
        if batch != self._batch:
            self._batch, self._tweets = batch, set()
        return self._tweets

    def end(self) -> None:
        """Forgets the batch: if its events are consumed again (a replay), all of them are delivered again."""
        self._batch, self._tweets = [], set()


class Fanout:
    """Delivers batches of events; `apply` and `apply_large` are the callbacks of the log's consumers. `clock` returns
    Unix seconds."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        log: EventLog,
        tiers: CelebritySubscriber,
        tracker: DeliveryTracker,
        mode: str,
        clock: Callable[[], float],
        quota: int = QUOTA,
    ) -> None:
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._append: Any = timeline_grpc.TimelineServiceStub(channel).AppendHomeEntries
        self._log = log
        self._tiers = tiers
        self._tracker = tracker
        self._hybrid = mode == HYBRID
        self._clock = clock
        self._quota = quota
        self._size = AdaptiveBatchSize()
        self._progress, self._progress_large = BatchProgress(), BatchProgress()

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Delivers a batch. Authors who need more entries than the quota continue on LARGE_TOPIC.

        Raises UNAVAILABLE while tiers are unknown, and the AioRpcErrors of graph and timeline. The consumer then
        retries the batch, which continues where it stopped.
        """
        large = await self._deliver(events, self._quota, self._progress)
        if large:
            await self._log.append([Record(LARGE_TOPIC, e.key, e.event_id, e.payload, e.traceparent) for e in large])
        self._progress.end()

    async def apply_large(self, events: Sequence[ConsumedEvent]) -> None:
        """Delivers a batch without a quota, however long it takes. Raises UNAVAILABLE while tiers are unknown, and the
        AioRpcErrors of graph and timeline."""
        await self._deliver(events, None, self._progress_large)
        self._progress_large.end()

    async def _deliver(
        self, events: Sequence[ConsumedEvent], quota: int | None, progress: BatchProgress
    ) -> list[ConsumedEvent]:
        """Delivers the events. Returns the events of authors who exceeded the quota, which are not delivered
        completely."""
        if self._hybrid and not self._tiers.fresh():
            raise errors.unavailable("celebrity tiers are unavailable; fan-out is paused", RETRY_AFTER_S)
        done = progress.of(events)
        by_author = self._to_push(events, done)
        authors = list(by_author)
        batcher = HomeAppendBatcher(self._append, self._tracker, self._size)
        served: list[int] = []
        large: list[int] = []

        async def serve(author: int) -> None:
            complete = await self._deliver_author(author, list(by_author[author]), batcher, quota)
            (served if complete else large).append(author)

        try:
            try:
                for start in range(0, len(authors), AUTHORS_IN_FLIGHT):
                    await _run_all(serve(author) for author in authors[start : start + AUTHORS_IN_FLIGHT])
                await batcher.finish()
            except Exception:
                # If graph failed for one author, the entries of the others are still sent.
                with contextlib.suppress(Exception):
                    await batcher.finish()
                await batcher.wait_idle()
                raise
        except BaseException:
            await batcher.cancel()
            raise
        finally:
            for tweet_id in (tweet_id for author in served for tweet_id in by_author[author]):
                if batcher.has_delivered(tweet_id):
                    done.add(tweet_id)
                    self._tracker.end(tweet_id, pb.FANOUT_STATE_DONE)
        return [event for author in large for event in by_author[author].values()]

    def _to_push(self, events: Sequence[ConsumedEvent], done: Collection[int]) -> dict[int, dict[int, ConsumedEvent]]:
        """Groups the events by author and tweet id. Leaves out delivered events and those of celebrities, whose tweets
        readers pull."""
        found: dict[int, dict[int, ConsumedEvent]] = {}
        now_ms = int(self._clock() * 1000)
        for event in events:
            tweet_id, author = _tweet_of(event)
            if tweet_id in done:
                continue
            self._tracker.begin(tweet_id)
            # In mode `pull` the tweets of celebrities are fanned out too, so that home timelines are complete if the
            # mode is switched back.
            if self._hybrid and self._tiers.is_excluded_from_fanout(author, now_ms):
                self._tracker.end(tweet_id, pb.FANOUT_STATE_PULLED)
            else:
                found.setdefault(author, {})[tweet_id] = event
        return found

    async def _deliver_author(
        self, author: int, tweet_ids: Sequence[int], batcher: HomeAppendBatcher, quota: int | None
    ) -> bool:
        """Queues the author's tweets for all followers, read from graph now and not from a cache. Returns False if the
        quota was exceeded."""
        served = 0
        request = graph.StreamFollowerIdsRequest(user_id=author, page_size=IDS_PER_ENTRY)
        stream = self._graph.StreamFollowerIds(request)
        try:
            async for message in stream:
                served += len(message.ids) * len(tweet_ids)
                if quota is not None and served > quota:
                    return False
                await batcher.add(tweet_ids, message.ids)
        finally:
            stream.cancel()
        return True


def _tweet_of(event: ConsumedEvent) -> tuple[int, int]:
    """Returns (tweet id, author id) of the event. Raises DecodeError or ValueError for any other payload, which makes
    the log dead-letter it."""
    body = event_pb2.Event.FromString(event.payload)
    match body.WhichOneof("body"):
        case "tweet_created":
            return body.tweet_created.tweet_id, body.tweet_created.author_id
        case "tweet_restored":
            return body.tweet_restored.tweet_id, body.tweet_restored.author_id
        case other:
            raise ValueError(f"{event.topic} carries {other}")


async def _run_all(works: Iterable[Any]) -> None:
    """Runs all works concurrently until each has ended, then raises the first error. So one failure does not cancel the
    others."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
