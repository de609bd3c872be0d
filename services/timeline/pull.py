"""Pulls the newest tweet ids of many authors and merges them in batches, newest first. A batch contains every id of
these authors from its frontier up to the frontier of the previous batch."""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
from cachetools import TTLCache
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1 import tweet_service_pb2_grpc as tweet_grpc

from services.platform.caching.generational import GenerationalCache
from services.platform.rpc.deadlines import with_deadline
from services.platform.versions import Kind, Versioned, Versions, key_of
from services.shared.hydration.fill_page import NO_DEADLINE, IdBatch
from services.timeline.store import CAPACITY, HomeList

# Number of authors per BatchListAuthorTweetIds call: the maximum that the proto allows.
AUTHORS_A_CALL = 500
# Maximum number of concurrent calls of one pull. More would let a reader with many followees delay the calls of other
# readers in the tweet service.
CALLS_IN_FLIGHT = 8
# Maximum number of ids per author and call: as many as a home timeline stores, and as the proto allows.
MAX_DEPTH = CAPACITY
# A pull of more authors than this reads ids from CachedIds, which may lack tweets of the last second. A pull of at most
# this many authors is cheap enough to ask the tweet service each time.
CACHE_ABOVE_AUTHORS = 50
# Seconds after which CachedIds reads the ids of an author again.
CACHED_IDS_TTL_S = 1.0
# Maximum number of authors in CachedIds. Beyond it the least recently used are evicted.
MAX_CACHED_AUTHORS = 100_000
# Number of ids cached per author: 100 for the largest page, and 20 because filters remove some. Older ids are read from
# the tweet service.
CACHED_DEPTH = 120
# Readers in each of the two generations of the cache of own ids, about 1 kB each.
MAX_OWN_CACHED = 16_384
# Minimum number of ids per author in the first batch of a build. Fewer would save little and need more batches.
MIN_BUILD_DEPTH = 32
# Maximum number of batches per merge. Each batch reads twice as many ids per author as the previous one, up to
# MAX_DEPTH, so 256 batches read about 200,000 ids of one author. The next page reads the older ids.
MAX_ROUNDS = 256


# Tweet ids by author id, newest first.
IdsByAuthor: TypeAlias = Mapping[int, Sequence[int]]
IdBatches: TypeAlias = AsyncIterator[IdsByAuthor]
# A function `(authors, before_id, depth)` that returns all ids that `TweetIdSource.newest` would yield, or None if it does
# not have them.
LookUp: TypeAlias = Callable[[Sequence[int], int, int], IdsByAuthor | None]
# The newest CACHED_DEPTH tweet ids of one author, newest first.
OwnIds: TypeAlias = "array[int]"
T = TypeVar("T")


