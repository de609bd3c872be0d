"""Events in, entries in homes out. Idempotent: homes take every id once, however often and in whatever order it comes."""

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

from services.fanout.append_batcher import IDS_AN_ENTRY, AdaptiveBatchSize, HomeAppendBatcher
from services.fanout.delivery_status import Receipts
from services.platform.events.log import ConsumedEvent, EventLog, Record
from services.platform.rpc import errors
from services.shared.celebrity_tiers import CelebritySubscriber

TOPICS = ("tweet.created", "tweet.restored")
# Private to fan-out: the same events again, of authors whom a round could not finish.
LARGE_TOPIC = "fanout.large"
# Events a round takes of those: each may mean a hundred calls.
LARGE_BATCH = 32
# Entries of one author a round makes at most: two calls' worth, some milliseconds. Above that the author goes to the large ones.
QUOTA = 20_000
# Authors whose followers are read at the same time.
AUTHORS_IN_FLIGHT = 16
# What refuses for now is tried again by the log's consumer, which waits longer each time.
RETRY_AFTER_S = 1.0

HYBRID = "hybrid"


class Progress:
    """What of a batch that failed was delivered all the same. It comes again, and each try has to get further than the one before:
    else a batch that takes longer than the mesh is ever well for would never end."""

    def __init__(self) -> None:
        self._batch: list[int] = []
        self._tweets: set[int] = set()

    def of(self, events: Sequence[ConsumedEvent]) -> set[int]:
        """The tweets delivered, to be added to; none where this is another batch than the last."""
        batch = [event.event_id for event in events]
        if batch != self._batch:
            self._batch, self._tweets = batch, set()
        return self._tweets

    def end(self) -> None:
        """The batch is done: should it come again, it is to be delivered again."""
        self._batch, self._tweets = [], set()


class Fanout:
    """Delivers batches of events; its methods are what the log's consumers apply. `clock` gives unix seconds."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        log: EventLog,
        tiers: CelebritySubscriber,
        receipts: Receipts,
        mode: str,
        clock: Callable[[], float],
        quota: int = QUOTA,
    ) -> None:
        self._graph = graph_grpc.GraphServiceStub(channel)
        self._append: Any = timeline_grpc.TimelineServiceStub(channel).AppendHomeEntries
        self._log = log
        self._tiers = tiers
        self._receipts = receipts
        self._hybrid = mode == HYBRID
        self._clock = clock
        self._quota = quota
        self._size = AdaptiveBatchSize()
        self._progress, self._progress_large = Progress(), Progress()

    async def apply(self, events: Sequence[ConsumedEvent]) -> None:
        """Delivers a batch; authors who need more than the quota go on by LARGE_TOPIC.

        Raises UNAVAILABLE while tiers are unknown, and what graph or timeline answer: the batch then comes again, and goes on where
        it was.
        """
        large = await self._deliver(events, self._quota, self._progress)
        if large:
            await self._log.append([Record(LARGE_TOPIC, e.key, e.event_id, e.payload, e.traceparent) for e in large])
        self._progress.end()

    async def apply_large(self, events: Sequence[ConsumedEvent]) -> None:
        """Delivers a batch to the end, however long it takes. Raises as `apply`."""
        await self._deliver(events, None, self._progress_large)
        self._progress_large.end()

    async def _deliver(
        self, events: Sequence[ConsumedEvent], quota: int | None, progress: Progress
    ) -> list[ConsumedEvent]:
        """Delivers to the end but for authors who pass the quota: returns their events."""
        if self._hybrid and not self._tiers.fresh():
            raise errors.unavailable("nothing is heard of tiers: who is pushed is unknown", RETRY_AFTER_S)
        done = progress.of(events)
        by_author = self._to_push(events, done)
        authors = list(by_author)
        outbound = HomeAppendBatcher(self._append, self._receipts, self._size)
        served: list[int] = []
        large: list[int] = []

        async def serve(author: int) -> None:
            whole = await self._serve(author, list(by_author[author]), outbound, quota)
            (served if whole else large).append(author)

        try:
            try:
                for start in range(0, len(authors), AUTHORS_IN_FLIGHT):
                    await _all(serve(author) for author in authors[start : start + AUTHORS_IN_FLIGHT])
                await outbound.finish()
            except Exception:
                # Where it was graph that failed, what others gave goes out all the same.
                with contextlib.suppress(Exception):
                    await outbound.finish()
                await outbound.settle()
                raise
        except BaseException:
            await outbound.cancel()
            raise
        finally:
            for tweet_id in (tweet_id for author in served for tweet_id in by_author[author]):
                if outbound.has_delivered(tweet_id):
                    done.add(tweet_id)
                    self._receipts.end(tweet_id, pb.FANOUT_STATE_DONE)
        return [event for author in large for event in by_author[author].values()]

    def _to_push(self, events: Sequence[ConsumedEvent], done: Collection[int]) -> dict[int, dict[int, ConsumedEvent]]:
        """The events by author and tweet, without those done and those whose authors are pulled by every reader."""
        found: dict[int, dict[int, ConsumedEvent]] = {}
        now_ms = int(self._clock() * 1000)
        for event in events:
            tweet_id, author = _tweet_of(event)
            if tweet_id in done:
                continue
            self._receipts.begin(tweet_id)
            # In mode pull celebrities are pushed too: homes of every other mode stay complete for a switch back.
            if self._hybrid and self._tiers.is_excluded_from_fanout(author, now_ms):
                self._receipts.end(tweet_id, pb.FANOUT_STATE_PULLED)
            else:
                found.setdefault(author, {})[tweet_id] = event
        return found

    async def _serve(
        self, author: int, tweet_ids: Sequence[int], outbound: HomeAppendBatcher, quota: int | None
    ) -> bool:
        """Hands the author's tweets to all followers, read now, never from memory; False where the quota ended it."""
        served = 0
        request = graph.StreamFollowerIdsRequest(user_id=author, page_size=IDS_AN_ENTRY)
        stream = self._graph.StreamFollowerIds(request)
        try:
            async for message in stream:
                served += len(message.ids) * len(tweet_ids)
                if quota is not None and served > quota:
                    return False
                await outbound.add(tweet_ids, message.ids)
        finally:
            stream.cancel()
        return True


def _tweet_of(event: ConsumedEvent) -> tuple[int, int]:
    """Tweet id and author. Raises DecodeError or ValueError for what is no such event: the log sets it aside."""
    body = event_pb2.Event.FromString(event.payload)
    match body.WhichOneof("body"):
        case "tweet_created":
            return body.tweet_created.tweet_id, body.tweet_created.author_id
        case "tweet_restored":
            return body.tweet_restored.tweet_id, body.tweet_restored.author_id
        case other:
            raise ValueError(f"{event.topic} carries {other}")


async def _all(works: Iterable[Any]) -> None:
    """Runs all to their end, then raises the first error: where one fails, what the others did need not be done again."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
