"""Reading a home: pushed ids and pulled ids, merged, filtered for the reader, page by page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from services.platform.rpc import context
from services.shared.celebrity_tiers import CelebritySubscriber
from services.shared.hydration.hydrator import HydratedTweet, Hydrator, RelationsChangedError
from services.timeline.fanout_rules import HYBRID, PULL, FanoutRules, Source
from services.timeline.followees import RelationCache, Relations
from services.timeline.home_builder import HomeBuilder
from services.timeline.pull import DescendingMerge, Puller
from services.timeline.store import HomeList, HomeTimelineStore

# The newest that a reader may see, over all pages.
MAX_ENTRIES = 800
# How long a page waits for a build, or for a pull; then it shows what is there.
BUILD_WAIT_S = 2.0
# Left of a call's deadline to join and send what was found.
RESPONSE_RESERVE_S = 0.25
# Asked beyond the page: some are hidden, and one more tells whether there is a next page.
SPARE = 5
# Between looks at the clock; what the hydrator asks its owners at once.
FILTER_AT_ONCE = 300

WARM, BUILT, PULLED = "warm", "built", "pull"


@dataclass(slots=True)
class HomeSnapshot:
    """What one read of a home looks at. `home` is None where everything is pulled; `label` is what `roost-timeline` says."""

    reader: int
    relations: Relations
    home: HomeList | None
    pulled: Mapping[int, Source]
    label: str
    # The loop's time at which the read goes on with what it has.
    until: float
    # There would be more here, had there been more time.
    partial: bool = False

    def everyone(self) -> Sequence[int]:
        """Every author whose tweets may be here."""
        return [self.reader, *self.relations.followees]


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `bound` is where the next one begins (exclusive; 0 and not partial: there is none)."""

    entries: Sequence[HydratedTweet]
    bound: int
    label: str
    partial: bool


class HomeReader:
    """Reads homes. Raises AioRpcError where an owner cannot answer: nothing is shown unchecked."""

    def __init__(
        self,
        store: HomeTimelineStore,
        builds: HomeBuilder,
        relations: RelationCache,
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

    async def page(self, reader: int, bound: int, served: int, size: int) -> Page:
        """Up to `size` entries below `bound` (0: from the newest on), when `served` were shown on the pages before."""
        known = self._relations.known(reader)
        if known is not None:
            # Mostly nobody was followed since the last read: then hydration, which asks graph anyway, confirms the version, and
            # a call is saved.
            try:
                page = await self._page(await self.view(reader, known), bound, served, size, known.version)
            except RelationsChangedError:
                page = None
            # Where nothing was shown, perhaps nothing was asked.
            if page is not None and page.entries:
                return page
        return await self._page(await self.view(reader), bound, served, size, None)

    async def _page(
        self, view: HomeSnapshot, bound: int, served: int, size: int, expected_relation_version: int | None
    ) -> Page:
        wanted = min(size, MAX_ENTRIES - served)
        walk = self.walk(view, bound, size + SPARE)
        shown: list[HydratedTweet] = []
        reached = 0
        while len(shown) <= wanted and (round_ := await walk.next()) is not None:
            reached = round_.frontier
            # One beyond the page tells whether there is a next one.
            if (
                left_at := await self._fill(view, round_.ids, wanted + 1, shown, expected_relation_version)
            ) is not None:
                reached = left_at
                break
        if len(shown) > wanted:
            del shown[wanted:]
            reached = shown[-1].id
        if served + len(shown) >= MAX_ENTRIES:
            reached = 0
        return Page(shown, reached, view.label, view.partial or walk.partial)

    async def _fill(
        self,
        view: HomeSnapshot,
        ids: Sequence[int],
        wanted: int,
        shown: list[HydratedTweet],
        expected_relation_version: int | None,
    ) -> int | None:
        """Adds what may be seen of the ids until there are `wanted`. Out of time it returns the id it got to, else None."""
        for start in range(0, len(ids), FILTER_AT_ONCE):
            if start and _out_of_time(view):
                return ids[start - 1]
            shown += await self.visible(
                view, ids[start : start + FILTER_AT_ONCE], wanted - len(shown), expected_relation_version
            )
            if len(shown) >= wanted:
                break
        return None

    async def visible(
        self, view: HomeSnapshot, ids: Sequence[int], limit: int, expected_relation_version: int | None = None
    ) -> list[HydratedTweet]:
        """The first `limit` of the ids that the home shows: the one place where that is decided."""
        if not ids:
            return []
        followees = view.relations.followees
        return await self._hydrator.visible(
            view.reader,
            ids,
            hide_muted=True,
            following=followees,
            expected_relation_version=expected_relation_version,
            limit=limit,
        )

    async def view(self, reader: int, known: Relations | None = None) -> HomeSnapshot:
        """The home as it stands: warm, built for this read, or to be pulled. By the relations as they are now, or by those `known`,
        which somebody has yet to confirm."""
        until = _patience_until()
        relations = known or await self._relations.current(reader)
        everything_pulled = HomeSnapshot(reader, relations, None, {}, PULLED, until)
        if self._rules.mode == PULL or not self._decidable():
            return everything_pulled
        home = await self._store.read(reader)
        if home is not None:
            if self._rules.usable(home, relations, self._now_ms()):
                return self._listed(reader, relations, home, WARM, until)
            await self._store.drop(reader)
        build = self._builds.join(reader)
        if build is None:
            return everything_pulled
        if not await build.done(until - monotonic()):
            # The rest gets a time of its own: the reader's own tweets at least.
            view = self._listed(reader, relations, build.so_far(self._rules.mode), PULLED, _patience_until())
            view.partial = True
            return view
        if build.home is None:
            return everything_pulled
        return self._listed(reader, relations, build.home, BUILT if build.installed else PULLED, until)

    def walk(self, view: HomeSnapshot, bound: int, depth: int) -> DescendingMerge:
        """The way down the view from `bound`, unfiltered. It ends early, at a frontier above 0, when time runs out."""
        source = self._puller.reading_for(view.reader)
        return DescendingMerge(source, view.home, list(view.pulled), view.everyone, bound, depth, view.until)

    def _listed(self, reader: int, relations: Relations, home: HomeList, label: str, until: float) -> HomeSnapshot:
        return HomeSnapshot(
            reader, relations, home, self._rules.pulled(reader, relations, self._tiers, home), label, until
        )

    def _decidable(self) -> bool:
        return self._rules.mode != HYBRID or self._tiers.fresh()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _patience_until() -> float:
    now = monotonic()
    return max(min(now + BUILD_WAIT_S, context.current().deadline - RESPONSE_RESERVE_S), now)


def _out_of_time(view: HomeSnapshot) -> bool:
    return monotonic() >= view.until
