"""Reads pages of home timelines: merges stored and pulled ids, newest first, and leaves out tweets that the reader may
not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import monotonic
from typing import NamedTuple

from services.platform.rpc import context
from services.shared.celebrity_tiers import CelebritySubscriber
from services.shared.hydration.fill_page import fill_page
from services.shared.hydration.hydrator import HydratedTweet, Hydrator
from services.timeline.fanout_rules import HYBRID, PULL, FanoutRules, Source
from services.timeline.followees import FolloweeCache, FolloweeSet
from services.timeline.home.builder import HomeBuilder
from services.timeline.home.rules import HomeRules
from services.timeline.pull import DescendingMerge, Puller
from services.timeline.store import HomeList, HomeTimelineStore

# Maximum number of entries of a home timeline, over all its pages. Older tweets are not shown.
MAX_ENTRIES = 800
# Maximum seconds that a page waits for a build or a pull. Then the page is made from the ids read so far.
BUILD_WAIT_S = 2.0
# The wait for a build or a pull ends at least this many seconds before the call's deadline: they are left to hydrate
# and send the page.
RESPONSE_RESERVE_S = 0.25
# Number of ids read in addition to the page size, because filters remove some, and one visible id more shows that a
# next page exists.
SPARE = 5

# How a page was read: from a warm home timeline, from one that was built during the call, without a stored one.
WARM, BUILT, PULLED = "warm", "built", "pull"


@dataclass(slots=True)
class HomeSnapshot:
    """The home timeline and the followees that one read uses.

    `home` is None if all authors are pulled. `pulled` contains the authors that are pulled in addition to `home`, with
    the reason for each. `label` is WARM, BUILT or PULLED.
    """

    reader: int
    relations: FolloweeSet
    home: HomeList | None
    pulled: Mapping[int, Source]
    label: str
    # The time on the monotonic clock, in seconds, at which the read stops waiting for ids and continues with those it
    # has.
    until: float
    # True if the build did not end in time, so that `home` may lack ids.
    partial: bool = False

    def all_authors(self) -> Iterator[int]:
        """Returns every author whose tweets the home timeline may show: the reader and all followees."""
        return chain((self.reader,), self.relations.followees)


class HomePage(NamedTuple):
    """One page. The next page begins below the tweet id `bound` (exclusive). If `bound` is 0, this is the last page,
    unless `partial` is true: then tweets may be missing, and the caller must request the same page again."""

    entries: Sequence[HydratedTweet]
    bound: int
    label: str
    partial: bool


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

    async def page(self, reader: int, bound: int, served: int, size: int) -> HomePage:
        """Returns up to `size` entries, newest first, whose tweet ids are below `bound` (0: from the newest). `served`
        is the number of entries on the earlier pages; after MAX_ENTRIES in all there is no next page."""
        snapshot = await self.snapshot(reader)
        wanted = min(size, MAX_ENTRIES - served)
        merge = self.merge(snapshot, bound, size + SPARE)
        page = await fill_page(merge, partial(self.visible, snapshot), wanted, snapshot.until)
        reached = 0 if served + len(page.tweets) >= MAX_ENTRIES else page.next_position
        is_partial = snapshot.partial or merge.partial
        return HomePage(page.tweets, reached, snapshot.label, is_partial)

    async def visible(self, snapshot: HomeSnapshot, ids: Sequence[int], limit: int) -> list[HydratedTweet]:
        """Hydrates the first `limit` of the ids that the home timeline may show to the reader. Pages and explanations
        use no other filter."""
        rules = HomeRules(snapshot.reader, snapshot.relations.followees)
        return await self._hydrator.visible(snapshot.reader, ids, limit, hide_muted=True, rules=rules)

    async def snapshot(self, reader: int) -> HomeSnapshot:
        """Returns what a read of the home timeline starts from: the warm home timeline, one that is built now, or none
        if all authors are to be pulled."""
        until = _build_wait_deadline()
        relations = await self._relations.current(reader)
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
            # The build has used up the time limit. The pull gets a new one, so that the page has at least the reader's
            # own tweets.
            snapshot = self._warm_snapshot(
                reader, relations, build.so_far(self._rules.mode), PULLED, _build_wait_deadline()
            )
            snapshot.partial = True
            return snapshot
        if build.home is None:
            return everything_pulled
        return self._warm_snapshot(reader, relations, build.home, BUILT if build.installed else PULLED, until)

    def merge(self, snapshot: HomeSnapshot, bound: int, depth: int) -> DescendingMerge:
        """Returns the merge of stored and pulled ids below `bound` (0: from the newest), unfiltered. `depth` is the
        number of ids per author in its first batch. At the time `snapshot.until` the merge ends, even if older ids
        exist."""
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
        """Returns whether it is known which authors must be pulled. In timeline mode `hybrid` this needs current
        tiers."""
        return self._rules.mode != HYBRID or self._tiers.fresh()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _build_wait_deadline() -> float:
    """Returns the time on the monotonic clock, in seconds, until which a read may wait for a build or a pull: BUILD_WAIT_S,
    but RESPONSE_RESERVE_S less than the deadline of the call."""
    now = monotonic()
    return max(min(now + BUILD_WAIT_S, context.current().deadline - RESPONSE_RESERVE_S), now)
