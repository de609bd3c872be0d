"""What is sent to OpenSearch: the shape of its indexes, documents, and questions.

Texts arrive as words (services/search/tokenizer.py decides what a word is) and are split at the spaces between them, so that both
families find the same. No question is parsed there: terms and phrases only, without patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from services.search.store import Document, Place, Query

# Every index of this shape has the number in its name: processes of two shapes can run side by side, each on indexes of its own.
FORMAT = 2

ID, VERSION, AUTHOR, EXACT, WORDS, REMOVED = "id", "version", "author_id", "exact", "words", "removed"
RANK = "rank"
PREFERRED = "preferred"

# The server gives up a question after this; the client waits a little longer for the answer.
QUESTION_MOST = "1500ms"
# Documents looked at for completing a tag: the newest of each segment come first, and more tell nothing new.
MAX_COMPLETED_FROM = 100_000
# Up to here authors are counted one by one, beyond it to within a few percent.
AUTHORS_COUNTED_EXACTLY = 100
# Found even if nobody says so: every change asks for it, this is for those whose process died in between.
REFRESH_EVERY = "1s"

_SPACED = "spaced"
_MAPPINGS: dict[str, Any] = {
    # A field that is not listed is a mistake of ours.
    "dynamic": "strict",
    "properties": {
        ID: {"type": "long"},
        VERSION: {"type": "long", "index": False, "doc_values": False},
        AUTHOR: {"type": "long", "index": False},
        RANK: {"type": "integer", "index": False},
        EXACT: {"type": "keyword"},
        WORDS: {"type": "text", "analyzer": _SPACED, "index_options": "positions"},
        REMOVED: {"type": "boolean", "index": False, "doc_values": False},
    },
}
_ANALYSIS = {"analyzer": {_SPACED: {"type": "custom", "tokenizer": "whitespace"}}}

# What stays of a document that is not to be found any more: a later scan of the owner must not bring it back. It has neither id
# nor terms, so that no question meets it.
TOMBSTONE = orjson.dumps({REMOVED: True})


def index_body(shards: int, alias: str) -> dict[str, Any]:
    """A new index under the alias."""
    settings = {
        "number_of_shards": shards,
        # A copy where there is a second node for it.
        "auto_expand_replicas": "0-1",
        "refresh_interval": REFRESH_EVERY,
        # Newest first on disk: a page of a common word ends after its first ids.
        "sort.field": ID,
        "sort.order": "desc",
        "analysis": _ANALYSIS,
    }
    return {"settings": {"index": settings}, "mappings": _MAPPINGS, "aliases": {alias: {}}}


def document_body(document: Document) -> bytes:
    """The whole document."""
    return orjson.dumps(
        {
            ID: document.id,
            VERSION: document.version,
            AUTHOR: document.author_id,
            RANK: document.rank,
            EXACT: document.exact,
            WORDS: " ".join(document.words),
        }
    )


def page_body(query: Query, before_id: int, limit: int) -> dict[str, Any]:
    """A page, the greatest id first. Nothing but time bounds it: whoever stops after some documents may miss the newest."""
    asked = {"filter": [*_clauses(query), *_conditions(query, before_id)], "must_not": _excluded(query)}
    return _bounded({"query": {"bool": asked}, "size": limit, "sort": [{ID: "desc"}]})


def ranked_body(query: Query, after: Place | None, limit: int) -> dict[str, Any]:
    """A page, the greatest rank first, of equal ranks the least id."""
    asked = {"filter": [*_clauses(query), *_conditions(query, 0)], "must_not": _excluded(query)}
    page: dict[str, Any] = {"query": {"bool": asked}, "size": limit, "sort": [{RANK: "desc"}, {ID: "asc"}]}
    return _bounded(page if after is None else page | {"search_after": list(after)})


def best_body(query: Query, before_id: int, limit: int, preferred: Sequence[str]) -> dict[str, Any]:
    """The best by their text; the name PREFERRED is on hits that have one of the preferred terms."""
    # Conditions say nothing about how well a text fits; nor do the preferred terms.
    asked = {"must": _clauses(query), "filter": _conditions(query, before_id), "must_not": _excluded(query)}
    if preferred:
        named = {"filter": {"terms": {EXACT: list(preferred)}}, "boost": 0.0, "_name": PREFERRED}
        asked["should"] = [{"constant_score": named}]
    return _bounded({"query": {"bool": asked}, "size": limit, "docvalue_fields": [ID, AUTHOR]})


def terms_body(prefix: str, limit: int) -> dict[str, Any]:
    """The most frequent exact terms that begin so."""
    counted = _terms_that_begin(prefix) | {"size": limit, "order": [{"_count": "desc"}, {"_key": "asc"}]}
    body = {"query": {"prefix": {EXACT: {"value": prefix}}}, "size": 0, "aggs": {EXACT: {"terms": counted}}}
    return _bounded(body | {"terminate_after": MAX_COMPLETED_FROM})


def most_used_body(prefixes: Sequence[str]) -> dict[str, Any]:
    """Of each prefix, named by its place, the exact term beginning so that most authors use."""
    authors = {"cardinality": {"field": AUTHOR, "precision_threshold": AUTHORS_COUNTED_EXACTLY}}
    aggregations: dict[str, Any] = {}
    for place, prefix in enumerate(prefixes):
        counted = _terms_that_begin(prefix) | {"size": 1, "order": [{AUTHOR: "desc"}, {"_key": "asc"}]}
        used = {"terms": counted, "aggs": {AUTHOR: authors}}
        aggregations[str(place)] = {"filter": {"prefix": {EXACT: {"value": prefix}}}, "aggs": {EXACT: used}}
    any_of = [{"prefix": {EXACT: {"value": prefix}}} for prefix in prefixes]
    body = {"query": {"bool": {"filter": [{"bool": {"should": any_of}}]}}, "size": 0, "aggs": aggregations}
    return _bounded(body | {"terminate_after": MAX_COMPLETED_FROM})


def count_body() -> dict[str, Any]:
    """All but tombstones."""
    return {"query": {"exists": {"field": ID}}}


def _clauses(query: Query) -> list[dict[str, Any]]:
    return _each(query.exact, query.phrases)


def _excluded(query: Query) -> list[dict[str, Any]]:
    return _each(query.excluded_exact, query.excluded_phrases)


def _each(exact: Sequence[str], phrases: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"term": {EXACT: term}} for term in exact]
    return found + [{"match_phrase": {WORDS: " ".join(phrase)}} for phrase in phrases]


def _conditions(query: Query, before_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if query.any_exact:
        found.append({"terms": {EXACT: list(query.any_exact)}})
    if query.ids:
        found.append({"terms": {ID: list(query.ids)}})
    if before_id:
        found.append({"range": {ID: {"lt": before_id}}})
    return found


def _terms_that_begin(prefix: str) -> dict[str, Any]:
    return {"field": EXACT, "include": "".join(map(_literal, prefix)) + ".*"}


def _bounded(body: dict[str, Any]) -> dict[str, Any]:
    # Nothing of the documents is unpacked, not even `_id`: 300 hits are in 300 blocks, and ids stand in columns too.
    return body | {"timeout": QUESTION_MOST, "track_total_hits": False, "_source": False, "stored_fields": "_none_"}


def _literal(character: str) -> str:
    # The server reads a pattern: every sign stands for itself.
    return character if character.isalnum() else "\\" + character
