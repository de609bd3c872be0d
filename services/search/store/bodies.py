"""What is sent to OpenSearch: the shape of its indexes, documents, and questions.

Texts arrive as words (services/search/words.py decides what a word is) and are split at the spaces between them, so that both
families find the same. No question is parsed there: terms and phrases only, without patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from services.search.store import Document, Query

# Every index of this shape has the number in its name: processes of two shapes can run side by side, each on indexes of its own.
FORMAT = 1

ID, VERSION, AUTHOR, EXACT, WORDS, REMOVED = "id", "version", "author_id", "exact", "words", "removed"
PREFERRED = "preferred"

# The server gives up a question after this; the client waits a little longer for the answer.
QUESTION_MOST = "1500ms"
# Documents looked at for completing a tag: the newest of each segment come first, and more tell nothing new.
MAX_COMPLETED_FROM = 100_000
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
            EXACT: document.exact,
            WORDS: " ".join(document.words),
        }
    )


def page_body(query: Query, before_id: int, limit: int, order: str) -> dict[str, Any]:
    """A page in the order of the ids. Nothing but time bounds it: whoever stops after some documents may miss the newest."""
    asked: dict[str, Any] = {"bool": {"filter": _clauses(query)}}
    if before_id:
        asked["bool"]["filter"].append({"range": {ID: {"lt": before_id}}})
    return _bounded({"query": asked, "size": limit, "sort": [{ID: order}]})


def best_body(query: Query, before_id: int, limit: int, preferred: Sequence[str]) -> dict[str, Any]:
    """The best by their text; the name PREFERRED is on hits that have one of the preferred terms."""
    asked: dict[str, Any] = {"bool": {"must": _clauses(query)}}
    if before_id:
        # It says nothing about how well a text fits; nor do the preferred terms.
        asked["bool"]["filter"] = [{"range": {ID: {"lt": before_id}}}]
    if preferred:
        named = {"filter": {"terms": {EXACT: list(preferred)}}, "boost": 0.0, "_name": PREFERRED}
        asked["bool"]["should"] = [{"constant_score": named}]
    return _bounded({"query": asked, "size": limit, "docvalue_fields": [ID, AUTHOR]})


def terms_body(prefix: str, limit: int) -> dict[str, Any]:
    """The most frequent exact terms that begin so."""
    counted = {
        "field": EXACT,
        "include": "".join(map(_literal, prefix)) + ".*",
        "size": limit,
        "order": [{"_count": "desc"}, {"_key": "asc"}],
    }
    body = {"query": {"prefix": {EXACT: {"value": prefix}}}, "size": 0, "aggs": {EXACT: {"terms": counted}}}
    return _bounded(body | {"terminate_after": MAX_COMPLETED_FROM})


def count_body() -> dict[str, Any]:
    """All but tombstones."""
    return {"query": {"exists": {"field": ID}}}


def _clauses(query: Query) -> list[dict[str, Any]]:
    exact = [{"term": {EXACT: term}} for term in query.exact]
    return exact + [{"match_phrase": {WORDS: " ".join(phrase)}} for phrase in query.phrases]


def _bounded(body: dict[str, Any]) -> dict[str, Any]:
    # Nothing of the documents is unpacked, not even `_id`: 300 hits are in 300 blocks, and ids stand in columns too.
    return body | {"timeout": QUESTION_MOST, "track_total_hits": False, "_source": False, "stored_fields": "_none_"}


def _literal(character: str) -> str:
    # The server reads a pattern: every sign stands for itself.
    return character if character.isalnum() else "\\" + character
