"""The cache of first pages: a page is found only while everything that it was made of is the same."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from services.platform.versions import Kind, Versioned, VersionPublisher, key_of
from services.shared.hydration.cache import ReaderFilter, ReaderStates
from services.shared.hydration.fill_page import IdBatch
from services.shared.hydration.readers import ReaderView
from services.timeline.followees import FolloweeSet
from services.timeline.home.first_pages import FirstPages, PageSources
from services.timeline.store import HomeList
from tests.versions import all_versions

READER, TWEET, SIZE = 7, 50, 20
PAGE = "the page"


class Read:
    """What one read of a home timeline finds."""

    def __init__(self) -> None:
        versions, self.publisher = all_versions()
        self.pages: FirstPages[str] = FirstPages(versions)
        self.filter, self.states = ReaderFilter(), ReaderStates()
        self.home = HomeList(array("q", [TWEET]), 0, 0, "hybrid")
        self.relations = FolloweeSet([(1, 2)])
        self.own = array("q", [40])
        self.tiers_version = 3
        self.newest = IdBatch([TWEET, 40], 0)
        keys = (key_of(Kind.TWEET, TWEET),)
        self.part: Versioned[None] = Versioned(keys, versions.snapshot().stamp(keys), None)

    @property
    def view(self) -> ReaderView:
        return ReaderView(READER, self.filter, self.states)

    @property
    def sources(self) -> PageSources:
        return PageSources(self.home, self.relations, self.own, self.tiers_version)

    def put(self, sources: PageSources | None) -> None:
        self.pages.put(self.view, sources, self.newest, SIZE, (self.part,), PAGE)

    async def found(self) -> tuple[str | None, str | None]:
        """Returns what the cache has for the sources, and for the ids."""
        return (
            await self.pages.from_sources(self.view, self.sources, SIZE),
            await self.pages.from_ids(self.view, self.newest, SIZE),
        )


def _edit_tweet(publisher: VersionPublisher) -> None:
    publisher.changed([key_of(Kind.TWEET, TWEET)])


# Changes after which the page must be made anew.
CHANGES: dict[str, Callable[[Read], object]] = {
    "tweet": lambda read: _edit_tweet(read.publisher),
    "filter": lambda read: setattr(read, "filter", ReaderFilter()),
    "viewer states": lambda read: setattr(read, "states", ReaderStates()),
}
# Changes after which the sources say nothing, but equal ids still give the same page.
SOURCES: dict[str, Callable[[Read], object]] = {
    "home": lambda read: setattr(read, "home", HomeList(read.home.ids, 0, 0, "hybrid")),
    "followees": lambda read: setattr(read, "relations", FolloweeSet([(1, 2)])),
    "own ids": lambda read: setattr(read, "own", array("q", [40])),
    "tiers": lambda read: setattr(read, "tiers_version", 4),
}


async def test_first_page_is_found_while_nothing_changes() -> None:
    read = Read()
    assert await read.found() == (None, None)
    read.put(read.sources)
    assert await read.found() == (PAGE, PAGE)
    read.publisher.changed([key_of(Kind.TWEET, TWEET + 1)])
    assert await read.found() == (PAGE, PAGE)
    assert await read.pages.from_ids(read.view, read.newest, SIZE + 1) is None


@pytest.mark.parametrize("change", CHANGES)
async def test_first_page_is_not_found_after_change_of_what_it_shows(change: str) -> None:
    read = Read()
    read.put(read.sources)
    CHANGES[change](read)
    assert await read.found() == (None, None)


@pytest.mark.parametrize("change", SOURCES)
async def test_first_page_is_found_by_ids_after_change_of_a_source(change: str) -> None:
    read = Read()
    read.put(read.sources)
    SOURCES[change](read)
    assert await read.found() == (None, PAGE)


@pytest.mark.parametrize("newest", [IdBatch([60, TWEET, 40], 0), IdBatch([TWEET], 0), IdBatch([TWEET, 40], 40)])
async def test_first_page_is_not_found_by_other_ids(newest: IdBatch) -> None:
    read = Read()
    read.put(read.sources)
    assert await read.pages.from_ids(read.view, newest, SIZE) is None


async def test_first_page_without_sources_is_found_by_ids_only() -> None:
    read = Read()
    read.put(None)
    assert await read.found() == (None, PAGE)
