"""Writes documents to OpenSearch so that the newest version of each document stays, whatever the order of the writes.

Documents are written with their version as external version, and a removal writes a tombstone with a version above all
others. So the server's own version check rejects a late write of a scan. But the check also rejects the document of a
tweet or user that is restored after a removal. Therefore this module compares each rejected change with the stored
document. If the change is newer, it replaces the stored document, on condition that the sequence number of that
document has not changed.
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

# Greater than every version: versions are milliseconds, or small counters.
ABOVE_ALL = 1 << 62
# Attempts of a write that conflicts with concurrent writes of the same documents. If all fail, the cause is a fault,
# not concurrency.
TRIES = 5


class DocumentWriter:
    """Writes changes through aliases, one for each collection. Raises UNAVAILABLE if the server does not answer."""

    def __init__(self, opensearch: OpenSearch) -> None:
        self._opensearch = opensearch

    async def add_unknown(self, changes: Sequence[IndexChange], names: Mapping[Collection, str]) -> bool:
        """Writes each document unless the index holds the same or a newer version of it. Returns False if an index that
        `names` names does not exist."""
        # Conflicts are expected: a document that was written meanwhile has the same or a higher version, and a
        # tombstone has the highest.
        operations = [_operation(change, names[change.collection], "external") for change in changes]
        for refusal in await self._opensearch.bulk(operations, BACKGROUND_TIMEOUT_S):
            if refusal is None or refusal.status == CONFLICT:
                continue
            if refusal.status == NOT_FOUND:
                return False
            raise refusal
        return True

    async def write(self, changes: Sequence[IndexChange], names: Mapping[Collection, str]) -> bool:
        """Writes the changes through the aliases `names`. Returns False if one of their indexes does not exist. Raises
        UNAVAILABLE if concurrent writes of the same documents conflict in TRIES attempts.
        """
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
        raise unavailable("other processes keep changing the same documents: try again")

    async def _reconsider(
        self, refused: Sequence[IndexChange], names: Mapping[Collection, str]
    ) -> tuple[list[IndexChange], list[BulkOperation]]:
        """Returns those of the rejected changes that are newer than the stored document, and the bulk operations that
        write these changes.

        Each bulk operation succeeds only if the stored document is still the one that this method read.
        """
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
    # `require_alias`: a write must not create an index by itself.
    options = {"_index": name, "_id": str(change.id), "require_alias": True}
    return BulkOperation("index", options | {"version": version, "version_type": version_type}, _body(change))


def _replacement(change: IndexChange, name: str, found: dict[str, Any] | None) -> BulkOperation:
    options: dict[str, Any] = {"_index": name, "_id": str(change.id), "require_alias": True}
    if found is None:
        return BulkOperation("create", options, _body(change))
    options |= {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
    return BulkOperation("index", options, _body(change))


def _is_outdated(state: dict[str, Any], change: IndexChange) -> bool:
    """Returns True if the stored document is newer than the change, or the same removal."""
    if change.document is None:
        return bool(state.get(requests.REMOVED))
    return not state.get(requests.REMOVED) and state[requests.VERSION] > change.document.version


def _body(change: IndexChange) -> bytes:
    return requests.TOMBSTONE if change.document is None else requests.document_body(change.document)
