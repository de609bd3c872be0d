"""Consumes tweet events and appends the tweets to home timelines.

Idempotent, and independent of the order of events: a home timeline stores each tweet id once, in the order of the ids.
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
# A topic that only fan-out uses. It contains copies of the events whose authors needed more entries than QUOTA.
LARGE_TOPIC = "fanout.large"
# Maximum number of events per batch of LARGE_TOPIC. Each event may need a hundred AppendHomeEntries calls.
LARGE_BATCH = 32
# Maximum number of entries (one tweet in the home timeline of one follower) that a batch of TOPICS appends for one
# author: two full AppendHomeEntries calls. If an author needs more, the author's events are appended to LARGE_TOPIC.
QUOTA = 20_000
# Maximum number of authors whose followers are read from graph concurrently. The next ones are read when all of these
# are done.
AUTHORS_IN_FLIGHT = 16
# `retry_after` of the error while the tiers are unknown, in seconds. Every error needs one; the consumer does not use
# it but retries the batch with an increasing delay.
RETRY_AFTER_S = 1.0

HYBRID = "hybrid"


class BatchProgress:
    """Tracks which tweets of a batch are delivered, so that a retry of the batch skips them.

    If a retry did not skip them, a batch that takes longer than the time between two failures of a service would never
    be finished.
    """

    def __init__(self) -> None:
        self._batch: list[int] = []
        self._tweets: set[int] = set()

    def of(self, events: Sequence[ConsumedEvent]) -> set[int]:
        """Returns the ids of the tweets of this batch that are delivered; the caller adds to the set. The set is empty
        if the previous call was for another batch."""
        batch = [event.event_id for event in events]
        if batch != self._batch:
            self._batch, self._tweets = batch, set()
        return self._tweets

    def end(self) -> None:
        """Forgets the batch, so that a replay delivers all of its events again."""
        self._batch, self._tweets = [], set()


class Fanout:
    """Appends the tweets of events to the home timelines of their authors' followers.

    `apply` and `apply_large` are the callbacks of the consumers of TOPICS and LARGE_TOPIC. `mode` is the timeline mode,
    `clock` returns Unix seconds. Only tests pass another `quota` than QUOTA.
    """

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
        """Delivers the tweets of a batch of events of TOPICS to the followers of their authors. If the tweets of one
        author need more than `quota` entries, delivers them to some of the followers only, and appends this author's
        events to LARGE_TOPIC: `apply_large` then delivers them to all followers.

        Raises UNAVAILABLE while the tiers are unknown, and the AioRpcErrors of graph and timeline. The consumer then
        retries the batch; the retry skips the tweets that were already delivered.
        """
        large = await self._deliver(events, self._quota, self._progress)
        if large:
            await self._log.append([Record(LARGE_TOPIC, e.key, e.event_id, e.payload, e.traceparent) for e in large])
        self._progress.end()

    async def apply_large(self, events: Sequence[ConsumedEvent]) -> None:
        """Delivers a batch of events of LARGE_TOPIC, however many entries an author needs. Raises the same errors as
        `apply`."""
        await self._deliver(events, None, self._progress_large)
        self._progress_large.end()

    async def _deliver(
        self, events: Sequence[ConsumedEvent], quota: int | None, progress: BatchProgress
    ) -> list[ConsumedEvent]:
        """Delivers the events and adds the ids of the delivered tweets to `progress`. Returns the events of each author
        whose events need more than `quota` entries (None: no limit). Some followers of these authors did not get the
        tweets."""
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
                # The error may concern one author only. The entries of the other authors are sent, so that the retry
                # can skip their tweets.
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
        """Returns the events to deliver, by author id and then by tweet id. Leaves out tweets that are in `done`, and
        tweets of celebrities, which readers pull."""
        found: dict[int, dict[int, ConsumedEvent]] = {}
        now_ms = int(self._clock() * 1000)
        for event in events:
            tweet_id, author = _tweet_of(event)
            if tweet_id in done:
                continue
            self._tracker.begin(tweet_id)
            # Only in timeline mode `hybrid` are celebrities left out. In mode `pull` all tweets are fanned out too, so
            # that stored home timelines are complete when the mode is changed back.
            if self._hybrid and self._tiers.is_excluded_from_fanout(author, now_ms):
                self._tracker.end(tweet_id, pb.FANOUT_STATE_PULLED)
            else:
                found.setdefault(author, {})[tweet_id] = event
        return found

    async def _deliver_author(
        self, author: int, tweet_ids: Sequence[int], batcher: HomeAppendBatcher, quota: int | None
    ) -> bool:
        """Passes the author's tweets and followers to `batcher`. The followers are read from graph now, without a
        cache. Returns False, and stops, if more than `quota` pairs of tweet and follower are needed."""
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
    """Returns the tweet id and the author id of an event of TOPICS. Raises DecodeError or ValueError if the payload is
    not such an event; the consumer then makes it a dead letter."""
    body = event_pb2.Event.FromString(event.payload)
    match body.WhichOneof("body"):
        case "tweet_created":
            return body.tweet_created.tweet_id, body.tweet_created.author_id
        case "tweet_restored":
            return body.tweet_restored.tweet_id, body.tweet_restored.author_id
        case other:
            raise ValueError(f"{event.topic} carries {other}")


async def _run_all(works: Iterable[Any]) -> None:
    """Runs the awaitables concurrently until all have ended, then raises the first error. An error does not cancel the
    others."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