class SingleBatch:
    """An async iterator that yields the response of one call. An async generator would take 5 µs longer, because the
    event loop registers each generator."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], Awaitable[IdsByAuthor]]) -> None:
        self._call: Callable[[], Awaitable[IdsByAuthor]] | None = call

    def __aiter__(self) -> SingleBatch:
        return self

    async def __anext__(self) -> IdsByAuthor:
        """Makes the call and returns its response the first time, then ends the iteration. Raises the AioRpcError of
        the call."""
        call, self._call = self._call, None
        if call is None:
            raise StopAsyncIteration
        return await call()


class TweetIdSource(Protocol):
    """A source of tweet ids by author."""

    def newest(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        """Yields the newest `depth` ids of each author below `before_id` (0: no bound), one batch per response, in
        order of arrival. Raises the AioRpcError of the tweet service.

        An author is in at most one batch; an author without ids is in none. If an author has fewer than `depth` ids in
        its batch, the author has no older ids. A caller whose deadline is near can use the batches received so far.
        """


class TweetServiceIds:
    """Reads ids from the tweet service, without a cache."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._tweets = tweet_grpc.TweetServiceStub(channel)

    def newest(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        """Implements TweetIdSource with AUTHORS_A_CALL authors per call, and at most CALLS_IN_FLIGHT calls at a
        time."""
        if len(authors) <= AUTHORS_A_CALL:
            return SingleBatch(partial(self._ask, authors, before_id, depth))
        return self._ask_in_chunks(authors, before_id, depth)

    async def _ask_in_chunks(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        chunks = iter([authors[at : at + AUTHORS_A_CALL] for at in range(0, len(authors), AUTHORS_A_CALL)])
        calls = {asyncio.create_task(self._ask(chunk, before_id, depth)) for chunk in islice(chunks, CALLS_IN_FLIGHT)}
        try:
            while calls:
                ended, calls = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                calls |= {
                    asyncio.create_task(self._ask(chunk, before_id, depth)) for chunk in islice(chunks, len(ended))
                }
                for found in await asyncio.gather(*ended):
                    yield found
        finally:
            for call in calls:
                call.cancel()

    async def _ask(self, authors: Sequence[int], before_id: int, depth: int) -> IdsByAuthor:
        if not authors:
            return {}
        request = tweet.BatchListAuthorTweetIdsRequest(author_ids=authors, before_id=before_id, per_author=depth)
        answer = await self._tweets.BatchListAuthorTweetIds(request)
        return {author.author_id: author.ids for author in answer.authors}


class CachedIds:
    """Caches the newest CACHED_DEPTH ids of each author in process memory for CACHED_IDS_TTL_S seconds. Reads older
    ids, and the ids of authors who are not cached, from `owner`."""

    def __init__(self, owner: TweetIdSource, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since any fixed point."""
        self._owner = owner
        self._cache: TTLCache[int, Sequence[int]] = TTLCache(MAX_CACHED_AUTHORS, CACHED_IDS_TTL_S, timer=clock)

    async def newest(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        """Implements TweetIdSource, but ids that were committed in the last CACHED_IDS_TTL_S seconds can be missing."""
        known = {author: ids for author in authors if (ids := self._cache.get(author)) is not None}
        if unknown := [author for author in authors if author not in known]:
            fresh = await all_ids(self._owner.newest(unknown, 0, CACHED_DEPTH))
            for author in unknown:
                known[author] = self._cache[author] = fresh.get(author, ())
        found, beyond = _cut(known, before_id, depth)
        yield found
        if beyond:
            async for batch in self._owner.newest(beyond, before_id, depth):
                yield batch


class VersionedOwnIds:
    """Caches the newest CACHED_DEPTH ids of readers themselves, each reader's under the version of the reader's tweets."""

    def __init__(self, owner: TweetIdSource, versions: Versions) -> None:
        self._owner = owner
        self._versions = versions
        self._cache: GenerationalCache[int, Versioned[OwnIds]] = GenerationalCache(MAX_OWN_CACHED)

    def cached(self, reader: int) -> Versioned[OwnIds] | None:
        """Returns the cached ids of a reader. Compare their version before use."""
        return self._cache.get(reader)

    def newest(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        """Implements TweetIdSource for the reader: `authors` is the reader's id alone."""
        (author,) = authors
        return SingleBatch(partial(self._newest, author, before_id, depth))

    async def _newest(self, author: int, before_id: int, depth: int) -> IdsByAuthor:
        cached = self._cache.get(author)
        if cached is None or not (await self._versions.current((cached,)))[0]:
            keys = (key_of(Kind.AUTHOR, author),)
            snapshot = self._versions.snapshot()
            # The version is read before the ids, so the ids include at least all tweets that the version counts.
            await snapshot.read(keys)
            fresh = await all_ids(self._owner.newest((author,), 0, CACHED_DEPTH))
            cached = Versioned(keys, snapshot.stamp(keys), array("q", fresh.get(author, ())))
            if cached.stamp is not None:
                self._cache.put(author, cached)
        found, beyond = _cut({author: cached.value}, before_id, depth)
        return await all_ids(self._owner.newest(beyond, before_id, depth)) if beyond else found


def _cut(known: IdsByAuthor, before_id: int, depth: int) -> tuple[IdsByAuthor, list[int]]:
    """Returns the newest `depth` ids below `before_id` (0: no bound) of each author, from the cached ids `known`. Also
    returns the authors who may have more such ids than are cached; their ids must be read from the tweet service."""
    found: dict[int, Sequence[int]] = {}
    beyond = []
    for author, newest in known.items():
        ids = [tweet_id for tweet_id in newest if not before_id or tweet_id < before_id]
        if len(ids) < depth and len(newest) >= CACHED_DEPTH:
            beyond.append(author)
        elif ids:
            found[author] = ids[:depth]
    return found, beyond


async def all_ids(batches: IdBatches) -> dict[int, Sequence[int]]:
    """Reads all batches and returns their ids by author. Raises the AioRpcError of the tweet service."""
    found: dict[int, Sequence[int]] = {}
    async for batch in batches:
        found.update(batch)
    return found


class Puller:
    """Chooses the source of tweet ids for each pull.

    A pull of the reader's own ids alone uses VersionedOwnIds. A pull of up to CACHE_ABOVE_AUTHORS authors uses the
    tweet service. A pull of more authors uses VersionedOwnIds for the reader and CachedIds for the others.
    """

    def __init__(self, owner: TweetIdSource, clock: Callable[[], float], versions: Versions) -> None:
        """`owner` reads from the tweet service. `clock` returns seconds since any fixed point."""
        self._owner = owner
        self.own_ids = VersionedOwnIds(owner, versions)
        self._cached = CachedIds(owner, clock)

    def reading_for(self, reader: int, own: OwnIds | None = None) -> RoutedIds:
        """Returns the source of ids for the home timeline of `reader`. `own` are the reader's ids of `own_ids` if they
        are cached and current."""
        return RoutedIds(reader, self._owner, self.own_ids, self._cached, own)


class RoutedIds:
    """Reads the ids of the reader alone from `own`. Reads the ids of up to CACHE_ABOVE_AUTHORS authors from `owner`. Of
    more authors, reads the reader's ids from `own` and the ids of the others from `cached`. `current_own` are the
    reader's newest CACHED_DEPTH ids, None if these are not cached."""

    __slots__ = ("_cached", "_current_own", "_own", "_owner", "_reader")

    def __init__(
        self,
        reader: int,
        owner: TweetIdSource,
        own: TweetIdSource,
        cached: TweetIdSource,
        current_own: OwnIds | None = None,
    ) -> None:
        self._current_own = current_own
        self._reader = reader
        self._owner = owner
        self._own = own
        self._cached = cached

    def known(self, authors: Sequence[int], before_id: int, depth: int) -> IdsByAuthor | None:
        """Returns all ids that `newest` would yield, if `authors` is only the reader and `current_own` has the ids;
        otherwise None."""
        if self._current_own is None or len(authors) != 1 or authors[0] != self._reader:
            return None
        found, beyond = _cut({self._reader: self._current_own}, before_id, depth)
        return None if beyond else found

    def newest(self, authors: Sequence[int], before_id: int, depth: int) -> IdBatches:
        if len(authors) == 1 and authors[0] == self._reader:
            # The most frequent read: that of a warm home timeline.
            return self._own.newest(authors, before_id, depth)
        if len(authors) <= CACHE_ABOVE_AUTHORS:
            return self._owner.newest(authors, before_id, depth)
        others = [author for author in authors if author != self._reader]
        if len(others) == len(authors):
            return self._cached.newest(others, before_id, depth)
        own = self._own.newest([self._reader], before_id, depth)
        return _as_they_arrive(own, self._cached.newest(others, before_id, depth))


async def _as_they_arrive(*sources: AsyncIterator[T]) -> AsyncIterator[T]:
    """Reads the sources concurrently and yields their items in order of arrival. If a source raises, cancels the others
    and raises the error."""
    steps = {asyncio.ensure_future(source.__anext__()): source for source in sources}
    try:
        while steps:
            ended, _ = await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
            found = []
            for step in ended:
                source = steps.pop(step)
                try:
                    found.append(step.result())
                except StopAsyncIteration:
                    continue
                steps[asyncio.ensure_future(source.__anext__())] = source
            for item in found:
                yield item
    finally:
        for step in steps:
            step.cancel()


class DescendingMerge:
    """Merges the ids of a home timeline with the ids of pulled authors, newest first, in batches, from below `bound`
    (0: from the newest) until no older id exists or MAX_ROUNDS batches were returned.

    Above the floor of `home`, a batch merges the ids of `home` with the ids of the authors `pulled`; below the floor,
    or if `home` is None, a batch merges the ids of `all_authors`. `all_authors` is iterated once, and only if a batch
    needs it.

    For each batch, the newest `depth` ids below the bound are read from each source. A source that returned `depth` ids
    may have more ids, all below the lowest one returned. The highest of these lowest ids is the frontier of the batch.
    The batch returns the ids down to the frontier, which becomes the bound of the next batch. Ids below the frontier
    are returned by later batches.

    `deadline` is in seconds on the event loop's clock. If it passes during the first batch, this batch returns the ids
    received so far, and `partial` becomes true. If it passes later, the merge ends, and another merge can continue at
    the last frontier.
    """

    def __init__(
        self,
        source: TweetIdSource,
        home: HomeList | None,
        pulled: Sequence[int],
        all_authors: Iterable[int],
        bound: int,
        depth: int,
        deadline: float = NO_DEADLINE,
        known: LookUp | None = None,
    ) -> None:
        """`known` returns what `source` would yield, if no call is needed for it."""
        if home is not None and home.floor and bound and bound <= home.floor + 1:
            home = None
        self.partial = False
        # The ids received for the first batch, by author id. `HomeBuild.so_far` uses them before the batch is complete.
        self.first_answers: dict[int, Sequence[int]] = {}
        self._source = source
        self._known = known
        self._home = home
        self._all_authors = all_authors
        self._authors = pulled if home is not None else list(all_authors)
        self._carried: list[int] = []
        self._bound = bound
        self._depth = depth
        self._deadline = deadline
        self._first = True
        self._left = MAX_ROUNDS

    def __aiter__(self) -> DescendingMerge:
        return self

    async def __anext__(self) -> IdBatch:
        """Returns the next batch: the ids from its frontier (inclusive) up to the previous frontier (exclusive), newest
        first. `next_position` is its frontier, 0 if no older id exists. Raises the AioRpcError of the tweet service."""
        if not self._left:
            raise StopAsyncIteration
        if self._known is not None:
            known = self._known(self._authors, self._bound, self._depth)
            if known is not None:
                return self._batch(known)
        return await self._read_batch()

    async def _read_batch(self) -> IdBatch:
        found: dict[int, Sequence[int]] = self.first_answers if self._first else {}
        batches = self._source.newest(self._authors, self._bound, self._depth)
        try:
            while True:
                # Any, because `with_deadline` takes a coroutine. An async generator returns another kind of awaitable
                # here, which has the same methods.
                step: Any = batches.__anext__()
                found.update(await with_deadline(self._deadline, step))
        except StopAsyncIteration:
            pass
        except TimeoutError:
            if not self._first:
                raise StopAsyncIteration from None
            self.partial = True
        return self._batch(found)

    def _batch(self, found: IdsByAuthor) -> IdBatch:
        """Returns the batch that consists of the ids `found` by author, and sets the bound of the next one."""
        ids, frontier = self._merged(found)
        self._first = False
        self._left = self._left - 1 if frontier and not self.partial else 0
        return IdBatch(ids, frontier)

    def _merged(self, found: IdsByAuthor) -> tuple[list[int], int]:
        """Returns the ids of this batch, newest first, and the frontier (0: no older id exists). `found` contains the
        ids read for this batch by author id. Sets the sources and the bound of the next batch."""
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
                self._home, self._authors, self._carried = None, list(self._all_authors), []
            else:
                # An author with fewer than `depth` ids has no older ids and is not read again. The author's ids below
                # the frontier are carried over to the next batch.
                over = set(deeper)
                self._carried = [i for i in self._carried if i < frontier]
                self._carried += [i for author, ids in found.items() if author not in over for i in ids if i < frontier]
                self._authors = deeper
            self._bound, self._depth = frontier, min(self._depth * 2, MAX_DEPTH)
        return sorted({tweet_id for tweet_id in pool if tweet_id >= frontier}, reverse=True), frontier


def _from_home(home: HomeList | None, bound: int, depth: int) -> tuple[list[int], int]:
    """Returns the newest `depth` ids of `home` below `bound` (0: from the newest), and the lowest id down to which the
    result is complete (0: no older id exists)."""
    if home is None:
        return [], 0
    end = bisect_left(home.ids, bound) if bound else len(home.ids)
    start = max(end - depth, 0)
    ids = list(home.ids[start:end])
    if start:
        return ids, ids[0]
    return ids, home.floor + 1 if home.floor else 0


def merge_for_build(source: TweetIdSource, authors: Sequence[int], keep: int = CAPACITY) -> DescendingMerge:
    """Returns the merge of the authors' ids for a build that stores up to `keep` ids. Pass this merge to `newest_of`.
    The first batch reads fewer ids per author if there are more authors."""
    depth = max(MIN_BUILD_DEPTH, min(2 * keep // max(len(authors), 1), MAX_DEPTH))
    return DescendingMerge(source, None, (), authors, 0, depth)


async def newest_of(merge: DescendingMerge, keep: int = CAPACITY) -> tuple[list[int], int]:
    """Returns the newest ids of a merge, ascending, and the floor above which they are complete. Returns at most `keep`
    - 1 ids: if there are more, the `keep`-th newest id is the floor."""
    taken: list[int] = []
    lowest = 0
    async for batch in merge:
        taken += batch.ids
        lowest = batch.next_position
        if len(taken) >= keep:
            return taken[keep - 2 :: -1] if keep > 1 else [], taken[keep - 1]
    # The last frontier is above 0 only if MAX_ROUNDS ended the merge before it reached the oldest id.
    return taken[::-1], max(lowest - 1, 0)
