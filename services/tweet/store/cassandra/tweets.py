"""Stores tweets in Cassandra."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.platform.detached import DetachedWork
from services.platform.events.log import Record
from services.tweet.store import Claim
from services.tweet.store.cassandra.changes import ChangeResult, TweetUpdater
from services.tweet.store.cassandra.cores import TweetCores
from services.tweet.store.cassandra.lists import CassandraTweetLists
from services.tweet.store.cassandra.rows import NewTweet
from services.tweet.store.cassandra.writes import BatchWriter

# Number of tweets that `set_absent` reads and changes at a time.
ABSENCE_STEP = 500


class CassandraTweetStore:
    """Implements TweetStore on Cassandra, for any number of processes at once.

    Differs from the port in one point: a write that raises UNAVAILABLE with reason OUTCOME_UNKNOWN may have been
    stored. A repeat with the same idempotency key then returns the stored tweet.
    """

    def __init__(
        self, writer: BatchWriter, writes: DetachedWork, cores: TweetCores, lists: CassandraTweetLists
    ) -> None:
        self._writer = writer
        self._writes = writes
        self._cores = cores
        self._lists = lists
        self._updater = TweetUpdater(writer)

    async def create(self, core: tweet_pb2.TweetCore, conversation_id: int, event: Record, claim: Claim | None) -> int:
        return await self._writes.run(self._writer.create(NewTweet(core, conversation_id, event), claim))

    async def delete(self, tweet_id: int, at_s: int, event: Record) -> bool:
        return await self._writes.run(self._hide(self._updater.delete(tweet_id, at_s, event)))

    async def remove(self, tweet_id: int, action_id: int, at_s: int, event: Record) -> bool:
        return await self._writes.run(self._hide(self._updater.remove(tweet_id, action_id, at_s, event)))

    async def restore(self, tweet_id: int, action_id: int, event: Record) -> bool:
        return await self._writes.run(self._hide(self._updater.restore(tweet_id, action_id, event)))

    async def revise(self, core: tweet_pb2.TweetCore, revision: tweet_service_pb2.TweetRevision, event: Record) -> bool:
        return (await self._writes.run(self._updater.revise(core, revision, event))).changed

    async def list_revisions(self, tweet_id: int) -> Sequence[tweet_service_pb2.TweetRevision]:
        return await self._writes.run(self._updater.list_revisions(tweet_id))

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        return await self._writes.run(self._writer.find_claimed(user_id, claim))

    async def set_absent(self, author_id: int, absent: bool, at_us: int) -> None:
        """Implements `TweetStore.set_absent`. May miss a tweet that is posted during the call; counts include such a
        tweet until the next call for its author."""
        before_id = 0
        while ids := await self._lists.list_author(author_id, before_id, ABSENCE_STEP):
            await self._writes.run(self._updater.set_absent(ids, absent, at_us))
            before_id = ids[-1]

    async def batch_get(self, ids: Sequence[int], viewer_id: int = 0) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        frames = await self.batch_get_serialized(ids, viewer_id)
        return tweet_service_pb2.BatchGetTweetCoresResponse.FromString(frames)

    async def batch_get_serialized(self, ids: Sequence[int], viewer_id: int = 0) -> bytes:
        return await self._cores.get_serialized(ids, viewer_id)

    async def scan(self, after_id: int, limit: int) -> list[tweet_pb2.TweetCore]:
        found: list[tweet_pb2.TweetCore] = []
        # Some listed ids have no tweet: while Cassandra applies the batch of a new tweet, or during its purge. More ids
        # are read in their place.
        while wanted := limit - len(found):
            ids = await self._lists.ids_from(after_id, wanted)
            cores = await self._cores.read(ids)
            found += [cores[tweet_id] for tweet_id in ids if tweet_id in cores]
            if len(ids) < wanted:
                break
            after_id = ids[-1]
        return found

    async def finish_side_effects(self, tweet_ids: Sequence[int]) -> None:
        """Repeats the follow-up writes for tweets that were edited, hidden or restored: changes their versions, and
        updates the tweet counts of their retweeters. Raises UNAVAILABLE if Redis does not accept the versions."""
        await self._writes.run(self._updater.repeat_side_effects(tweet_ids))

    async def _hide(self, work: Coroutine[Any, Any, ChangeResult]) -> bool:
        change = await work
        if change.tweet is not None:
            await self._updater.update_retweet_counts(change.tweet.head.id)
        return change.changed
