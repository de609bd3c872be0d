"""Reads a home timeline: merges pushed and pulled ids, filters them for the reader, and cuts pages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import monotonic
from typing import NamedTuple

from services.platform.rpc import context
from services.shared.celebrity_tiers import CelebritySubscriber
from services.shared.hydration.fill_page import fill_page
from services.shared.hydration.hydrator import HydratedTweet, Hydrator, VisibleTweets
from services.timeline.fanout_rules import HYBRID, PULL, FanoutRules, Source
from services.timeline.followees import FolloweeCache, FolloweeSet
from services.timeline.home.builder import HomeBuilder
from services.timeline.home.rules import HomeRules
from services.timeline.pull import DescendingMerge, Puller
from services.timeline.store import HomeList, HomeTimelineStore

# The newest entries that a reader can see, over all pages.
MAX_ENTRIES = 800
# Seconds that a page waits for a build or a pull. Then it returns the ids read so far.
BUILD_WAIT_S = 2.0
# Seconds of the call's deadline that are reserved to hydrate and send the page.
RESPONSE_RESERVE_S = 0.25
# Ids read in addition to a page's: filters hide some ids, and one more id shows whether there is a next page.
SPARE = 5

WARM, BUILT, PULLED = "warm", "built", "pull"


@dataclass(slots=True)
class HomeSnapshot:
    """The home timeline and followees that one read uses. `home` is None if all authors are pulled; `label` is sent as
    the trailing metadata `roost-timeline`."""

    reader: int
    relations: FolloweeSet
    home: HomeList | None
    pulled: Mapping[int, Source]
    label: str
    # Event loop time after which the read continues with the ids read so far.
    until: float
    # True if the time limit cut the result short.
    partial: bool = False

    def all_authors(self) -> Iterator[int]:
        """Returns every author whose tweets may appear: the reader and all followees."""
        return chain((self.reader,), self.relations.followees)


class HomePage(NamedTuple):
    """One page. The next one begins below `bound` (exclusive); 0 and not partial means that there is none."""

    entries: Sequence[HydratedTweet]
    bound: int
    label: str
    partial: bool
    # The relation versions by which graph filtered the entries; empty if graph was not asked.
    relation_versions: Collection[int]


class HomeReader:
    """Reads home timelines. Raises AioRpcError if graph, tweet or identity does not answer: no tweet is shown without
    its visibility check."""

    def __init__(
        self,
        store: HomeTimelineStore,
        builds: HomeBuilder,
        relations: FolloweeCache,
        puller: Puller,
        hydrator: Hydrator,
        tiers: CelebritySubscriber,
        rules: FanoutRules,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._builds = builds
        self._relations = relations
        self._puller = puller
        self._hydrator = hydrator
        self._tiers = tiers
        self._rules = rules
        self._clock = clock

    async def page(self, reader: int, bound: int, served: int, size: int) -> HomePage:
        """Returns up to `size` entries below `bound` (0: from the newest), when `served` entries were shown on earlier
        pages."""
        known = self._relations.known(reader)
        if known is not None:
            # First reads with the followees cached at the last read, which rarely change. Hydration calls graph in any
            # case and returns the relation version, which shows whether the followees were current without a call of
            # its own.
            page = await self._page(await self.snapshot(reader, known), bound, served, size)
            # For an empty page hydration does not call graph. Then no version is returned, and the cached followees are
            # unverified.
            if page.relation_versions == {known.version}:
                return page
        return await self._page(await self.snapshot(reader), bound, served, size)

    async def _page(self, snapshot: HomeSnapshot, bound: int, served: int, size: int) -> HomePage:
        wanted = min(size, MAX_ENTRIES - served)
        merge = self.merge(snapshot, bound, size + SPARE)
        page = await fill_page(merge, partial(self.visible, snapshot), wanted, snapshot.until)
        reached = 0 if served + len(page.tweets) >= MAX_ENTRIES else page.next_position
        is_partial = snapshot.partial or merge.partial
        return HomePage(page.tweets, reached, snapshot.label, is_partial, page.relation_versions)

    async def visible(self, snapshot: HomeSnapshot, ids: Sequence[int], limit: int) -> VisibleTweets:
        """Returns the first `limit` of the ids that the reader may see in the home timeline, hydrated. Pages and
        explanations use no other filter."""
        rules = HomeRules(snapshot.reader, snapshot.relations.followees)
        return await self._hydrator.visible(snapshot.reader, ids, limit, hide_muted=True, rules=rules)

    async def snapshot(self, reader: int, known: FolloweeSet | None = None) -> HomeSnapshot:
        """Returns the home timeline's current state: warm, built for this read, or to be pulled.

        Without `known` it fetches the current followees; the caller must verify the version of `known`.
        """
        until = _build_wait_deadline()
        relations = known or await self._relations.current(reader)
        everything_pulled = HomeSnapshot(reader, relations, None, {}, PULLED, until)
        if self._rules.mode == PULL or not self._decidable():
            return everything_pulled
        home = await self._store.read(reader)
        if home is not None:
            if self._rules.usable(home, relations, self._now_ms()):
                return self._warm_snapshot(reader, relations, home, WARM, until)
            await self._store.drop(reader)
        build = self._builds.get_or_start(reader)
        if build is None:
            return everything_pulled
        if not await build.done(until - monotonic()):
            # The pull gets a new time limit, so that at least the reader's own tweets are read after a slow build.
            snapshot = self._warm_snapshot(
                reader, relations, build.so_far(self._rules.mode), PULLED, _build_wait_deadline()
            )
            snapshot.partial = True
            return snapshot
        if build.home is None:
            return everything_pulled
        return self._warm_snapshot(reader, relations, build.home, BUILT if build.installed else PULLED, until)

    def merge(self, snapshot: HomeSnapshot, bound: int, depth: int) -> DescendingMerge:
        """Returns the merge of all sources downwards from `bound`, unfiltered. It ends early, at a frontier above 0, if
        time runs out."""
        source = self._puller.reading_for(snapshot.reader)
        return DescendingMerge(
            source, snapshot.home, list(snapshot.pulled), snapshot.all_authors(), bound, depth, snapshot.until
        )

    def _warm_snapshot(
        self, reader: int, relations: FolloweeSet, home: HomeList, label: str, until: float
    ) -> HomeSnapshot:
        return HomeSnapshot(
            reader, relations, home, self._rules.pulled(reader, relations, self._tiers, home), label, until
        )

    def _decidable(self) -> bool:
        return self._rules.mode != HYBRID or self._tiers.fresh()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _build_wait_deadline() -> float:
    now = monotonic()
    return max(min(now + BUILD_WAIT_S, context.current().deadline - RESPONSE_RESERVE_S), now)
