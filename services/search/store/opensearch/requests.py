"""Request bodies for OpenSearch: index settings, documents, and searches.

Texts are split into words by services/search/tokenizer.py and sent with spaces between the words, so that both backends
find the same documents. Searches use exact terms and phrases only: OpenSearch parses no text of users as a query or a
pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from services.search.store import Document, Query, RankPosition

# Number of the format of indexes; increment it with each change of settings, mappings or documents. It is part of the
# index names, so releases with different formats use different indexes and can run side by side.
FORMAT = 2

ID, VERSION, AUTHOR, EXACT, WORDS, REMOVED = "id", "version", "author_id", "exact", "words", "removed"
RANK = "rank"
PREFERRED = "preferred"

# Time after which OpenSearch stops a search. The client's timeout, MAX_CALL_S, is 0.5 s longer.
SEARCH_TIMEOUT = "1500ms"
# Maximum number of documents per shard that the completion of a hashtag reads, the newest first. With more, the result
# would hardly change.
MAX_COMPLETED_FROM = 100_000
# Maximum number of different authors per term that OpenSearch counts exactly. Larger numbers are estimates, within a
# few percent.
AUTHORS_COUNTED_EXACTLY = 100
# Interval at which OpenSearch refreshes an index by itself. Processes refresh after each change, so it is only needed
# if a process dies before its refresh.
REFRESH_INTERVAL = "1s"

_SPACED = "spaced"
_MAPPINGS: dict[str, Any] = {
    # OpenSearch rejects documents with fields that are not listed here: they would be a bug of this adapter.
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

# The document that replaces a removed one. It stays in the index with the highest version, so a late write of a scan is
# rejected. It has no terms and no field ID, so no search matches it.
TOMBSTONE = orjson.dumps({REMOVED: True})


def index_body(shards: int, alias: str) -> dict[str, Any]:
    """Returns the settings and mappings of a new index with the alias."""
    settings = {
        "number_of_shards": shards,
        # The index has one replica if the cluster has a second node.
        "auto_expand_replicas": "0-1",
        "refresh_interval": REFRESH_INTERVAL,
        # Documents are stored newest first, so a search for the newest matches can stop once its page is full.
        "sort.field": ID,
        "sort.order": "desc",
        "analysis": _ANALYSIS,
    }
    return {"settings": {"index": settings}, "mappings": _MAPPINGS, "aliases": {alias: {}}}


def document_body(document: Document) -> bytes:
    """Returns the document as JSON."""
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
    """Returns the body of a search request for up to `limit` ids below `before_id` (0: no bound), newest first. It has
    no `terminate_after`, because a search that stops after a number of documents could miss the newest matches."""
    bool_query = {"filter": [*_clauses(query), *_conditions(query, before_id)], "must_not": _excluded(query)}
    return _bounded({"query": {"bool": bool_query}, "size": limit, "sort": [{ID: "desc"}]})


def ranked_body(query: Query, after: RankPosition | None, limit: int) -> dict[str, Any]:
    """Returns the body of a search request for up to `limit` documents after the position `after` (None: from the
    first), by descending rank, of equal ranks by ascending id."""
    bool_query = {"filter": [*_clauses(query), *_conditions(query, 0)], "must_not": _excluded(query)}
    page: dict[str, Any] = {"query": {"bool": bool_query}, "size": limit, "sort": [{RANK: "desc"}, {ID: "asc"}]}
    return _bounded(page if after is None else page | {"search_after": list(after)})


def best_body(query: Query, before_id: int, limit: int, preferred: Sequence[str]) -> dict[str, Any]:
    """Returns the body of a search request for the up to `limit` documents with the best text scores, with ids below
    `before_id` (0: no bound). Hits with one of the exact terms `preferred` have PREFERRED in `matched_queries`."""
    # Only `must` adds to the text score: `filter` has none, and the clause for preferred terms has the boost 0.
    bool_query = {"must": _clauses(query), "filter": _conditions(query, before_id), "must_not": _excluded(query)}
    if preferred:
        named = {"filter": {"terms": {EXACT: list(preferred)}}, "boost": 0.0, "_name": PREFERRED}
        bool_query["should"] = [{"constant_score": named}]
    return _bounded({"query": {"bool": bool_query}, "size": limit, "docvalue_fields": [ID, AUTHOR]})


def terms_body(prefix: str, limit: int) -> dict[str, Any]:
    """Returns the body of a search request for the up to `limit` most frequent exact terms that begin with `prefix`, as
    an aggregation."""
    counted = _terms_with_prefix(prefix) | {"size": limit, "order": [{"_count": "desc"}, {"_key": "asc"}]}
    body = {"query": {"prefix": {EXACT: {"value": prefix}}}, "size": 0, "aggs": {EXACT: {"terms": counted}}}
    return _bounded(body | {"terminate_after": MAX_COMPLETED_FROM})


def most_used_body(prefixes: Sequence[str]) -> dict[str, Any]:
    """Returns the body of a search request with an aggregation for each prefix: the exact term beginning with it that
    most authors use. The name of an aggregation is the index of the prefix in `prefixes`."""
    authors = {"cardinality": {"field": AUTHOR, "precision_threshold": AUTHORS_COUNTED_EXACTLY}}
    aggregations: dict[str, Any] = {}
    for place, prefix in enumerate(prefixes):
        counted = _terms_with_prefix(prefix) | {"size": 1, "order": [{AUTHOR: "desc"}, {"_key": "asc"}]}
        used = {"terms": counted, "aggs": {AUTHOR: authors}}
        aggregations[str(place)] = {"filter": {"prefix": {EXACT: {"value": prefix}}}, "aggs": {EXACT: used}}
    any_of = [{"prefix": {EXACT: {"value": prefix}}} for prefix in prefixes]
    body = {"query": {"bool": {"filter": [{"bool": {"should": any_of}}]}}, "size": 0, "aggs": aggregations}
    return _bounded(body | {"terminate_after": MAX_COMPLETED_FROM})


def count_body() -> dict[str, Any]:
    """Returns the body of a count request for all documents except tombstones."""
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


def _terms_with_prefix(prefix: str) -> dict[str, Any]:
    # The parentheses avoid a bug of OpenSearch 3.3: it reads `PREFIX.*` as a range of terms, and fails with status 500
    # if all terms of a shard are before this range.
    return {"field": EXACT, "include": f"({''.join(map(_escape_pattern, prefix))}.*)"}


def _bounded(body: dict[str, Any]) -> dict[str, Any]:
    # Hits are read from doc values only. Each stored field, even `_id`, would be read from a compressed block, up to
    # 300 blocks for 300 hits.
    return body | {"timeout": SEARCH_TIMEOUT, "track_total_hits": False, "_source": False, "stored_fields": "_none_"}


def _escape_pattern(character: str) -> str:
    # `include` is a regular expression, so special characters are escaped.
    return character if character.isalnum() else "\\" + character
