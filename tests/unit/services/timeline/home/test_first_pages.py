"""The cache of first pages: a page is found only while everything that it was made of is the same."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from services.platform.versions import Kind, Versioned, VersionPublisher, key_of
from services.shared.hydration.cache import HydratedTweet, ReaderFilter, ReaderStates
from services.shared.hydration.fill_page import IdBatch
from services.shared.hydration.readers import ReaderView
from services.timeline.followees import FolloweeSet
from services.timeline.home import first_pages
from services.timeline.home.first_pages import MAX_LOOKED_AT, MAX_NEW_IDS, FirstPage, FirstPages, PageSources
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
        ids = [TWEET, 40]
        tweets = [HydratedTweet(i, 2, b"") for i in ids]
        self.pages.put(
            SIZE, FirstPage(self.view, self.relations, sources, self.newest, ids, (self.part,), tweets, PAGE)
        )

    async def found(self) -> tuple[bool, bool]:
        """Returns whether the cache has a true page, and whether it was made of the current sources."""
        page = await self.pages.current(self.view, self.relations, SIZE)
        return page is not None, page is not None and page.has_sources(self.sources)


def _edit_tweet(publisher: VersionPublisher) -> None:
    publisher.changed([key_of(Kind.TWEET, TWEET)])


# Changes after which the page must be made anew.
CHANGES: dict[str, Callable[[Read], object]] = {
    "tweet": lambda read: _edit_tweet(read.publisher),
    "filter": lambda read: setattr(read, "filter", ReaderFilter()),
    "followees": lambda read: setattr(read, "relations", FolloweeSet([(1, 2)])),
    "viewer states": lambda read: setattr(read, "states", ReaderStates()),
}
# Changes after which the sources say nothing, but equal ids still give the same page.
SOURCES: dict[str, Callable[[Read], object]] = {
    "home": lambda read: setattr(read, "home", HomeList(read.home.ids, 0, 0, "hybrid")),
    "own ids": lambda read: setattr(read, "own", array("q", [40])),
    "tiers": lambda read: setattr(read, "tiers_version", 4),
}


async def test_first_page_is_found_while_nothing_changes() -> None:
    read = Read()
    assert await read.found() == (False, False)
    read.put(read.sources)
    assert await read.found() == (True, True)
    read.publisher.changed([key_of(Kind.TWEET, TWEET + 1)])
    assert await read.found() == (True, True)
    assert await read.pages.current(read.view, read.relations, SIZE + 1) is None


@pytest.mark.parametrize("change", CHANGES)
async def test_first_page_is_not_found_after_change_of_what_it_shows(change: str) -> None:
    read = Read()
    read.put(read.sources)
    CHANGES[change](read)
    assert await read.found() == (False, False)


@pytest.mark.parametrize("change", SOURCES)
async def test_first_page_has_other_sources_after_change_of_one(change: str) -> None:
    read = Read()
    read.put(read.sources)
    SOURCES[change](read)
    assert await read.found() == (True, False)


async def test_first_page_without_sources_has_none() -> None:
    read = Read()
    read.put(None)
    assert await read.found() == (True, False)
    page = await read.pages.current(read.view, read.relations, SIZE)
    assert page is not None
    assert not page.has_sources(None)


def page_of(ids: list[int], looked_at: int = 3) -> FirstPage[str]:
    tweets = [HydratedTweet(i, 2, b"") for i in ids]
    view = ReaderView(READER, ReaderFilter(), ReaderStates())
    return FirstPage(view, FolloweeSet(()), None, IdBatch(ids, 0), [0] * looked_at, (), tweets, PAGE)


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        ([30, 20, 10], []),
        ([50, 40, 30, 20], [50, 40]),
        # The batch reaches less far down than the one of the page.
        ([40, 30], [40]),
        # An id appeared or disappeared below the newest one.
        ([30, 25, 20], None),
        ([40, 30, 10], None),
        # The newest id of the page is gone, or too many are new.
        ([40, 20, 10], None),
        ([*range(30 + MAX_NEW_IDS, 29, -1)], [*range(30 + MAX_NEW_IDS, 30, -1)]),
        ([*range(31 + MAX_NEW_IDS, 29, -1)], None),
        ([], None),
    ],
)
def test_new_ids_are_those_before_an_otherwise_equal_list(newest: list[int], expected: list[int] | None) -> None:
    assert page_of([30, 20, 10]).new_ids(IdBatch(newest, 0)) == expected


def test_new_ids_of_page_with_too_many_ids_or_none_are_unknown() -> None:
    assert page_of([30], MAX_LOOKED_AT).new_ids(IdBatch([40, 30], 0)) == [40]
    assert page_of([30], MAX_LOOKED_AT + 1).new_ids(IdBatch([40, 30], 0)) is None
    assert page_of([]).new_ids(IdBatch([40, 30], 0)) is None


def test_followed_by_needs_one_tweet_more_than_the_page_shows() -> None:
    page = page_of([30, 20, 10])
    new = [HydratedTweet(40, 2, b"")]
    found = page.followed_by(new, 2)
    assert found is not None
    assert [tweet.id for tweet in found] == [40, 30, 20]
    assert page.followed_by(new, 4) is None
    assert page.followed_by((), 2) == page.visible


def test_first_pages_are_bounded_by_the_followees_that_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_pages, "MAX_IDS", 10 * (first_pages.PAGE_IDS + 1_000))
    pages: FirstPages[str] = FirstPages(all_versions()[0])
    many = FolloweeSet((1, user_id) for user_id in range(1_000))
    for reader in range(1, 100):
        view = ReaderView(reader, ReaderFilter(), ReaderStates())
        pages.put(SIZE, page_of([30])._replace(view=view, relations=many))
        assert len(pages._pages) <= 20
    assert len(pages._pages) >= 10
