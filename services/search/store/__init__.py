"""The port of the search index: documents in two collections, found by terms and phrases.

The index is derived. It may be lost or dropped at any moment, and is filled anew from the owners while it goes on answering.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

# What one search, one change and one fill may hold.
MAX_FOUND = 1_000
MAX_CHANGES = 1_000
# Prefixes that `most_used` answers at once: a page of tags.
MAX_COMPLETED = 100
# Terms of which one is enough, and ids: a server refuses far more, and each is a list to walk.
MAX_ANY = 2_000


class Collection(Enum):
    """What is indexed. The values are the names of the ids in an index."""

    TWEETS = "tweet_id"
    USERS = "user_id"


class Document(NamedTuple):
    """One tweet or person. `exact` are terms matched as a whole, `words` the text in order; neither begins with white space.

    `version` grows with every change at the owner. `rank` (0 or more, below 2^31) orders documents in `ranked`.
    """

    id: int
    version: int
    author_id: int
    exact: tuple[str, ...]
    words: tuple[str, ...]
    rank: int = 0


class Change(NamedTuple):
    """What stands now: the document, or None where it is not to be found any more."""

    collection: Collection
    id: int
    document: Document | None


class Query(NamedTuple):
    """Terms, and phrases (word after word; one word is a phrase too), all of which must be there: at least one of either.

    No document with one of the excluded matches. `any_exact` and `ids` (≤ MAX_ANY each), if not empty, demand one of these terms,
    or one of these ids; they say nothing about how well a text fits.
    """

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    excluded_exact: tuple[str, ...] = ()
    excluded_phrases: tuple[tuple[str, ...], ...] = ()
    any_exact: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class Hit(NamedTuple):
    """A tweet found, and whether it has one of the terms preferred.

    `score` tells how well its text fits (0 or more): two hits compare if their questions have the same terms and phrases. None for
    what is too new to be compared.
    """

    id: int
    author_id: int
    score: float | None
    preferred: bool


class Place(NamedTuple):
    """Where a document is in the order of `ranked`."""

    rank: int
    id: int


class Build(NamedTuple):
    """The number of the index in use, which grows with each one that takes over, and how many documents were filled into the one
    that is being built; None where none is."""

    number: int
    filled: int | None


class SearchIndex(Protocol):
    """The index of one process, or of all processes of the service together. UNAVAILABLE where it refuses for now."""

    @property
    def position(self) -> int | None:
        """Up to which offset of the event log the index is durable: the log is to be read again from there.

        None where it is not filled, and in an index that is durable when `apply` returns: it leaves the offset to the log.
        """

    async def filled(self) -> bool:
        """Whether it was ever filled; else it must be, from the owners: it may lack what was there before its first event."""

    async def apply(self, changes: Sequence[Change], position: int = 0) -> None:
        """Takes in up to MAX_CHANGES changes: searches that begin after it returns see them.

        A document of a lower version than the one that stands is passed over; a removal is not. Durable within about a second;
        `position`, where it is not 0, is the offset up to which the log has been applied, and becomes durable after the changes.
        UNAVAILABLE while too much waits for being durable: nothing was taken in then.
        """

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        """Up to `limit` (≤ MAX_FOUND) ids of matches, greatest first, below `before_id` (0: no bound). Fewer only where no more match."""

    async def ranked(self, collection: Collection, query: Query, after: Place | None, limit: int) -> Sequence[Place]:
        """Up to `limit` (≤ MAX_FOUND) matches behind `after` (None: from the first on), the greatest rank first, of equal ranks the
        least id. Fewer only where no more match."""

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str] = ()) -> Sequence[Hit]:
        """Up to `limit` (≤ MAX_FOUND) matching tweets below `before_id` (0: no bound) that fit best, in no promised order.

        `preferred` are exact terms of which each hit tells whether it has one.
        """

    async def terms(self, prefix: str, limit: int) -> Sequence[str]:
        """Up to `limit` (≤ MAX_FOUND) exact terms of tweets that begin so, those that the most documents have now first."""

    async def most_used(self, prefixes: Sequence[str]) -> Sequence[str]:
        """Of each prefix (≤ MAX_COMPLETED, none the beginning of another) the exact term of tweets beginning so that most authors use
        now; of equals the first by its characters; empty if no document has one. Beyond some hundred authors about right."""

    async def count(self, collection: Collection) -> int:
        """How many documents there are."""

    async def building(self) -> Build:
        """Which index is in use, and how far a new one is, whichever process builds it (as of a few seconds ago)."""

    async def begin(self) -> None:
        """Begins an index anew beside the one in use. Changes go to both from now on; one begun before is given up.

        ALREADY_EXISTS, reason INDEX_BEING_BUILT, while another process builds one.
        """

    async def fill(self, changes: Sequence[Change]) -> None:
        """Puts documents that a scan of the owner found, up to MAX_CHANGES, into the new index, unless `apply` told of one since `begin`.

        FAILED_PRECONDITION where none was begun, or another process gave it up.
        """

    async def finish(self) -> None:
        """Makes the new index durable and changes over to it; the old one is dropped. FAILED_PRECONDITION as in `fill`."""

    async def close(self) -> None:
        """Makes durable what was applied, and gives the index free."""
