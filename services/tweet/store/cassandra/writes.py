"""Creates tweets in Cassandra, and commits the batches of all writes of tweets.

A write is one idempotent logged batch of rows, list entries and event: Cassandra applies all of it eventually, or
nothing. A claim, acquired before the batch, decides between concurrent writers. A condition on another tweet (the
original of a retweet is live) is checked before and after the batch, because a batch cannot check it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from roost.tweet.v1 import tweet_pb2

from services.platform.caching.generational import GenerationalCache
from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import Record
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.versions import Kind, key_of
from services.shared.tweet_access import no_such_tweet
from services.tweet.store import Claim
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.claims import (
    ClaimRow,
    Claims,
    claim_row,
    is_claimed,
    key_claim_name,
    retweet_claim_name,
)
from services.tweet.store.cassandra.id_batches import by_ids
from services.tweet.store.cassandra.rows import (
    ANCESTORS_PER_ROW,
    NewTweet,
    Statement,
    Stored,
    bucket_rows,
    create,
    links,
    parse_stored,
    set_orphaned,
)

# Maximum number of statements that a process remembers as executed. Each adds the month or the hour of a tweet to a
# list of buckets; a remembered statement is not executed again. A process needs about one for each author who posts
# through it.
KNOWN_BUCKETS = 16_384
# Number of random bits of a new version. With 62, two versions of one key are practically never equal.
FRESH_BITS = 62


class BatchWriter:
    """Commits batches of statements with their events, and changes the versions of the tweets, authors and
    conversations whose data the batches change."""

    def __init__(self, keyspace: Keyspace, outbox: Outbox, shared: SharedVersions) -> None:
        self.keyspace = keyspace
        self._shared = shared
        self.locks = KeyedLocks()
        self.claims = Claims(keyspace)
        self._outbox = outbox
        self._known_buckets: GenerationalCache[Statement, bool] = GenerationalCache(KNOWN_BUCKETS)
        # Creations in progress by author, claims and body; at most one per call in progress. An identical call awaits
        # the task of the first call.
        self._attempts: dict[Hashable, asyncio.Task[int]] = {}

    async def commit(self, steps: Sequence[Statement], event: Record, head: tweet_pb2.TweetHead) -> None:
        """Writes the statements `steps` and the event, all of the tweet `head`, in one batch. Then changes the versions
        of what the tweet affects, so that no process uses older cached values, and lets the outbox publish the
        event."""
        await self.keyspace.batch([*steps, *self._outbox.statements((event,))])
        # The versions change before the event is published, because consumers of the event read the tweet.
        await self.publish_tweet_change(head)
        self._outbox.publish((event,))

    async def publish_tweet_change(self, head: tweet_pb2.TweetHead) -> bool:
        """Changes the versions of the tweet and its state, of the tweets to which it refers, and of its author. Returns
        False if Redis did not accept all new versions."""
        tweet_ids = (head.id, *(tweet_id for tweet_id, _ in links(head)))
        return await self.publish_versions(tweet_ids, (head.author_id,), states=(head.id,))

    async def publish_versions(
        self,
        tweet_ids: Sequence[int],
        author_ids: Sequence[int] = (),
        threads: Sequence[int] = (),
        states: Sequence[int] = (),
    ) -> bool:
        """Changes the versions of tweets (content and counts), authors (lists and counts), conversations (`threads`,
        the tree of replies) and of the states of tweets (live or not) after a committed write. Returns False if Redis
        did not accept all changes. Other processes then use older cached values until these expire, or until the
        consumer of the event changes the versions again."""
        changed = {Kind.TWEET: tweet_ids, Kind.AUTHOR: author_ids, Kind.THREAD: threads, Kind.TWEET_STATE: states}
        keys = [key_of(kind, i) for kind, ids in changed.items() for i in ids]
        return await self._shared.change(keys, random.getrandbits(FRESH_BITS) + 1)

    async def read_stored(self, ids: Iterable[int]) -> dict[int, Stored]:
        """Reads the rows of tweets by id. Leaves out unknown ids."""
        return {row[0]: parse_stored(row) for row in await by_ids(self.keyspace, cql.STORED, ids) if row[1] is not None}

    async def require_stored(self, tweet_id: int) -> Stored:
        """Returns the row of the tweet. Raises NOT_FOUND if it does not exist."""
        found = (await self.read_stored((tweet_id,))).get(tweet_id)
        if found is None:
            raise no_such_tweet()
        return found

    def now_us(self, after_us: int) -> int:
        """Returns a write timestamp for now in Unix microseconds, at least `after_us` + 1: the write then wins over the
        one with the timestamp `after_us`, even if this process's clock is behind."""
        return max(self.keyspace.cassandra.timestamps.next_unique(), after_us + 1)

    async def create(self, post: NewTweet, claim: Claim | None) -> int:
        """Implements `TweetStore.create`."""
        head = post.core.head
        names = [key_claim_name(claim.key)] if claim is not None else []
        if head.retweet_of_id:
            names.append(retweet_claim_name(head.retweet_of_id))
        if not names:
            await self._store(post, await self._check_links(post, require_live=True))
            return post.id
        attempt = (head.author_id, *names, claim.body_hash if claim is not None else b"")
        if (first := self._attempts.get(attempt)) is not None:
            tweet_id = await asyncio.shield(first)
            # The awaited creation began before this call. If it found the user's retweet, the user may have undone the
            # retweet since, so its state is checked.
            if not head.retweet_of_id or (await self.require_stored(tweet_id)).hidden == cql.LIVE:
                return tweet_id
            return await self._create_locked(post, claim, names)
        first = asyncio.get_running_loop().create_task(self._create_locked(post, claim, names))
        self._attempts[attempt] = first
        try:
            return await asyncio.shield(first)
        finally:
            self._attempts.pop(attempt, None)

    async def _create_locked(self, post: NewTweet, claim: Claim | None, names: Sequence[str]) -> int:
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(self.locks.hold((post.core.head.author_id, name)))
            return await self._create(post, claim)

    async def _create(self, post: NewTweet, claim: Claim | None) -> int:
        head = post.core.head
        earlier = await self.claims.find(head.author_id, key_claim_name(claim.key)) if claim is not None else None
        if claim is not None and earlier is not None and is_claimed(earlier, claim):
            return await self.finish_claim(earlier.post)
        own = await self._own_retweet(head.author_id, head.retweet_of_id) if head.retweet_of_id else None
        if own is not None and not own.is_deleted:
            return own.tweet_id
        ancestors = await self._check_links(post, require_live=True)
        if head.retweet_of_id:
            name = retweet_claim_name(head.retweet_of_id)
            held = await self.claims.acquire(name, ClaimRow(post), own.tweet_id if own is not None else 0)
            if held.post.id != post.id:
                return await self.finish_claim(held.post)
        if claim is not None:
            held = await self.claims.acquire(
                key_claim_name(claim.key), claim_row(post, claim), earlier.post.id if earlier is not None else 0
            )
            if held.post.id != post.id:
                if head.retweet_of_id:
                    await self.claims.release(head.author_id, retweet_claim_name(head.retweet_of_id), post.id)
                is_claimed(held, claim)
                return await self.finish_claim(held.post)
        await self._store(post, ancestors)
        return post.id

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        """Implements `TweetStore.find_claimed`."""
        held = await self.claims.find(user_id, key_claim_name(claim.key))
        return await self.finish_claim(held.post) if held is not None and is_claimed(held, claim) else 0

    async def finish_claim(self, post: NewTweet) -> int:
        """Stores the tweet `post` of a claim if the tweet is not stored yet, and returns its id. Raises the errors of
        Keyspace."""
        if post.id not in await self.read_stored((post.id,)):
            await self._store(post, await self._check_links(post, require_live=False))
        return post.id

    async def release_retweet_claim(self, retweet: Stored) -> None:
        """Releases the claim of a retweet if this retweet holds it. Raises UNAVAILABLE if it is unknown whether the
        claim was released."""
        head = retweet.head
        await self.claims.release(head.author_id, retweet_claim_name(head.retweet_of_id), head.id)

    async def _own_retweet(self, user_id: int, original_id: int) -> _OwnRetweet | None:
        held = await self.claims.find(user_id, retweet_claim_name(original_id))
        if held is None:
            return None
        known = (await self.read_stored((held.post.id,))).get(held.post.id)
        if known is None:
            return _OwnRetweet(await self.finish_claim(held.post), False)
        if known.hidden == cql.REMOVED:
            raise errors.permission_denied(
                "a moderator removed your retweet of this tweet, so you cannot retweet it again", Reason.REMOVED
            )
        return _OwnRetweet(held.post.id, known.hidden == cql.DELETED)

    async def _check_links(self, post: NewTweet, require_live: bool) -> Sequence[int]:
        """Returns the ids of the nearest ancestors of a new reply, nearest first; empty if it is no reply. Raises
        NOT_FOUND if `require_live` is true and a tweet to which it refers is hidden or does not exist."""
        head = post.core.head
        linked = [i for i in (head.reply_to_id, head.retweet_of_id, head.quote_of_id) if i]
        if not linked:
            return ()
        found = await self.read_stored(linked)
        if require_live and not all(i in found and found[i].hidden == cql.LIVE for i in linked):
            raise no_such_tweet()
        if not head.reply_to_id:
            return ()
        parent = found.get(head.reply_to_id)
        return (head.reply_to_id, *(parent.ancestors if parent is not None else ()))[:ANCESTORS_PER_ROW]

    async def _store(self, post: NewTweet, ancestors: Sequence[int]) -> None:
        head = post.core.head
        listed = bucket_rows(head)
        await self.commit(
            [*create(post, ancestors), *(step for step in listed if self._known_buckets.get(step) is None)],
            post.event,
            head,
        )
        for step in listed:
            self._known_buckets.put(step, True)
        if head.reply_to_id:
            await self.publish_versions((), (), (post.conversation_id,))
        if head.retweet_of_id:
            await self._hide_if_original_hidden(post)

    async def _hide_if_original_hidden(self, post: NewTweet) -> None:
        """Excludes a new retweet from its author's tweet count if its original was hidden meanwhile. The process that
        hides an original reads its retweets afterwards: if it does not find the new one, this check finds the original
        hidden."""
        head = post.core.head
        original = (await self.read_stored((head.retweet_of_id,))).get(head.retweet_of_id)
        state, at_us = (original.hidden, original.changed_us) if original is not None else (cql.DELETED, cql.FOREVER_US)
        if state != cql.LIVE:
            await self.keyspace.batch([set_orphaned(post.id, head.author_id, state, at_us)])
            await self.publish_versions((), (head.author_id,))


class _OwnRetweet(NamedTuple):
    """The retweet that holds a user's claim for an original, and whether the user deleted it."""

    tweet_id: int
    is_deleted: bool
