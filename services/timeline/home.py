"""Reading a home: pushed ids and pulled ids, merged, filtered for the reader, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.common import context
from services.common.hydrate import Hydrator, Joined
from services.common.tiers import Tiers
from services.timeline.builds import Builds
from services.timeline.plan import HYBRID, PULL, Rules, Source
from services.timeline.pull import AuthorIds, Puller, Round, rounds
from services.timeline.relations import RelationCache, Relations
from services.timeline.store import HomeList, HomeTimelineStore

# The newest that a reader may see, over all pages.
MAX_ENTRIES = 800
# How long a page waits for a build, or for a pull; then it shows what is there.
PATIENCE_S = 2.0
# Left of a call's deadline to join and send what was found.
ANSWER_S = 0.25
# Asked beyond the page: some are hidden, and one more tells whether there is a next page.
SPARE = 5

WARM, BUILT, PULLED = "warm", "built", "pull"


@dataclass(slots=True)
class View:
    """What one read of a home looks at. `home` is None where everything is pulled; `label` is what `roost-timeline` says."""

    reader: int
    relations: Relations
    home: HomeList | None
    pulled: Mapping[int, Source]
    label: str
    # There would be more here, had there been more time.
    partial: bool = False

    def everyone(self) -> Sequence[int]:
        """Every author whose tweets may be here."""
        return [self.reader, *self.relations.followees]


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `bound` is where the next one begins (exclusive; 0 and not partial: there is none)."""

    entries: Sequence[Joined]
    bound: int
    label: str
    partial: bool


class HomeReader:
    """Reads homes. Raises AioRpcError where an owner cannot answer: nothing is shown unchecked."""

    def __init__(
        self,
        store: HomeTimelineStore,
        builds: Builds,
        relations: RelationCache,
        puller: Puller,
        hydrator: Hydrator,
        tiers: Tiers,
        rules: Rules,
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
        wanted = min(size, MAX_ENTRIES - served)
        view = await self.view(reader)
        shown: list[Joined] = []
        reached = 0
        async with aclosing(self.walk(view, bound, size + SPARE)) as walk:
            async for ids, reached in walk:  # noqa: B007 (read after the loop)
                # One beyond the page tells whether there is a next one.
                shown += await self.visible(view, ids, wanted + 1 - len(shown))
                if len(shown) > wanted:
                    break
        if len(shown) > wanted:
            del shown[wanted:]
            reached = shown[-1].id
        if served + len(shown) >= MAX_ENTRIES:
            reached = 0
        return Page(shown, reached, view.label, view.partial)

    async def visible(self, view: View, ids: Sequence[int], limit: int) -> list[Joined]:
        """The first `limit` of the ids that the home shows: the one place where that is decided."""
        if not ids:
            return []
        followees = view.relations.followees
        return await self._hydrator.visible(view.reader, ids, hide_muted=True, following=followees, limit=limit)

    async def view(self, reader: int) -> View:
        """The home as it stands: warm, built for this read, or to be pulled."""
        relations = await self._relations.current(reader)
        if self._rules.mode == PULL or not self._decidable():
            return View(reader, relations, None, {}, PULLED)
        home = await self._store.read(reader)
        if home is not None:
            if self._rules.usable(home, relations, self._now_ms()):
                return self._listed(reader, relations, home, WARM)
            await self._store.drop(reader)
        build = self._builds.join(reader)
        if build is None:
            return View(reader, relations, None, {}, PULLED)
        if not await build.done(_patience_s()):
            view = self._listed(reader, relations, build.so_far(self._rules.mode), PULLED)
            view.partial = True
            return view
        if build.home is None:
            return View(reader, relations, None, {}, PULLED)
        return self._listed(reader, relations, build.home, BUILT if build.installed else PULLED)

    async def walk(self, view: View, bound: int, depth: int) -> AsyncGenerator[Round]:
        """The ids of the view below `bound`, unfiltered, by rounds. Ends early, its last frontier not 0, when time runs out.

        Where even the first round is not done in time, it gives what is there, and the view is partial.
        """
        source = _InTime(self._puller.reading_for(view.reader), _patience_s())
        async with aclosing(rounds(source, view.home, list(view.pulled), view.everyone, bound, depth)) as found:
            first = True
            async for round_ in found:
                if source.late:
                    view.partial = view.partial or first
                    if first:
                        yield round_
                    return
                yield round_
                first = False

    def _listed(self, reader: int, relations: Relations, home: HomeList, label: str) -> View:
        return View(reader, relations, home, self._rules.pulled(reader, relations, self._tiers, home), label)

    def _decidable(self) -> bool:
        return self._rules.mode != HYBRID or self._tiers.fresh()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _patience_s() -> float:
    left = context.current().deadline - asyncio.get_running_loop().time() - ANSWER_S
    return max(min(PATIENCE_S, left), 0.0)


class _InTime:
    """A source that gives up after a while: `late` says so, and what was found until then stands."""

    def __init__(self, source: AuthorIds, seconds: float) -> None:
        self._source = source
        self._until = asyncio.get_running_loop().time() + seconds
        self.late = False

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        try:
            async with asyncio.timeout_at(self._until):
                await self._source.newest(authors, before_id, depth, found)
        except TimeoutError:
            self.late = True
