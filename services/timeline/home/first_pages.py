"""Caches the first pages of home timelines, each until something that it shows changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from services.platform.caching.generational import GenerationalCache
from services.platform.versions import Versioned, Versions
from services.shared.hydration.cache import HydratedTweet
from services.shared.hydration.fill_page import IdBatch
from services.shared.hydration.readers import ReaderView
from services.timeline.followees import FolloweeSet
from services.timeline.pull import OwnIds
from services.timeline.store import HomeList

# Size of the pages in each of the two generations, in ids of about 100 bytes: at most 400 MB in all, beside the tweets,
# which all readers share. It is twice that of the cache of followees: a page is not found without its followees there.
MAX_IDS = 2_000_000
# Size of a page beside the reader's followees, whom it keeps in memory: 8 bytes for each of 800 ids of the home timeline,
# and 1.5 kB.
PAGE_IDS = 80
# Maximum number of new ids that are put before a cached page. With more, most of the page is new.
MAX_NEW_IDS = 8
# Maximum number of ids of a page that is extended by new ones. The number grows if most new tweets are hidden from the
# reader.
MAX_LOOKED_AT = 200

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


class FirstPage(NamedTuple, Generic[P]):
    """A first page, and what it was made of.

    `newest` is the first batch of the home timeline's ids, merged of `sources`; these are None if other authors than the
    reader were pulled. `ids` are the ids that were looked at, newest first, and `parts` their tweets, hidden ones included.
    `visible` are those that the reader may see: one more than the page shows, if the page is full. `page` is the caller's
    own.
    """

    view: ReaderView
    relations: FolloweeSet
    sources: PageSources | None
    newest: IdBatch
    ids: Sequence[int]
    parts: Sequence[Versioned[Any]]
    visible: Sequence[HydratedTweet]
    page: P

    def has_sources(self, sources: PageSources | None) -> bool:
        """Returns whether the page was made of these sources; False if they are None."""
        return sources is not None and self.sources is not None and sources.same_as(self.sources)

    def new_ids(self, newest: IdBatch) -> Sequence[int] | None:
        """Returns the ids that `newest` has in addition, if they are all newer than those of this page and at most
        MAX_NEW_IDS; otherwise None. Also returns None if more than MAX_LOOKED_AT ids were looked at for this page."""
        ids, known = newest.ids, self.newest.ids
        if len(self.ids) > MAX_LOOKED_AT:
            return None
        for count in range(min(len(ids), MAX_NEW_IDS + 1)):
            if known and ids[count] == known[0]:
                rest = ids[count:]
                return ids[:count] if rest == known[: len(rest)] else None
        return None

    def followed_by(self, hydrated: Sequence[HydratedTweet], size: int) -> Sequence[HydratedTweet] | None:
        """Returns the visible tweets, `size` + 1 of them, if the `hydrated` tweets are put before those of this page.
        Returns None if there are not so many: then older ids must be read."""
        visible = [*hydrated, *self.visible][: size + 1]
        return visible if len(visible) > size else None


class FirstPages(Generic[P]):
    """Caches one page per reader and page size.

    A cached page is true if it would be made of the same ids, for the same view and the same followees of the reader, from
    the same versions of the tweets. `current` compares the latter three before each use; the caller compares the sources
    or the ids. The view alone does not show that the followees are the same: they may change between the loads of both.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._pages: GenerationalCache[tuple[int, int], FirstPage[P]] = GenerationalCache(
            MAX_IDS, lambda page: PAGE_IDS + len(page.relations.followees)
        )

    async def current(self, view: ReaderView, relations: FolloweeSet, size: int) -> FirstPage[P] | None:
        """Returns the cached page of `size` tweets if it was made for this view and these followees, and none of its
        tweets has changed; otherwise None."""
        cached = self._pages.get((view.reader_id, size))
        if cached is None or cached.relations is not relations or not cached.view.equals(view):
            return None
        return None if False in await self._versions.current(cached.parts) else cached

    def put(self, size: int, page: FirstPage[P]) -> None:
        """Caches a page of `size` tweets."""
        self._pages.put((page.view.reader_id, size), page)
