"""The port of the search index. It stores the documents of two collections (tweets, users) and finds them by exact
terms and phrases.

The index is derived data: it may be lost or dropped at any time, and is rebuilt from the tweet and identity services
while searches continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

# Maximum number of documents that one search returns, and of changes per `apply` and per `fill`.
MAX_FOUND = 1_000
MAX_CHANGES = 1_000
# Maximum number of prefixes per `most_used` call: a page of hashtags.
MAX_COMPLETED = 100
# Maximum number of terms in `any_exact`, and of ids in `ids`, per query. The index reads one posting list for each,
# and OpenSearch rejects queries with far more terms.
MAX_ANY = 2_000


class Collection(Enum):
    """The collections of documents. Each value is the name of the field for ids in Tantivy."""

    TWEETS = "tweet_id"
    USERS = "user_id"


class Document(NamedTuple):
    """The document of one tweet or user.

    `exact` are its exact terms, `words` the words of the text in order; none begins with white space. `version` grows
    with each change in the owning service. `author_id` of a user is the user's own id. `rank` (from 0, below 2^31) is
    the sort key of `SearchIndex.ranked`.
    """

    id: int
    version: int
    author_id: int
    exact: tuple[str, ...]
    words: tuple[str, ...]
    rank: int = 0


class IndexChange(NamedTuple):
    """A change of the index. `document` is the current document of the tweet or user, None if searches must not find it
    any more."""

    collection: Collection
    id: int
    document: Document | None


class Query(NamedTuple):
    """A query. A document matches if it has all terms of `exact` and all of `phrases`, and none of the excluded terms
    and phrases.

    A phrase is a sequence of consecutive words; a word is a phrase of length 1. A query has at least one exact term or
    phrase. If `any_exact` is not empty, a match must also have one of these terms; if `ids` is not empty, a match must
    also have one of these ids (at most MAX_ANY terms and MAX_ANY ids). `any_exact` and `ids` do not change the text
    score.
    """

    exact: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()
    excluded_exact: tuple[str, ...] = ()
    excluded_phrases: tuple[tuple[str, ...], ...] = ()
    any_exact: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()


class Hit(NamedTuple):
    """A matching tweet.

    `score` is the text score (≥ 0), which is comparable between queries with the same terms and phrases; None if the
    tweet is too new to have one. `preferred` is true if the tweet has one of the terms `preferred` of the search.
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

    `number` is the number of the index in use; it grows with each new index. `complete` is true if the index was ever
    filled completely; if not, it must be rebuilt, because it may lack everything that existed before its first event.
    `filled` is the number of documents filled so far into the index that is being built, None if no index is being
    built.
    """

    number: int
    complete: bool
    filled: int | None


class SearchIndex(Protocol):
    """A search index, of one process or shared by all processes of the service. All methods raise UNAVAILABLE if the
    index cannot answer now."""

    @property
    def position(self) -> int | None:
        """The offset of the event log up to which all changes are durable in the index: the consumer of events must
        start after it. None if the index was never filled.

        Always None if changes are durable when `apply` returns. The consumer then starts at the committed offset of its
        consumer group.
        """

    async def apply(self, changes: Sequence[IndexChange], position: int = 0) -> None:
        """Applies up to MAX_CHANGES changes. Searches that begin after this method has returned find the changes.

        Ignores a document of a lower version than the stored one; always applies a removal. The changes become durable
        within about a second. `position`, if not 0, is the offset of the event log up to which the caller has applied
        events; it becomes durable after the changes. Raises UNAVAILABLE, and applies nothing, if too many earlier
        changes are not durable yet.
        """

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        """Returns up to `limit` (≤ MAX_FOUND) ids of matches below `before_id` (0: no bound), newest first. Returns
        fewer only if no more exist."""

    async def ranked(
        self, collection: Collection, query: Query, after: RankPosition | None, limit: int
    ) -> Sequence[RankPosition]:
        """Returns up to `limit` (≤ MAX_FOUND) matches after the position `after` (None: from the first), by descending
        rank, of equal ranks by ascending id. Returns fewer only if no more exist."""

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str] = ()) -> Sequence[Hit]:
        """Returns the best matches by text score, at most `limit` (≤ MAX_FOUND), among tweets with ids below
        `before_id` (0: no bound), in no particular order. `preferred` are exact terms; a hit has `preferred` set if its
        tweet has one of these terms."""

    async def terms(self, prefix: str, limit: int) -> Sequence[str]:
        """Returns up to `limit` (≤ MAX_FOUND) exact terms of tweets that begin with `prefix`, most frequent first."""

    async def most_used(self, prefixes: Sequence[str]) -> Sequence[str]:
        """Returns one exact term for each prefix, in order: of the terms that begin with the prefix, the one that most
        authors use in tweets; of terms that equally many authors use, the first in code-point order. Returns "" if no
        term begins with the prefix.

        Pass at most MAX_COMPLETED prefixes, none of which begins with another. Up to about 100, the numbers of authors
        are counted; larger numbers are estimates.
        """

    async def count(self, collection: Collection) -> int:
        """Returns the number of documents in the collection."""

    async def build_status(self) -> BuildStatus:
        """Returns the number of the index in use and the progress of a build, which another process may run. The
        progress may be a few seconds old."""

    async def begin(self) -> None:
        """Creates an empty index beside the one in use, to be filled. From now on `apply` changes both. Discards an
        unfinished build of this process. Raises ALREADY_EXISTS (INDEX_BEING_BUILT) if another process is building an
        index."""

    async def fill(self, changes: Sequence[IndexChange]) -> None:
        """Adds up to MAX_CHANGES documents from a scan of the owning service to the new index. Skips a document that
        `apply` has written or removed since `begin`, because the scan may have read an older version. Raises
        FAILED_PRECONDITION if this process has not begun a build, or if another process discarded the new index."""

    async def finish(self) -> None:
        """Makes the new index durable, puts it in use in place of the old one, and drops the old one. Raises
        FAILED_PRECONDITION if this process has not begun a build, or if another process discarded the new index."""

    async def close(self) -> None:
        """Makes all applied changes durable and releases the index."""
