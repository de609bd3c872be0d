"""Caches the first pages of home timelines, each until something that it shows changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from services.platform.caching.generational import GenerationalCache
from services.platform.versions import Versioned, Versions
from services.shared.hydration.fill_page import IdBatch
from services.shared.hydration.readers import ReaderView
from services.timeline.followees import FolloweeSet
from services.timeline.pull import OwnIds
from services.timeline.store import HomeList

# Pages in each of the two generations: about 1.5 kB each beside the tweets, which all readers share, so 75 MB in all.
MAX_PAGES = 25_000

P = TypeVar("P")


class PageSources(NamedTuple):
    """The objects of which the ids of a first page are merged, if the reader is the only author who is pulled. None of
    them changes, so the same objects give the same ids. The followees and the tiers of version `tiers_version` decide who
    is pulled."""

    home: HomeList
    relations: FolloweeSet
    own: OwnIds
    tiers_version: int

    def same_as(self, other: PageSources) -> bool:
        """Returns whether all objects are identical."""
        return (
            self.home is other.home
            and self.own is other.own
            and self.relations is other.relations
            and self.tiers_version == other.tiers_version
        )


class _Cached(NamedTuple, Generic[P]):
    view: ReaderView
    sources: PageSources | None
    newest: IdBatch
    parts: Sequence[Versioned[Any]]
    page: P


class FirstPages(Generic[P]):
    """Caches one page per reader and page size.

    A cached page is true if it would be made of the same ids, for the same view of the reader, from the same versions of
    the tweets. All three are compared before each use.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._pages: GenerationalCache[tuple[int, int], _Cached[P]] = GenerationalCache(MAX_PAGES)

    async def from_sources(self, view: ReaderView, sources: PageSources, size: int) -> P | None:
        """Returns the cached page of `size` tweets if it is true for the current `view` and was made of the current
        `sources`; otherwise None. It may still be true then: read the ids, and call `from_ids`."""
        cached = self._pages.get((view.reader_id, size))
        if cached is None or cached.sources is None or not sources.same_as(cached.sources):
            return None
        return await self._if_true(cached, view)

    async def from_ids(self, view: ReaderView, newest: IdBatch, size: int) -> P | None:
        """Returns the cached page of `size` tweets if it is true for the current `view` and the current `newest` ids of
        the home timeline; otherwise None."""
        cached = self._pages.get((view.reader_id, size))
        return None if cached is None or cached.newest != newest else await self._if_true(cached, view)

    def put(
        self,
        view: ReaderView,
        sources: PageSources | None,
        newest: IdBatch,
        size: int,
        parts: Sequence[Versioned[Any]],
        page: P,
    ) -> None:
        """Caches a page that was made of no other ids than `newest`. They were merged of `sources`; None if other authors
        than the reader were pulled. `parts` are all tweets that were looked at for it, hidden ones included."""
        self._pages.put((view.reader_id, size), _Cached(view, sources, newest, parts, page))

    async def _if_true(self, cached: _Cached[P], view: ReaderView) -> P | None:
        if not cached.view.equals(view) or False in await self._versions.current(cached.parts):
            return None
        return cached.page
