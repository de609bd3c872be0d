"""Writes documents to OpenSearch so that the newest version of each document stays, whatever the order of the writes.

A document is written with its version as OpenSearch's external version, and a removal writes an empty document
(TOMBSTONE) with a version above all others. So OpenSearch rejects a late write of a scan. It also rejects the document
of a tweet or user that was restored after a removal. So each rejected change is compared with the stored document, and
if the change is newer, it is written again, on the condition that the stored document has not changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.platform.opensearch.client import (
    BACKGROUND_TIMEOUT_S,
    CONFLICT,
    NOT_FOUND,
    BulkOperation,
    OpenSearch,
    unavailable,
)
from services.search.store import Collection, IndexChange
from services.search.store.opensearch import requests

# The external version of a removal. It is larger than the version of every document, which is a time in Unix
# milliseconds or a small counter.
ABOVE_ALL = 1 << 62
# Maximum number of attempts of a write. An attempt fails if another process writes the same document at the same time.
# If all attempts fail, the write is rejected with UNAVAILABLE.
TRIES = 5


class DocumentWriter:
    """Writes changes to indexes, which are named by one alias per collection. Methods raise UNAVAILABLE if OpenSearch
    does not answer."""

    def __init__(self, opensearch: OpenSearch) -> None:
        self._opensearch = opensearch

    async def add_unknown(self, changes: Sequence[IndexChange], names: Mapping[Collection, str]) -> bool:
        """Writes each document of which the index has no version or an older version. `names` has the alias of each
        collection. Returns False if an alias does not exist; some documents may be written then. Raises RequestRejected
        if OpenSearch rejects a document for another reason."""
        # Conflicts are ignored: the stored document has the same or a higher version.
        operations = [_operation(change, names[change.collection], "external") for change in changes]
        for refusal in await self._opensearch.bulk(operations, BACKGROUND_TIMEOUT_S):
            if refusal is None or refusal.status == CONFLICT:
                continue
            if refusal.status == NOT_FOUND:
                return False
            raise refusal
        return True

    async def write(self, changes: Sequence[IndexChange], names: Mapping[Collection, str]) -> bool:
        """Writes the changes, except those that are older than the stored document. `names` has the alias of each
        collection. Returns False if an alias does not exist. Raises UNAVAILABLE if other processes wrote the same
        documents during each of TRIES attempts."""
        operations = [_operation(change, names[change.collection], "external_gte") for change in changes]
        pending = list(changes)
        for _ in range(TRIES):
            refused: list[IndexChange] = []
            for change, refusal in zip(
                pending, await self._opensearch.bulk(operations, BACKGROUND_TIMEOUT_S), strict=True
            ):
                if refusal is None:
                    continue
                if refusal.status == NOT_FOUND:
                    return False
                if refusal.status != CONFLICT:
                    raise refusal
                refused.append(change)
            if not refused:
                return True
            pending, operations = await self._reconsider(refused, names)
            if not operations:
                return True
        raise unavailable("other processes keep changing the same documents: retry later")

    async def _reconsider(
        self, refused: Sequence[IndexChange], names: Mapping[Collection, str]
    ) -> tuple[list[IndexChange], list[BulkOperation]]:
        """Reads the stored documents of rejected changes. Returns the changes that are newer than the stored document,
        and a bulk operation for each, which succeeds only if the stored document has not changed since."""
        seen = [requests.VERSION, requests.REMOVED]
        wanted = [{"_index": names[c.collection], "_id": str(c.id), "_source": seen} for c in refused]
        answer = await self._opensearch.call("POST", "/_mget", {"docs": wanted}, BACKGROUND_TIMEOUT_S)
        changes: list[IndexChange] = []
        operations: list[BulkOperation] = []
        for change, found in zip(refused, answer["docs"], strict=True):
            state = found.get("_source")
            if state is not None and _is_outdated(state, change):
                continue
            changes.append(change)
            operations.append(_replacement(change, names[change.collection], found if state is not None else None))
        return changes, operations


def _operation(change: IndexChange, name: str, version_type: str) -> BulkOperation:
    version = ABOVE_ALL if change.document is None else change.document.version
    # Without `require_alias` a write would create an index if the alias does not exist.
    options = {"_index": name, "_id": str(change.id), "require_alias": True}
    return BulkOperation("index", options | {"version": version, "version_type": version_type}, _body(change))


def _replacement(change: IndexChange, name: str, found: dict[str, Any] | None) -> BulkOperation:
    options: dict[str, Any] = {"_index": name, "_id": str(change.id), "require_alias": True}
    if found is None:
        return BulkOperation("create", options, _body(change))
    options |= {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
    return BulkOperation("index", options, _body(change))


def _is_outdated(state: dict[str, Any], change: IndexChange) -> bool:
    """Returns whether the change must not be written: the stored document is newer, or both are removals. `state` is
    the stored document's source."""
    if change.document is None:
        return bool(state.get(requests.REMOVED))
    return not state.get(requests.REMOVED) and state[requests.VERSION] > change.document.version


def _body(change: IndexChange) -> bytes:
    return requests.TOMBSTONE if change.document is None else requests.document_body(change.document)
