"""Reads pages of home timelines: merges stored and pulled ids, newest first, and leaves out tweets that the reader may
not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import monotonic

from services.platform.overlap import overlapped
from services.platform.rpc import context
from services.platform.versions import Versions
from services.shared.celebrity_tiers import CelebritySubscriber
from services.shared.hydration.cache import HydratedTweet
from services.shared.hydration.fill_page import FilledPage, IdBatch, fill_page
from services.shared.hydration.hydrator import Hydrated, Hydrator
from services.shared.hydration.readers import ReaderView
from services.shared.hydration.tweet_page import TweetPage
from services.timeline.fanout_rules import HYBRID, PULL, FanoutRules, Source
from services.timeline.followees import FolloweeCache, FolloweeSet
from services.timeline.home.builder import HomeBuilder
from services.timeline.home.first_pages import FirstPage, FirstPages, PageSources
from services.timeline.home.rules import HomeRules
from services.timeline.pull import DescendingMerge, OwnIds, Puller
from services.timeline.store import HomeList, HomeTimelineStore

# Maximum number of entries of a home timeline, over all its pages. Older tweets are not shown.
MAX_ENTRIES = 800
# Maximum seconds that a page waits for a build or a pull. Then the page is made from the ids read so far.
BUILD_WAIT_S = 2.0
# The wait for a build or a pull ends at least this many seconds before the call's deadline: they are left to hydrate
# and send the page.
RESPONSE_RESERVE_S = 0.25
# Number of ids read in addition to the page size, because filters remove some, and one visible id more shows that a
# next page exists. Replies to strangers are up to a third of the ids of some readers (Reed98 with 3,000 random operations).
# A page that needs a second batch of ids is not cached.
SPARE = 25

# How a page was read: from a warm home timeline, from one that was built during the call, without a stored one.
WARM, BUILT, PULLED = "warm", "built", "pull"
# The trailing metadata that says how the page was read.
_TRAILERS = {label: (("roost-timeline", label),) for label in (WARM, BUILT, PULLED)}


@dataclass(slots=True)
class HomeSnapshot:
    """What one read of a home timeline starts from: the followees, the view of the reader, and the home timeline.

    `home` is None if all authors are pulled. `label` is WARM, BUILT or PULLED.
    """

    reader: int
    relations: FolloweeSet
    view: ReaderView
    # The reader's newest own tweet ids, None if they are not cached.
    own: OwnIds | None
    # The time on the monotonic clock, in seconds, at which the read stops waiting for ids and continues with those it
    # has.
    until: float
    home: HomeList | None = None
    label: str = PULLED
    # True if the build did not end in time, so that `home` may lack ids.
    partial: bool = False

    def with_home(self, home: HomeList, label: str) -> HomeSnapshot:
        """Adds a home timeline to a read that began without one, and returns this object."""
        self.home, self.label = home, label
        return self

    def sources(self, tiers_version: int) -> PageSources | None:
        """Returns the objects of which the first page is merged; None if they are not all in memory."""
        if self.home is None or self.own is None:
            return None
        return PageSources(self.home, self.relations, self.own, tiers_version)

    def all_authors(self) -> Iterator[int]:
        """Returns every author whose tweets the home timeline may show: the reader and all followees."""
        return chain((self.reader,), self.relations.followees)


@dataclass(slots=True)
class HomePage:
    """One page. The next page begins below the tweet id `bound` (exclusive). If `bound` is 0, this is the last page,
    unless `partial` is true: then tweets may be missing, and the caller must request the same page again.

    `trailer` is the trailing metadata of the response. If `is_reused` is true, later reads may return the same object;
    the servicer stores its response in `response`.
    """

    entries: Sequence[HydratedTweet]
    bound: int
    partial: bool
    trailer: tuple[tuple[str, str]]
    is_reused: bool = False
    response: TweetPage | None = None


class HomeReader:
    """Reads home timelines. Methods raise AioRpcError if graph, tweet or identity does not answer, because no tweet is
    shown without its visibility check."""

    def __init__(
        self,
        store: HomeTimelineStore,
        builds: HomeBuilder,
        relations: FolloweeCache,
        puller: Puller,
        hydrator: Hydrator,
        tiers: CelebritySubscriber,
        rules: FanoutRules,
        versions: Versions,
        clock: Callable[[], float],
    ) -> None:
        """`clock` returns Unix seconds."""
        self._store = store
        self._builds = builds
        self._relations = relations
        self._puller = puller
        self._hydrator = hydrator
        self._tiers = tiers
        self._rules = rules
        self._clock = clock
        self._versions = versions
        self._pages: FirstPages[HomePage] = FirstPages(versions)

    async def page(self, reader: int, bound: int, served: int, size: int) -> HomePage:
        """Returns up to `size` entries, newest first, whose tweet ids are below `bound` (0: from the newest). `served`
        is the number of entries on the earlier pages; after MAX_ENTRIES in all there is no next page."""
        snapshot = await self.snapshot(reader)
        if not bound and snapshot.label is WARM:
            return await self._first_page(snapshot, size)
        merge = self.merge(snapshot, bound, size + SPARE)
        wanted = min(size, MAX_ENTRIES - served)
        page = await fill_page(merge, partial(self.visible, snapshot), wanted, snapshot.until)
        return _home_page(page, served, snapshot, snapshot.partial or merge.partial, False)

    async def _first_page(self, snapshot: HomeSnapshot, size: int) -> HomePage:
        view, sources = snapshot.view, snapshot.sources(self._tiers.version)
        cached = await self._pages.current(view, snapshot.relations, size)
        if cached is not None and cached.has_sources(sources):
            return cached.page
        merge = self.merge(snapshot, 0, size + SPARE)
        newest = await anext(merge)
        if cached is not None and not merge.partial:
            if cached.newest == newest:
                return cached.page
            if (extended := await self._extended(cached, snapshot, sources, newest, size)) is not None:
                return extended
        used: list[Hydrated] = []

        async def visible(ids: Sequence[int], limit: int) -> list[HydratedTweet]:
            used.append(await self._hydrate(snapshot, ids, limit))
            return used[-1].tweets

        page = await fill_page(_BatchesFrom(newest, merge), visible, size, snapshot.until)
        parts = used[0].parts if len(used) == 1 and not merge.partial else None
        found = _home_page(page, 0, snapshot, merge.partial, parts is not None)
        if parts is not None:
            ids = newest.ids[: len(parts)]
            self._remember(
                snapshot, size, FirstPage(view, snapshot.relations, sources, newest, ids, parts, used[0].tweets, found)
            )
        return found

    async def _extended(
        self,
        cached: FirstPage[HomePage],
        snapshot: HomeSnapshot,
        sources: PageSources | None,
        newest: IdBatch,
        size: int,
    ) -> HomePage | None:
        """Returns the page that begins with the tweets that are newer than those of the cached page. Usually there is one
        such tweet, and the rules are applied to it alone. Returns None if the ids differ in another way, or if older
        tweets are needed. Raises AioRpcError if the new tweets cannot be hydrated."""
        new_ids = cached.new_ids(newest)
        if new_ids is None:
            return None
        hydrated, parts = await self._hydrate(snapshot, new_ids, len(new_ids))
        visible = cached.followed_by(hydrated, size)
        if visible is None or visible[-1].id < newest.next_position:
            # Ids may have appeared below the frontier of the batch, where it does not show them.
            return None
        page = FilledPage(visible[:size], visible[size - 1].id, True)
        found = _home_page(page, 0, snapshot, False, parts is not None)
        if parts is not None:
            # Ids below the last visible tweet are not part of the page any more.
            ids = [i for i in (*new_ids, *cached.ids) if i >= visible[-1].id]
            all_parts = (*parts, *cached.parts)[: len(ids)]
            self._remember(
                snapshot,
                size,
                FirstPage(snapshot.view, snapshot.relations, sources, newest, ids, all_parts, visible, found),
            )
        return found

    def _remember(self, snapshot: HomeSnapshot, size: int, page: FirstPage[HomePage]) -> None:
        # The ids of other pulled authors may change while the sources stay the same.
        only_own = list(self.pulled(snapshot)) == [snapshot.reader]
        self._pages.put(size, page if only_own else page._replace(sources=None))

    async def visible(self, snapshot: HomeSnapshot, ids: Sequence[int], limit: int) -> list[HydratedTweet]:
        """Hydrates the first `limit` of the ids that the home timeline may show to the reader. Pages and explanations
        use no other filter."""
        return (await self._hydrate(snapshot, ids, limit)).tweets

    async def _hydrate(self, snapshot: HomeSnapshot, ids: Sequence[int], limit: int) -> Hydrated:
        followees = snapshot.relations.followees
        rules = HomeRules(snapshot.reader, followees)
        return await self._hydrator.hydrate(
            snapshot.view, ids, limit, hide_muted=True, rules=rules, followees=followees
        )

    async def snapshot(self, reader: int) -> HomeSnapshot:
        """Returns what a read of the home timeline starts from: the warm home timeline, one that is built now, or none
        if all authors are to be pulled."""
        until = _build_wait_deadline()
        followees, own, cached_view = (
            self._relations.cached(reader),
            self._puller.own_ids.cached(reader),
            self._hydrator.cached_view(reader),
        )
        # One comparison for all that is cached for the reader, at the same time as the home timeline is read: over Redis
        # both are one round trip.
        compared = self._versions.current((followees, own, *cached_view))
        home = None
        if keeps_homes := self._rules.mode != PULL and self._decidable():
            current, home = await overlapped(compared, self._store.read(reader))
        else:
            current = await compared
        relations = followees.value if followees and current[0] else await self._relations.fetch(reader)
        view = await self._hydrator.view(reader, cached_view, current[2:])
        read = HomeSnapshot(reader, relations, view, own.value if own and current[1] else None, until)
        if not keeps_homes:
            return read
        if home is not None:
            if self._rules.usable(home, relations, self._now_ms()):
                return read.with_home(home, WARM)
            await self._store.drop(reader)
        build = self._builds.get_or_start(reader)
        if build is None:
            return read
        if not await build.done(until - monotonic()):
            # The build has used up the time limit. The pull gets a new one, so that the page has at least the reader's
            # own tweets.
            read.until = _build_wait_deadline()
            read.partial = True
            return read.with_home(build.so_far(self._rules.mode), PULLED)
        if build.home is None:
            return read
        return read.with_home(build.home, BUILT if build.installed else PULLED)

    def merge(self, snapshot: HomeSnapshot, bound: int, depth: int) -> DescendingMerge:
        """Returns the merge of stored and pulled ids below `bound` (0: from the newest), unfiltered. `depth` is the
        number of ids per author in its first batch. At the time `snapshot.until` the merge ends, even if older ids
        exist."""
        source = self._puller.reading_for(snapshot.reader, snapshot.own)
        authors = snapshot.all_authors()
        return DescendingMerge(
            source, snapshot.home, list(self.pulled(snapshot)), authors, bound, depth, snapshot.until, source.known
        )

    def pulled(self, snapshot: HomeSnapshot) -> Mapping[int, Source]:
        """Returns the authors that are pulled in addition to the home timeline, with the reason for each. Returns none if
        there is no home timeline, because then all authors are pulled."""
        if snapshot.home is None:
            return {}
        return self._rules.pulled(snapshot.reader, snapshot.relations, self._tiers, snapshot.home)

    def _decidable(self) -> bool:
        """Returns whether it is known which authors must be pulled. In timeline mode `hybrid` this needs current
        tiers."""
        return self._rules.mode != HYBRID or self._tiers.fresh()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


class _BatchesFrom:
    """The batches of a merge whose first batch was read already."""

    __slots__ = ("_first", "_rest")

    def __init__(self, first: IdBatch, rest: DescendingMerge) -> None:
        self._first: IdBatch | None = first
        self._rest = rest

    def __aiter__(self) -> _BatchesFrom:
        return self

    async def __anext__(self) -> IdBatch:
        """Returns the next batch. Raises what the merge raises."""
        first, self._first = self._first, None
        return await anext(self._rest) if first is None else first


def _home_page(page: FilledPage, served: int, snapshot: HomeSnapshot, is_partial: bool, is_reused: bool) -> HomePage:
    bound = 0 if served + len(page.tweets) >= MAX_ENTRIES else page.next_position
    return HomePage(page.tweets, bound, is_partial, _TRAILERS[snapshot.label], is_reused)


def _build_wait_deadline() -> float:
    """Returns the time on the monotonic clock, in seconds, until which a read may wait for a build or a pull: BUILD_WAIT_S,
    but RESPONSE_RESERVE_S less than the deadline of the call."""
    now = monotonic()
    return max(min(now + BUILD_WAIT_S, context.current().deadline - RESPONSE_RESERVE_S), now)
