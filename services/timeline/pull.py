"""Pulling: the newest tweet ids of many authors, merged in rounds of which each is complete above its frontier."""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import grpc
from cachetools import TTLCache
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1 import tweet_service_pb2_grpc as tweet_grpc

from services.platform.caching import read_tracking
from services.platform.rpc.deadlines import with_deadline
from services.timeline.store import CAPACITY, HomeList

# The contract's bound of one call.
AUTHORS_A_CALL = 500
# Enough to keep the owner busy, few enough that one big reader does not fill its queue.
CALLS_IN_FLIGHT = 8
# The contract's bound of ids an author.
MAX_DEPTH = CAPACITY
# Above this many authors the asking costs more than a second's staleness is worth.
RECENTS_ABOVE = 50
RECENTS_TTL_S = 1.0
RECENTS_AUTHORS = 100_000
# What recents hold of an author: the largest page, and some that filters take out.
RECENTS_DEPTH = 120
# Marks make own ids right; this ends what a process left that died before it could tell of a post. At 1 KB each, 16 MB.
OWN_TTL_S = 600.0
OWN_AUTHORS = 16_384
# Of authors a build has many, of each it mostly needs few.
MIN_BUILD_DEPTH = 32
# Each round doubles its depth up to MAX_DEPTH: this many reach 200,000 ids down one author. More is another page's work.
MAX_ROUNDS = 256

FOREVER = float("inf")


class TweetIdSource(Protocol):
    """Where the ids of authors come from."""

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """Puts into `found` the newest `depth` ids below `before_id` (0: no bound) of each author who has any, newest first.

        Fills as answers come, so that a caller out of time can go on with what is there. An author with fewer than `depth` ids has
        no more. Raises what the owner answers.
        """


class TweetServiceIds:
    """From the owner, the tweet service, past every cache."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._tweets = tweet_grpc.TweetServiceStub(channel)

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """As in TweetIdSource: 500 authors a call, 8 calls in flight."""
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
    """From this process's memory, a second old at most; from the owner where that does not reach."""

    def __init__(self, owner: TweetIdSource, clock: Callable[[], float]) -> None:
        """`clock` gives seconds of any origin."""
        self._owner = owner
        self._kept: TTLCache[int, Sequence[int]] = TTLCache(RECENTS_AUTHORS, RECENTS_TTL_S, timer=clock)

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """As in TweetIdSource, but for ids committed less than RECENTS_TTL_S ago."""
        # What is read here was read from its owner earlier, in another call.
        read_tracking.mark_uncacheable()
        kept = {author: ids for author in authors if (ids := self._kept.get(author)) is not None}
        unknown = [author for author in authors if author not in kept]
        fresh: dict[int, Sequence[int]] = {}
        await self._owner.newest(unknown, 0, RECENTS_DEPTH, fresh)
        for author in unknown:
            kept[author] = self._kept[author] = fresh.get(author, ())
        beyond = [
            author for author, recent in kept.items() if not _take_cached(recent, author, before_id, depth, found)
        ]
        await self._owner.newest(beyond, before_id, depth, found)


class AuthorMarks(Protocol):
    """Where the owner says that what authors posted changed, before it answers whoever changed it."""

    async def author_versions(self, user_ids: Sequence[int]) -> Sequence[int | None]:
        """A number for each, another one after every change; None where nobody can say. Raises nothing."""


class VersionedOwnIds:
    """Readers' own ids, remembered as long as their marks stand: one trip to Redis in place of a call."""

    def __init__(self, owner: TweetIdSource, marks: AuthorMarks, clock: Callable[[], float]) -> None:
        """`clock` gives seconds of any origin."""
        self._owner = owner
        self._marks = marks
        self._kept: TTLCache[int, tuple[int, array[int]]] = TTLCache(OWN_AUTHORS, OWN_TTL_S, timer=clock)

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        """As in TweetIdSource, for the few who read."""
        # What changes the marks changes them without a word to this process.
        read_tracking.mark_uncacheable()
        beyond = []
        # Taken before the ids are read: who answers later knows what the mark tells of.
        for author, mark in zip(authors, await self._marks.author_versions(authors), strict=True):
            known = self._kept.get(author)
            if mark is None or known is None or known[0] != mark:
                fresh: dict[int, Sequence[int]] = {}
                await self._owner.newest((author,), 0, RECENTS_DEPTH, fresh)
                known = (mark or 0, array("q", fresh.get(author, ())))
                if mark is not None:
                    self._kept[author] = known
            if not _take_cached(known[1], author, before_id, depth, found):
                beyond.append(author)
        await self._owner.newest(beyond, before_id, depth, found)


def _take_cached(
    recent: Sequence[int], author: int, before_id: int, depth: int, found: dict[int, Sequence[int]]
) -> bool:
    """Puts what is asked of an author's newest RECENTS_DEPTH ids into `found`; False where they do not reach."""
    ids = [tweet_id for tweet_id in recent if not before_id or tweet_id < before_id]
    if len(ids) < depth and len(recent) >= RECENTS_DEPTH:
        return False
    if ids:
        found[author] = ids[:depth]
    return True


class Puller:
    """What a read asks: the reader from the owner always, or by marks where there are some, others from recents where they are many."""

    def __init__(self, owner: TweetIdSource, clock: Callable[[], float], marks: AuthorMarks | None = None) -> None:
        self._owner = owner
        self._own = owner if marks is None else VersionedOwnIds(owner, marks, clock)
        self._recents = CachedIds(owner, clock)

    def reading_for(self, reader: int) -> TweetIdSource:
        """The source of one reader's pages."""
        return RoutedIds(reader, self._owner, self._own, self._recents)


