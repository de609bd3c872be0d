"""Caches the first pages of home timelines, each until something that it shows changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from services.platform.caching.generational import GenerationalCache
from services.platform.versions import Versioned, Versions
from services.shared.hydration.fill_page import IdBatch
from services.shared.hydration.readers import ReaderView

# Pages in each of the two generations: about 1.5 kB each beside the tweets, which all readers share, so 75 MB in all.
MAX_PAGES = 25_000

P = TypeVar("P")


class _Cached(NamedTuple, Generic[P]):
    view: ReaderView
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

    async def get(self, view: ReaderView, newest: IdBatch, size: int) -> P | None:
        """Returns the cached page of `size` tweets if it is true for the current `view` and the current `newest` ids of
        the home timeline; otherwise None."""
        cached = self._pages.get((view.reader_id, size))
        if cached is None or cached.newest != newest or not cached.view.equals(view):
            return None
        return cached.page if False not in await self._versions.current(cached.parts) else None

    def put(self, view: ReaderView, newest: IdBatch, size: int, parts: Sequence[Versioned[Any]], page: P) -> None:
        """Caches a page that was made of no other ids than `newest`, for this view. `parts` are all tweets that were
        looked at for it, hidden ones included."""
        self._pages.put((view.reader_id, size), _Cached(view, newest, parts, page))
