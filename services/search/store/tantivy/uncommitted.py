"""Changes that are not in the committed index yet, searched in memory. Of one event loop."""

from __future__ import annotations

from collections.abc import Collection as AnyOf
from collections.abc import Iterable, Iterator, Sequence

from services.search.store import Change, Collection, Document, Query


class UncommittedChanges:
    """The newest change of each document, by term. Bounded by whoever fills it."""

    def __init__(self) -> None:
        self._documents: dict[Collection, dict[int, Document | None]] = {kind: {} for kind in Collection}
        self._postings: dict[tuple[Collection, str], set[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._documents.values()))

    def documents(self, collection: Collection) -> dict[int, Document | None]:
        """The changed documents by id, None where removed; not to be changed."""
        return self._documents[collection]

    def changes(self) -> list[Change]:
        """What it holds, as it was put."""
        return [
            Change(kind, key, document)
            for kind, documents in self._documents.items()
            for key, document in documents.items()
        ]

    def put(self, change: Change) -> None:
        """Takes in a change, in place of any before it."""
        documents = self._documents[change.collection]
        if (before := documents.get(change.id)) is not None:
            for term in _terms(before):
                self._postings[change.collection, term].discard(change.id)
        documents[change.id] = change.document
        if change.document is not None:
            for term in _terms(change.document):
                self._postings.setdefault((change.collection, term), set()).add(change.id)

    def find(self, collection: Collection, query: Query) -> Iterator[Document]:
        """The matching documents, in no order."""
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

    def terms(self, prefix: str) -> Iterator[tuple[str, AnyOf[int]]]:
        """The exact terms of tweets that begin so, and the ids of the documents of this layer that have each: at least one."""
        for (collection, term), ids in self._postings.items():
            if collection is Collection.TWEETS and ids and term.startswith(prefix):
                yield term, ids


def _matches(document: Document, query: Query) -> bool:
    """Whether a document that has all terms and words has them in the order asked for, and none of the excluded."""
    return (
        all(len(phrase) == 1 or _holds(document.words, phrase) for phrase in query.phrases)
        and not holds_any(document, query.excluded_exact)
        and not any(_holds(document.words, phrase) for phrase in query.excluded_phrases)
    )


def holds_any(document: Document, terms: AnyOf[str]) -> bool:
    """Whether the document has one of the exact terms."""
    return any(term in terms for term in document.exact)


def _terms(document: Document) -> Iterator[str]:
    yield from document.exact
    # Told apart from exact terms by a character that no term holds.
    yield from map(_word_term, document.words)


def _word_term(word: str) -> str:
    return " " + word


def _holds(words: Sequence[str], phrase: Sequence[str]) -> bool:
    size = len(phrase)
    first = phrase[0]
    return any(
        word == first and tuple(words[at : at + size]) == phrase
        for at, word in enumerate(words[: len(words) - size + 1])
    )


_NONE: set[int] = set()
