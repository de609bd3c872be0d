"""The port of the search index: documents in two collections, found by exact terms and phrases.

The index is derived data. It may be lost or dropped at any time, and is rebuilt from the owning services while searches
continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

# Maximum of documents in one search, in one `apply`, and in one `fill`.
MAX_FOUND = 1_000
MAX_CHANGES = 1_000
# The most prefixes in one call of `most_used`: a page of tags.
MAX_COMPLETED = 100
# Maximum of `any_exact` terms and of `ids` in a query. OpenSearch rejects far longer lists, and each entry costs a
# posting list.
MAX_ANY = 2_000


class Collection(Enum):
    """The collections of documents: tweets and users. The values are the names of the id fields in an index."""

    TWEETS = "tweet_id"
    USERS = "user_id"


class Document(NamedTuple):
    """The document of one tweet or user.

    `exact` are terms that match as a whole; `words` are the words of the text in order. Neither begins with white
    space. `version` grows with every change at the owning service. `author_id` of a user is the user's own id. `rank`
    (0 ≤ rank < 2^31) orders documents in `ranked`.
    """

    id: int
    version: int
    author_id: int
    exact: tuple[str, ...]
    words: tuple[str, ...]
    rank: int = 0


class IndexChange(NamedTuple):
    """A change of the index: the current document of one tweet or user, or None if searches must not find it any
    more."""

    collection: Collection
    id: int
    document: Document | None


class Query(NamedTuple):
    """A query: a document must have all of `exact` and all of `phrases`, and none of the excluded terms and phrases.

    A phrase is a sequence of consecutive words; a single word is a phrase of one. A query has at least one exact term
    or phrase. If `any_exact` or `ids` (≤ MAX_ANY each) is not empty, a document must also have one of these terms, or
    one of these ids; this does not change its text score.
    """

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    excluded_exact: tuple[str, ...] = ()
    excluded_phrases: tuple[tuple[str, ...], ...] = ()
    any_exact: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class Hit(NamedTuple):
    """A matching tweet.

    `score` is its text relevance (≥ 0), comparable between queries with the same terms and phrases; None if the tweet
    is too new to have a score. `preferred` is True if the tweet has one of the preferred terms of the search.
    """

    id: int
    author_id: int
    score: float | None
    preferred: bool


class RankPosition(NamedTuple):
    """The position of a document in the order of `ranked`."""

    rank: int
    id: int


class BuildStatus(NamedTuple):
    """The state of the index in use and of the index that is being built.

    `number`: the index in use; it grows with each new index. `complete`: whether the index was ever filled completely;
    if not, it must be rebuilt, because it may lack everything that existed before its first event. `filled`: the number
    of documents filled into the index that is being built, None if none is.
    """

    number: int
    complete: bool
    filled: int | None


class SearchIndex(Protocol):
    """The search index of one process, or one that all processes of the service share.

    All methods raise UNAVAILABLE if the index cannot answer for now.
    """

    @property
    def position(self) -> int | None:
        """The offset of the event log up to which all changes are durable in the index. A consumer must resume after
        this offset.

        None if the index was never filled. Always None if changes are durable when `apply` returns: a consumer then
        resumes at the committed offset of its consumer group.
        """

    async def apply(self, changes: Sequence[IndexChange], position: int = 0) -> None:
        """Applies up to MAX_CHANGES changes; searches that begin after it returns see them.

        A document of a lower version than the stored one is ignored; a removal is always applied. Changes become
        durable within about a second. `position`, if not 0, is the offset of the event log up to which the caller has
        applied events; the index makes this offset durable after the changes. Raises UNAVAILABLE, and applies nothing,
        if too many earlier changes are not durable yet.
        """

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        """Returns up to `limit` (≤ MAX_FOUND) ids of matches below `before_id` (0: no bound), greatest first.

        Returns fewer only if there are no more matches.
        """

    async def ranked(
        self, collection: Collection, query: Query, after: RankPosition | None, limit: int
    ) -> Sequence[RankPosition]:
        """Returns up to `limit` (≤ MAX_FOUND) matches after the position `after` (None: from the first on).

        They are sorted by descending rank, and for equal ranks by ascending id. Returns fewer only if there are no more
        matches.
        """

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str] = ()) -> Sequence[Hit]:
        """Returns up to `limit` (≤ MAX_FOUND) tweets with the best text scores, in any order.

        Returns only matches with ids below `before_id` (0: no bound). `preferred` are exact terms; the field
        `preferred` of each hit is True if the tweet has one of these terms.
        """

    async def terms(self, prefix: str, limit: int) -> Sequence[str]:
        """Returns up to `limit` (≤ MAX_FOUND) exact terms of tweets that begin with `prefix`, most frequent first."""

    async def most_used(self, prefixes: Sequence[str]) -> Sequence[str]:
        """Returns for each prefix one exact term that begins with the prefix: the one that most authors use in tweets.
        Returns an empty text for a prefix with which no term begins.

        If several terms have equally many authors, the first in code-point order is returned. Pass at most
        MAX_COMPLETED prefixes, none of them a prefix of another. The number of authors is exact up to about a hundred,
        and estimated above.
        """

    async def count(self, collection: Collection) -> int:
        """Returns the number of documents."""

    async def build_status(self) -> BuildStatus:
        """Returns which index is in use, and the progress of a build, even if another process runs it.

        The state may be a few seconds old.
        """

    async def begin(self) -> None:
        """Starts to build a new index beside the one in use. From now on `apply` changes both indexes.

        Discards an earlier unfinished build. Raises ALREADY_EXISTS with reason INDEX_BEING_BUILT if another process is
        building an index.
        """

    async def fill(self, changes: Sequence[IndexChange]) -> None:
        """Adds up to MAX_CHANGES documents from a scan of the owning service to the new index.

        Skips a document that `apply` has written or removed since the call of `begin`, because that change is newer
        than the scan. Raises FAILED_PRECONDITION if this process has not begun a build, or another process discarded
        the build.
        """

    async def finish(self) -> None:
        """Makes the new index durable, puts it in use in place of the old index, and drops the old index.

        Raises FAILED_PRECONDITION if this process has not begun a build, or another process discarded the build.
        """

    async def close(self) -> None:
        """Makes all applied changes durable and releases the index."""
