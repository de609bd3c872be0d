"""What the writes of the Cassandra adapter share, and how a tweet comes to be.

A write is one logged batch: rows, lists and event, in the end all or nothing, and harmless to write again. What must be decided
between writers is decided before, by a claim; what must hold between a tweet and another one is looked at again after the batch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

from roost.tweet.v1 import tweet_pb2

from services.platform.cassandra.keyed_lock import KeyedLocks
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import Record
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.tweet.store import Claim
from services.tweet.store.cache import GenerationalCache
from services.tweet.store.cassandra import schema as cql
from services.tweet.store.cassandra.claims import Claims, Held, by_key, holds, name_of_key, name_of_retweet
from services.tweet.store.cassandra.queries import by_ids
from services.tweet.store.cassandra.rows import (
    NAMED_ABOVE,
    Post,
    Statement,
    Stored,
    create,
    links,
    orphan,
    places,
    stored,
)

# Months and hours known to be listed: a few for each author who posts through this process.
KNOWN_PLACES = 16_384
# Of a fresh mark: no two are ever the same.
FRESH_BITS = 62


class Writer:
    """The store, to be written to."""

    def __init__(self, keyspace: Keyspace, outbox: Outbox, shared: SharedVersions) -> None:
        self.keyspace = keyspace
        self._shared = shared
        self.turns = KeyedLocks()
        self.claims = Claims(keyspace)
        self._outbox = outbox
        self._known_places: GenerationalCache[Statement, bool] = GenerationalCache(KNOWN_PLACES)
        # Those under way that others may wait for, instead of trying the same in their turn: as many as there are callers.
        self._attempts: dict[Hashable, asyncio.Task[int]] = {}

    async def commit(self, steps: Sequence[Statement], event: Record, head: tweet_pb2.TweetHead) -> None:
        """Writes steps and event, which are about one tweet, as one batch. When it returns the event is on its way, and no process
        remembers anything older."""
        await self.keyspace.batch([*steps, *self._outbox.statements((event,))])
        # First all processes forget what was: the event makes its consumers read.
        await self.tell_of(head)
        self._outbox.publish((event,))

    async def tell_of(self, head: tweet_pb2.TweetHead) -> bool:
        """Tells all processes of a change of one tweet: it, what it is linked to, and its author's lists. Answers as `tell`."""
        return await self.tell((head.id, *(tweet_id for tweet_id, _ in links(head))), (head.author_id,))

    async def tell(self, tweet_ids: Sequence[int], author_ids: Sequence[int] = (), threads: Sequence[int] = ()) -> bool:
        """Tells all processes of a change that was written: of tweets and what is counted of them, of what authors have posted, of
        what hangs on what. False where Redis does not take it: then they find out by time, or by the event's consumer."""
        next_unique = random.getrandbits(FRESH_BITS) + 1
        told = True
        if tweet_ids:
            told &= await self._shared.change_tweets(tweet_ids, next_unique)
        if author_ids:
            told &= await self._shared.change_authors(author_ids, next_unique)
        if threads:
            told &= await self._shared.change_threads(threads, next_unique)
        return told

    async def stored(self, ids: Iterable[int]) -> dict[int, Stored]:
        """The tweets that there are, by id."""
        return {row[0]: stored(row) for row in await by_ids(self.keyspace, cql.STORED, ids) if row[1] is not None}

    async def one(self, tweet_id: int) -> Stored:
        """The tweet; NOT_FOUND if there is none."""
        found = (await self.stored((tweet_id,))).get(tweet_id)
        if found is None:
            raise no_such_tweet()
        return found

    def now_us(self, after_us: int) -> int:
        """A write timestamp of now, in any case above `after_us`: what was done before is overwritten, whatever the clock says."""
        return max(self.keyspace.cassandra.timestamps.next_unique(), after_us + 1)

    async def create(self, post: Post, claim: Claim | None) -> int:
        """See `TweetStore.create`."""
        head = post.core.head
        names = [name_of_key(claim.key)] if claim is not None else []
        if head.retweet_of_id:
            names.append(name_of_retweet(head.retweet_of_id))
        if not names:
            await self._store(post, await self._above(post, must_stand=True))
            return post.id
        attempt = (head.author_id, *names, claim.body_hash if claim is not None else b"")
        if (first := self._attempts.get(attempt)) is not None:
            tweet_id = await asyncio.shield(first)
            # It looked before this one came: a retweet may have been taken back since.
            if not head.retweet_of_id or (await self.one(tweet_id)).hidden == cql.STANDS:
                return tweet_id
            return await self._in_turn(post, claim, names)
        first = asyncio.get_running_loop().create_task(self._in_turn(post, claim, names))
        self._attempts[attempt] = first
        try:
            return await asyncio.shield(first)
        finally:
            self._attempts.pop(attempt, None)

    async def _in_turn(self, post: Post, claim: Claim | None, names: Sequence[str]) -> int:
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(self.turns.hold((post.core.head.author_id, name)))
            return await self._create(post, claim)

    async def _create(self, post: Post, claim: Claim | None) -> int:
        head = post.core.head
        earlier = await self.claims.find(head.author_id, name_of_key(claim.key)) if claim is not None else None
        if claim is not None and earlier is not None and holds(earlier, claim):
            return await self.complete(earlier.post)
        own = await self._own_retweet(head.author_id, head.retweet_of_id) if head.retweet_of_id else None
        if own is not None and not own.gone:
            return own.tweet_id
        above = await self._above(post, must_stand=True)
        if head.retweet_of_id:
            name = name_of_retweet(head.retweet_of_id)
            held = await self.claims.take(name, Held(post), own.tweet_id if own is not None else 0)
            if held.post.id != post.id:
                return await self.complete(held.post)
        if claim is not None:
            held = await self.claims.take(
                name_of_key(claim.key), by_key(post, claim), earlier.post.id if earlier is not None else 0
            )
            if held.post.id != post.id:
                if head.retweet_of_id:
                    await self.claims.free(head.author_id, name_of_retweet(head.retweet_of_id), post.id)
                holds(held, claim)
                return await self.complete(held.post)
        await self._store(post, above)
        return post.id

    async def find_claimed(self, user_id: int, claim: Claim) -> int:
        """See `TweetStore.find_claimed`."""
        held = await self.claims.find(user_id, name_of_key(claim.key))
        return await self.complete(held.post) if held is not None and holds(held, claim) else 0

    async def complete(self, post: Post) -> int:
        """Stores a claimed post unless that was done; its id."""
        if post.id not in await self.stored((post.id,)):
            await self._store(post, await self._above(post, must_stand=False))
        return post.id

    async def _own_retweet(self, user_id: int, original_id: int) -> _Own | None:
        held = await self.claims.find(user_id, name_of_retweet(original_id))
        if held is None:
            return None
        known = (await self.stored((held.post.id,))).get(held.post.id)
        if known is None:
            return _Own(await self.complete(held.post), False)
        if known.hidden == cql.REMOVED:
            raise errors.permission_denied("a moderator removed this retweet", Reason.REMOVED)
        return _Own(held.post.id, known.hidden == cql.DELETED)

    async def _above(self, post: Post, must_stand: bool) -> Sequence[int]:
        """What a reply answers, nearest first; looks whether all that the post is linked to stands, else NOT_FOUND."""
        head = post.core.head
        linked = [i for i in (head.reply_to_id, head.retweet_of_id, head.quote_of_id) if i]
        if not linked:
            return ()
        found = await self.stored(linked)
        if must_stand and not all(i in found and found[i].hidden == cql.STANDS for i in linked):
            raise no_such_tweet()
        if not head.reply_to_id:
            return ()
        parent = found.get(head.reply_to_id)
        return (head.reply_to_id, *(parent.above if parent is not None else ()))[:NAMED_ABOVE]

    async def _store(self, post: Post, above: Sequence[int]) -> None:
        head = post.core.head
        listed = places(head)
        await self.commit(
            [*create(post, above), *(step for step in listed if self._known_places.get(step) is None)], post.event, head
        )
        for step in listed:
            self._known_places.put(step, True)
        if head.reply_to_id:
            await self.tell((), (), (post.conversation_id,))
        if head.retweet_of_id:
            await self._follow_original(post)

    async def _follow_original(self, post: Post) -> None:
        """Whoever hides the original looks for its retweets after that: if this one was not there yet, the original is hidden now."""
        head = post.core.head
        original = (await self.stored((head.retweet_of_id,))).get(head.retweet_of_id)
        state, at_us = (original.hidden, original.changed_us) if original is not None else (cql.DELETED, cql.FOREVER_US)
        if state != cql.STANDS:
            await self.keyspace.batch([orphan(post.id, head.author_id, state, at_us)])
            await self.tell((), (head.author_id,))


class _Own(NamedTuple):
    """A retweet of the user's, and whether it was taken back."""

    tweet_id: int
    gone: bool


def no_such_tweet() -> errors.RoostError:
    """What it is for a tweet not to be there."""
    return errors.not_found("no such tweet")