class RoutedIds:
    def __init__(self, reader: int, owner: TweetIdSource, own: TweetIdSource, recents: TweetIdSource) -> None:
        self._reader = reader
        self._owner = owner
        self._own = own
        self._recents = recents

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        if len(authors) <= RECENTS_ABOVE and self._own is self._owner:
            return await self._owner.newest(authors, before_id, depth, found)
        others = [author for author in authors if author != self._reader]
        own = [self._reader] if len(others) < len(authors) else []
        if not others:
            return await self._own.newest(own, before_id, depth, found)
        rest = self._owner if len(others) <= RECENTS_ABOVE else self._recents
        await asyncio.gather(
            self._own.newest(own, before_id, depth, found), rest.newest(others, before_id, depth, found)
        )
        return None


class MergeRound(NamedTuple):
    """Ids of one round, newest first: all there are from `frontier` up to the bound before; a frontier of 0 ends history."""

    ids: Sequence[int]
    frontier: int


class DescendingMerge:
    """A way down from `bound` (exclusive; 0: no bound), newest ids first, round by round, until history or MAX_ROUNDS end.

    Above the home's floor ids come from its list and the authors `pulled`, below it (or without a home) from `everyone`. Of each the
    newest `depth` below the bound are taken, and only what is not below the lowest of any who gave a full `depth` is given out: below
    that somebody may have more. That is the frontier, and the next bound.

    From `with_deadline` on (the loop's seconds) nothing more is waited for. If that cuts the first round short, it
    gives what was found, and
    `partial` is true; a later round is then left to another walk.
    """

    def __init__(
        self,
        source: TweetIdSource,
        home: HomeList | None,
        pulled: Sequence[int],
        everyone: Callable[[], Sequence[int]],
        bound: int,
        depth: int,
        with_deadline: float = FOREVER,
    ) -> None:
        if home is not None and home.floor and bound and bound <= home.floor + 1:
            home = None
        self.partial = False
        self._source = source
        self._home = home
        self._everyone = everyone
        self._authors = pulled if home is not None else everyone()
        self._kept: list[int] = []
        self._bound = bound
        self._depth = depth
        self._until = with_deadline
        self._first = True
        self._left = MAX_ROUNDS

    async def next(self) -> MergeRound | None:
        """The next round; None when there is none. Raises what the source raises."""
        if not self._left:
            return None
        found: dict[int, Sequence[int]] = {}
        if not await self._ask(found):
            if not self._first:
                return None
            self.partial = True
        given, frontier = self._merged(found)
        self._first = False
        self._left = self._left - 1 if frontier and not self.partial else 0
        return MergeRound(given, frontier)

    async def _ask(self, found: dict[int, Sequence[int]]) -> bool:
        """Asks the authors of this round; False where time ran out."""
        if self._until == FOREVER:
            await self._source.newest(self._authors, self._bound, self._depth, found)
            return True
        try:
            await with_deadline(self._until, self._source.newest(self._authors, self._bound, self._depth, found))
        except TimeoutError:
            return False
        return True

    def _merged(self, found: dict[int, Sequence[int]]) -> tuple[list[int], int]:
        """What this round gives out, and the frontier; makes ready for the next round."""
        pool, frontier = _listed(self._home, self._bound, self._depth)
        pool += self._kept
        deeper = []
        for author, ids in found.items():
            pool += ids
            if len(ids) >= self._depth:
                deeper.append(author)
                frontier = max(frontier, ids[-1])
        if frontier:
            if self._home is not None and frontier <= self._home.floor + 1:
                self._home, self._authors, self._kept = None, self._everyone(), []
            else:
                # Whoever gave less than was asked has no more: what is left of theirs is kept, and they are not asked again.
                over = set(deeper)
                self._kept = [i for i in self._kept if i < frontier]
                self._kept += [i for author, ids in found.items() if author not in over for i in ids if i < frontier]
                self._authors = deeper
            self._bound, self._depth = frontier, min(self._depth * 2, MAX_DEPTH)
        return sorted({tweet_id for tweet_id in pool if tweet_id >= frontier}, reverse=True), frontier


def _listed(home: HomeList | None, bound: int, depth: int) -> tuple[list[int], int]:
    """The newest `depth` pushed ids below the bound, and down to where they are complete."""
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
    """The newest ids of the authors, ascending, and the floor above which they are complete; for builds.

    `found` gets what the first round answers, while it comes. Fewer than `keep` ids: the `keep`-th is the floor.
    """
    taken: list[int] = []
    lowest = 0
    depth = max(MIN_BUILD_DEPTH, min(2 * keep // max(len(authors), 1), MAX_DEPTH))
    walk = DescendingMerge(RecordingIds(source, found), None, (), lambda: authors, 0, depth)
    while (given := await walk.next()) is not None:
        taken += given.ids
        lowest = given.frontier
        if len(taken) >= keep:
            return taken[keep - 2 :: -1] if keep > 1 else [], taken[keep - 1]
    # Only a history beyond MAX_ROUNDS ends with a frontier.
    return taken[::-1], max(lowest - 1, 0)


class RecordingIds:
    """A source that shows what was found so far to whoever waits for it."""

    def __init__(self, source: TweetIdSource, seen: dict[int, Sequence[int]]) -> None:
        self._source = source
        self._seen = seen

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        await self._source.newest(authors, before_id, depth, self._seen if not before_id else found)
        if not before_id:
            found.update(self._seen)
