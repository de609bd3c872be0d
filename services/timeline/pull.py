"""Pulls the newest tweet ids of many authors and merges them in rounds; each round is complete above its frontier."""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc
from cachetools import TTLCache
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1 import tweet_service_pb2_grpc as tweet_grpc

from services.platform.caching import read_tracking
from services.platform.rpc.deadlines import with_deadline
from services.shared.hydration.fill_page import NO_DEADLINE, IdBatch
from services.timeline.store import CAPACITY, HomeList

# The proto's limit of authors per call.
AUTHORS_A_CALL = 500
# Enough to keep the tweet service busy, few enough that one reader with many followees does not fill its queue.
CALLS_IN_FLIGHT = 8
# The proto's limit of ids per author.
MAX_DEPTH = CAPACITY
# With more authors than this the cost of the calls outweighs a result that may be a second old.
CACHE_ABOVE_AUTHORS = 50
CACHED_IDS_TTL_S = 1.0
MAX_CACHED_AUTHORS = 100_000
# Ids cached per author: the largest page, and some that filters remove.
CACHED_DEPTH = 120
# Versions keep own ids current. This TTL covers a process that died before it could publish the version of a new tweet.
# At 1 KB each, 16 MB.
OWN_TTL_S = 600.0
MAX_OWN_CACHED = 16_384
# A build has many authors and mostly needs few ids of each.
MIN_BUILD_DEPTH = 32
# Each round doubles the depth up to MAX_DEPTH, so this many reach 200,000 ids of one author. More is left to the next
# page.
MAX_ROUNDS = 256


class TweetIdSource(Protocol):
    """A source of tweet ids by author."""

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """Stores in `found`, by author, the newest `depth` ids below `before_id` (0: no bound), newest first; authors
        without any are missing.

        Stores each answer as it arrives, so that a caller out of time can use what is there. An author with fewer than
        `depth` ids has no more. Raises the owner's AioRpcError.
        """


class TweetServiceIds:
    """Reads ids from the tweet service, which owns them, bypassing every cache."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._tweets = tweet_grpc.TweetServiceStub(channel)

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """Implements TweetIdSource: 500 authors per call, 8 calls in flight."""
        if len(authors) <= AUTHORS_A_CALL:
            return await self._ask(authors, before_id, depth, found)
        chunks = iter([authors[at : at + AUTHORS_A_CALL] for at in range(0, len(authors), AUTHORS_A_CALL)])

        async def ask_in_turn() -> None:
            for chunk in chunks:
                await self._ask(chunk, before_id, depth, found)

        await asyncio.gather(*(ask_in_turn() for _ in range(CALLS_IN_FLIGHT)))
        return None

    async def _ask(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        if not authors:
            return
        request = tweet.BatchListAuthorTweetIdsRequest(author_ids=authors, before_id=before_id, per_author=depth)
        answer = await self._tweets.BatchListAuthorTweetIds(request)
        for author in answer.authors:
            found[author.author_id] = author.ids


class CachedIds:
    """Reads ids from process memory, a second old at most; asks `owner` if the cached ids do not reach far enough."""

    def __init__(self, owner: TweetIdSource, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since any fixed point."""
        self._owner = owner
        self._cache: TTLCache[int, Sequence[int]] = TTLCache(MAX_CACHED_AUTHORS, CACHED_IDS_TTL_S, timer=clock)

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """Implements TweetIdSource, but ids committed less than CACHED_IDS_TTL_S ago may be missing."""
        # Cached ids were read in an earlier call, so the response depends on reads that this call did not track.
        read_tracking.mark_uncacheable()
        cached = {author: ids for author in authors if (ids := self._cache.get(author)) is not None}
        unknown = [author for author in authors if author not in cached]
        fresh: dict[int, Sequence[int]] = {}
        await self._owner.newest(unknown, 0, CACHED_DEPTH, fresh)
        for author in unknown:
            cached[author] = self._cache[author] = fresh.get(author, ())
        beyond = [
            author for author, recent in cached.items() if not _take_cached(recent, author, before_id, depth, found)
        ]
        await self._owner.newest(beyond, before_id, depth, found)


class AuthorVersions(Protocol):
    """Gives one version for each author, which changes whenever the author's tweets change. The tweet service publishes
    the new version before it answers the write."""

    async def author_versions(self, user_ids: Sequence[int]) -> Sequence[int | None]:
        """Returns the version of each author's tweets; None if it is unknown. A version changes with every change.
        Raises nothing."""


