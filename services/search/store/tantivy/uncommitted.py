"""Stores and searches in memory the changes of the index that are not committed yet. To be used on one event loop."""

from __future__ import annotations

from collections.abc import Collection as AbstractCollection
from collections.abc import Iterable, Iterator, Sequence

from services.search.store import Collection, Document, IndexChange, Query


class UncommittedChanges:
    """The newest change of each document, with the document ids by term. The caller limits the number of changes."""

    def __init__(self) -> None:
        self._documents: dict[Collection, dict[int, Document | None]] = {kind: {} for kind in Collection}
        self._postings: dict[tuple[Collection, str], set[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._documents.values()))

    def documents(self, collection: Collection) -> dict[int, Document | None]:
        """Returns the changed documents of a collection by id; None for a removed one. The caller must not change the
        dict."""
        return self._documents[collection]

    def changes(self) -> list[IndexChange]:
        """Returns all changes."""
        return [
            IndexChange(kind, key, document)
            for kind, documents in self._documents.items()
            for key, document in documents.items()
        ]

    def put(self, change: IndexChange) -> None:
        """Stores a change. It replaces an earlier change of the same document."""
        documents = self._documents[change.collection]
        if (before := documents.get(change.id)) is not None:
            for term in _terms(before):
                self._postings[change.collection, term].discard(change.id)
        documents[change.id] = change.document
        if change.document is not None:
            for term in _terms(change.document):
                self._postings.setdefault((change.collection, term), set()).add(change.id)

    def find(self, collection: Collection, query: Query) -> Iterator[Document]:
        """Yields the documents of a collection that match the query, in no particular order."""
        terms = {*query.exact, *(_word_term(word) for phrase in query.phrases for word in phrase)}
        postings = sorted((self._postings.get((collection, term), _NONE) for term in terms), key=len)
        any_exact, wanted = frozenset(query.any_exact), frozenset(query.ids)
        ids: Iterable[int] = set.intersection(*map(set, postings)) if postings else ()
        for key in ids:
            document = self._documents[collection][key]
            if document is None or (wanted and key not in wanted):
                continue
            if (not any_exact or holds_any(document, any_exact)) and _matches(document, query):
                yield document

    def terms(self, prefix: str) -> Iterator[tuple[str, AbstractCollection[int]]]:
        """Yields the exact terms of tweets that begin with `prefix`, each with the ids of the tweets that have it (at
        least one)."""
        for (collection, term), ids in self._postings.items():
            if collection is Collection.TWEETS and ids and term.startswith(prefix):
                yield term, ids


def _matches(document: Document, query: Query) -> bool:
    """Returns whether a document that has all exact terms and all words of the query matches it: has the words of each
    phrase one after the other, and none of the excluded terms and phrases."""
    return (
        all(len(phrase) == 1 or _has_phrase(document.words, phrase) for phrase in query.phrases)
        and not holds_any(document, query.excluded_exact)
        and not any(_has_phrase(document.words, phrase) for phrase in query.excluded_phrases)
    )


def holds_any(document: Document, terms: AbstractCollection[str]) -> bool:
    """Returns whether the document has one of the exact terms."""
    return any(term in terms for term in document.exact)


def _terms(document: Document) -> Iterator[str]:
    yield from document.exact
    # A word has a prefix that no exact term has, so that no word equals an exact term.
    yield from map(_word_term, document.words)


def _word_term(word: str) -> str:
    return " " + word


def _has_phrase(words: Sequence[str], phrase: Sequence[str]) -> bool:
    size = len(phrase)
    first = phrase[0]
    return any(
        word == first and tuple(words[at : at + size]) == phrase
        for at, word in enumerate(words[: len(words) - size + 1])
    )


_NONE: set[int] = set()
