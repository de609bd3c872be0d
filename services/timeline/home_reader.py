"""Reads a home timeline: merges pushed and pulled ids, filters them for the reader, and cuts pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from services.platform.rpc import context
from services.shared.celebrity_tiers import CelebritySubscriber
from services.shared.hydration.hydrator import HydratedTweet, Hydrator, RelationsChangedError
from services.timeline.fanout_rules import HYBRID, PULL, FanoutRules, Source
from services.timeline.followees import FolloweeCache, FolloweeSet
from services.timeline.home_builder import HomeBuilder
from services.timeline.pull import DescendingMerge, Puller
from services.timeline.store import HomeList, HomeTimelineStore

# The newest entries that a reader can see, over all pages.
MAX_ENTRIES = 800
# How long a page waits for a build or a pull before it shows what is there.
BUILD_WAIT_S = 2.0
# Reserved from the call's deadline to hydrate and send the page.
RESPONSE_RESERVE_S = 0.25
# Ids read beyond the page: some are hidden, and one more shows whether there is a next page.
SPARE = 5
# Ids hydrated per call; the time is checked between calls.
FILTER_BATCH = 300

WARM, BUILT, PULLED = "warm", "built", "pull"


@dataclass(slots=True)
class HomeSnapshot:
    """The state that one read works on. `home` is None if everything is pulled; `label` becomes the trailer
    `roost-timeline`."""

    reader: int
    relations: FolloweeSet
    home: HomeList | None
    pulled: Mapping[int, Source]
    label: str
    # Event loop time after which the read continues with what it has.
    until: float
    # True if the time limit cut the result short.
    partial: bool = False

    def all_authors(self) -> Sequence[int]:
        """Returns every author whose tweets may appear: the reader and all followees."""
        return [self.reader, *self.relations.followees]


@dataclass(frozen=True, slots=True)
class HomePage:
    """One page. The next one begins below `bound` (exclusive); 0 and not partial means that there is none."""

    entries: Sequence[HydratedTweet]
    bound: int
    label: str
    partial: bool


class HomeReader:
    """Reads home timelines. Raises AioRpcError if an owner cannot answer: no tweet is shown without its visibility
    check."""

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
            # First tries with the follows that were cached at the last read, which rarely change. Hydration calls the
            # graph service in any case and checks their version, so no call is needed only for that.
            try:
                page = await self._page(await self.snapshot(reader, known), bound, served, size, known.version)
            except RelationsChangedError:
                page = None
            # An empty page may never have asked graph, so the version was not verified.
            if page is not None and page.entries:
                return page
        return await self._page(await self.snapshot(reader), bound, served, size, None)

    async def _page(
        self, snapshot: HomeSnapshot, bound: int, served: int, size: int, expected_relation_version: int | None
    ) -> HomePage:
        wanted = min(size, MAX_ENTRIES - served)
        merge = self.merge(snapshot, bound, size + SPARE)
        shown: list[HydratedTweet] = []
        reached = 0
        while len(shown) <= wanted and (round_ := await merge.next()) is not None:
            reached = round_.frontier
            # One entry beyond the page shows whether there is a next one.
            if (
                left_at := await self._fill(snapshot, round_.ids, wanted + 1, shown, expected_relation_version)
            ) is not None:
                reached = left_at
                break
        if len(shown) > wanted:
            del shown[wanted:]
            reached = shown[-1].id
        if served + len(shown) >= MAX_ENTRIES:
            reached = 0
        return HomePage(shown, reached, snapshot.label, snapshot.partial or merge.partial)

    async def _fill(
        self,
        snapshot: HomeSnapshot,
        ids: Sequence[int],
        wanted: int,
        shown: list[HydratedTweet],
        expected_relation_version: int | None,
    ) -> int | None:
        """Appends visible tweets to `shown` until it holds `wanted`. Returns the last id examined if time ran out, else
        None."""
        for start in range(0, len(ids), FILTER_BATCH):
            if start and _out_of_time(snapshot):
                return ids[start - 1]
            shown += await self.visible(
                snapshot, ids[start : start + FILTER_BATCH], wanted - len(shown), expected_relation_version
            )
            if len(shown) >= wanted:
                break
        return None

    async def visible(
        self, snapshot: HomeSnapshot, ids: Sequence[int], limit: int, expected_relation_version: int | None = None
    ) -> list[HydratedTweet]:
        """Returns the first `limit` of the ids that the home timeline shows, hydrated. The only place that decides
        this."""
        if not ids:
            return []
        followees = snapshot.relations.followees
        return await self._hydrator.visible(
            snapshot.reader,
            ids,
            hide_muted=True,
            following=followees,
            expected_relation_version=expected_relation_version,
            limit=limit,
        )

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
            # The pull gets a time limit of its own, so that at least the reader's own tweets are found.
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
            source, snapshot.home, list(snapshot.pulled), snapshot.all_authors, bound, depth, snapshot.until
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


def _out_of_time(snapshot: HomeSnapshot) -> bool:
    return monotonic() >= snapshot.until