class VersionedOwnIds:
    """Caches readers' own ids by their version: one round trip to Redis instead of an RPC."""

    def __init__(self, owner: TweetIdSource, versions: AuthorVersions, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since any fixed point."""
        self._owner = owner
        self._versions = versions
        self._cache: TTLCache[int, tuple[int, array[int]]] = TTLCache(MAX_OWN_CACHED, OWN_TTL_S, timer=clock)

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """Implements TweetIdSource, for few authors."""
        # Other processes change the versions without notifying this one, so the response must not be cached.
        read_tracking.mark_uncacheable()
        beyond = []
        # Read before the ids: ids read later include everything the version covers.
        for author, version in zip(authors, await self._versions.author_versions(authors), strict=True):
            known = self._cache.get(author)
            if version is None or known is None or known[0] != version:
                fresh: dict[int, Sequence[int]] = {}
                await self._owner.newest((author,), 0, CACHED_DEPTH, fresh)
                known = (version or 0, array("q", fresh.get(author, ())))
                if version is not None:
                    self._cache[author] = known
            if not _take_cached(known[1], author, before_id, depth, found):
                beyond.append(author)
        await self._owner.newest(beyond, before_id, depth, found)


def _take_cached(
    recent: Sequence[int], author: int, before_id: int, depth: int, found: dict[int, Sequence[int]]
) -> bool:
    """Stores in `found` what is asked of an author's newest CACHED_DEPTH ids. Returns False if they do not reach far
    enough."""
    ids = [tweet_id for tweet_id in recent if not before_id or tweet_id < before_id]
    if len(ids) < depth and len(recent) >= CACHED_DEPTH:
        return False
    if ids:
        found[author] = ids[:depth]
    return True


class Puller:
    """Chooses the source of each author's ids: the reader's own from the owner or by version, others from a cache if
    they are many."""

    def __init__(
        self, owner: TweetIdSource, clock: Callable[[], float], versions: AuthorVersions | None = None
    ) -> None:
        self._owner = owner
        self._own = owner if versions is None else VersionedOwnIds(owner, versions, clock)
        self._cached = CachedIds(owner, clock)

    def reading_for(self, reader: int) -> TweetIdSource:
        """Returns the source for one reader's pages."""
        return RoutedIds(reader, self._owner, self._own, self._cached)


class RoutedIds:
    """Routes the reader's own id and the other authors to their sources."""

    def __init__(self, reader: int, owner: TweetIdSource, own: TweetIdSource, cached: TweetIdSource) -> None:
        self._reader = reader
        self._owner = owner
        self._own = own
        self._cached = cached

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        if len(authors) <= CACHE_ABOVE_AUTHORS and self._own is self._owner:
            return await self._owner.newest(authors, before_id, depth, found)
        others = [author for author in authors if author != self._reader]
        own = [self._reader] if len(others) < len(authors) else []
        if not others:
            return await self._own.newest(own, before_id, depth, found)
        rest = self._owner if len(others) <= CACHE_ABOVE_AUTHORS else self._cached
        await asyncio.gather(
            self._own.newest(own, before_id, depth, found), rest.newest(others, before_id, depth, found)
        )
        return None


class DescendingMerge:
    """Merges ids downwards from `bound` (exclusive; 0: no bound), newest first, round by round, until history or
    MAX_ROUNDS end.

    Above the floor of `home`, ids come from its list and the authors `pulled`; below it (or without a home timeline)
    from `all_authors`. A round takes the newest `depth` ids of each source below the bound. A source that gave a full
    `depth` may have more ids below its lowest one. The frontier is the highest of those lowest ids: ids below it are
    not returned yet, and it becomes the next bound.

    After `deadline` (event loop time) nothing is waited for. If it cuts the first round short, the round returns what
    was found and `partial` becomes true; a later round is left to another merge.
    """

    def __init__(
        self,
        source: TweetIdSource,
        home: HomeList | None,
        pulled: Sequence[int],
        all_authors: Callable[[], Sequence[int]],
        bound: int,
        depth: int,
        deadline: float = NO_DEADLINE,
    ) -> None:
        if home is not None and home.floor and bound and bound <= home.floor + 1:
            home = None
        self.partial = False
        self._source = source
        self._home = home
        self._all_authors = all_authors
        self._authors = pulled if home is not None else all_authors()
        self._carried: list[int] = []
        self._bound = bound
        self._depth = depth
        self._deadline = deadline
        self._first = True
        self._left = MAX_ROUNDS

    def __aiter__(self) -> DescendingMerge:
        return self

    async def __anext__(self) -> IdBatch:
        """Returns the ids of the next round, newest first: all that exist from the frontier, its next position, up to
        the bound before. A frontier of 0 ends the history. Raises what the source raises."""
        if not self._left:
            raise StopAsyncIteration
        found: dict[int, Sequence[int]] = {}
        if not await self._ask(found):
            if not self._first:
                raise StopAsyncIteration
            self.partial = True
        ids, frontier = self._merged(found)
        self._first = False
        self._left = self._left - 1 if frontier and not self.partial else 0
        return IdBatch(ids, frontier)

    async def _ask(self, found: dict[int, Sequence[int]]) -> bool:
        """Reads the ids of this round. Returns False if time ran out."""
        if self._deadline == NO_DEADLINE:
            await self._source.newest(self._authors, self._bound, self._depth, found)
            return True
        try:
            await with_deadline(self._deadline, self._source.newest(self._authors, self._bound, self._depth, found))
        except TimeoutError:
            return False
        return True

    def _merged(self, found: dict[int, Sequence[int]]) -> tuple[list[int], int]:
        """Returns the ids of this round and the frontier, and prepares the next round."""
        pool, frontier = _from_home(self._home, self._bound, self._depth)
        pool += self._carried
        deeper = []
        for author, ids in found.items():
            pool += ids
            if len(ids) >= self._depth:
                deeper.append(author)
                frontier = max(frontier, ids[-1])
        if frontier:
            if self._home is not None and frontier <= self._home.floor + 1:
                self._home, self._authors, self._carried = None, self._all_authors(), []
            else:
                # An author who gave fewer ids than asked has no more: the remaining ids are carried over and the author
                # is not asked again.
                over = set(deeper)
                self._carried = [i for i in self._carried if i < frontier]
                self._carried += [i for author, ids in found.items() if author not in over for i in ids if i < frontier]
                self._authors = deeper
            self._bound, self._depth = frontier, min(self._depth * 2, MAX_DEPTH)
        return sorted({tweet_id for tweet_id in pool if tweet_id >= frontier}, reverse=True), frontier


def _from_home(home: HomeList | None, bound: int, depth: int) -> tuple[list[int], int]:
    """Returns the newest `depth` pushed ids below the bound, and the id down to which they are complete (0: the whole
    history)."""
    if home is None:
        return [], 0
    end = bisect_left(home.ids, bound) if bound else len(home.ids)
    start = max(end - depth, 0)
    ids = list(home.ids[start:end])
    if start:
        return ids, ids[0]
    return ids, home.floor + 1 if home.floor else 0


async def newest_across_authors(
    source: TweetIdSource, authors: Sequence[int], found: dict[int, Sequence[int]], keep: int = CAPACITY
) -> tuple[list[int], int]:
    """Returns the newest ids of the authors, ascending, and the floor above which they are complete. Used by builds.

    `found` receives the answers of the first round as they arrive. Returns fewer than `keep` ids: the `keep`-th becomes
    the floor.
    """
    taken: list[int] = []
    lowest = 0
    depth = max(MIN_BUILD_DEPTH, min(2 * keep // max(len(authors), 1), MAX_DEPTH))
    merge = DescendingMerge(RecordingIds(source, found), None, (), lambda: authors, 0, depth)
    async for batch in merge:
        taken += batch.ids
        lowest = batch.next_position
        if len(taken) >= keep:
            return taken[keep - 2 :: -1] if keep > 1 else [], taken[keep - 1]
    # Only a history that MAX_ROUNDS did not exhaust ends with a frontier.
    return taken[::-1], max(lowest - 1, 0)


class RecordingIds:
    """A source that also stores the first round's answers in `seen`, so that a caller out of time can use them."""

    def __init__(self, source: TweetIdSource, seen: dict[int, Sequence[int]]) -> None:
        self._source = source
        self._seen = seen

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        await self._source.newest(authors, before_id, depth, self._seen if not before_id else found)
        if not before_id:
            found.update(self._seen)
