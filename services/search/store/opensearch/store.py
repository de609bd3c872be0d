"""The search index on OpenSearch, shared by every process of the service; durable when `apply` returns.

A put carries the document's version as external version, and a removal is a tombstone above all versions: so a scan that fills a new
index, and comes late, loses by the server's own comparison. What the server refuses for its version is looked at, for a document that
comes back after its removal is refused so too: it is put in place of the very tombstone that was seen.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self

import structlog

from services.platform.config import Settings
from services.platform.opensearch.client import (
    BACKGROUND_TIMEOUT_S,
    CONFLICT,
    MAX_CALL_S,
    NOT_FOUND,
    BulkOperation,
    OpenSearch,
    RequestRejected,
    unavailable,
)
from services.platform.rpc import errors
from services.search.store import MAX_CHANGES, MAX_COMPLETED, MAX_FOUND, Build, Change, Collection, Hit, Place, Query
from services.search.store.opensearch import requests
from services.search.store.opensearch.build_lock import BuildLock
from services.search.store.opensearch.index_aliases import Generations

# Above every version: they are milliseconds, or small.
ABOVE_ALL = 1 << 62
# At the start a server gets this long to come up before anybody is told that it did not.
OPEN_MOST_S = 10.0
OPEN_RETRY_S = 0.5
# A write that meets a takeover, or another process at the same document, is done once more; more often something else is wrong.
TRIES = 5

_log = structlog.get_logger(__name__)


class OpenSearchIndex:
    """A SearchIndex over OpenSearch."""

    def __init__(self, opensearch: OpenSearch, settings: Settings) -> None:
        self._opensearch = opensearch
        self._generations = Generations(opensearch, settings.namespace, settings.opensearch_shards)
        self._lock = BuildLock(opensearch, settings.namespace)
        self._building: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Opens at once. Indexes are made meanwhile where there are none; who comes before makes them. Without a server search alone is
        down."""
        index = cls(OpenSearch.from_settings(settings), settings)
        index._later(index._make())
        return index

    @property
    def position(self) -> int | None:
        """See the port."""
        return None

    async def filled(self) -> bool:
        """See the port."""
        return (await self._generations.standing()).filled

    async def building(self) -> Build:
        """See the port."""
        standing = await self._generations.standing()
        held = await self._lock.read() if standing.filling else None
        return Build(standing.number, held.filled if held is not None and held.token else None)

    async def apply(self, changes: Sequence[Change], position: int = 0) -> None:
        """See the port."""
        assert len(changes) <= MAX_CHANGES
        for once in _each_once(changes):
            await self._apply(once)

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        """See the port."""
        found = await self._search(collection, requests.page_body(query, before_id, min(limit, MAX_FOUND)))
        return [hit["sort"][0] for hit in found["hits"]["hits"]]

    async def ranked(self, collection: Collection, query: Query, after: Place | None, limit: int) -> Sequence[Place]:
        """See the port."""
        found = await self._search(collection, requests.ranked_body(query, after, min(limit, MAX_FOUND)))
        return [Place(*hit["sort"]) for hit in found["hits"]["hits"]]

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str] = ()) -> Sequence[Hit]:
        """See the port."""
        body = requests.best_body(query, before_id, min(limit, MAX_FOUND), preferred)
        # Terms are weighed by how rare they are in all shards together.
        found = await self._search(Collection.TWEETS, body, search_type="dfs_query_then_fetch")
        return [
            Hit(
                hit["fields"][requests.ID][0],
                hit["fields"][requests.AUTHOR][0],
                hit["_score"],
                requests.PREFERRED in hit.get("matched_queries", ()),
            )
            for hit in found["hits"]["hits"]
        ]

    async def terms(self, prefix: str, limit: int) -> Sequence[str]:
        """See the port."""
        found = await self._search(Collection.TWEETS, requests.terms_body(prefix, min(limit, MAX_FOUND)))
        return [bucket["key"] for bucket in found["aggregations"][requests.EXACT]["buckets"]]

    async def most_used(self, prefixes: Sequence[str]) -> Sequence[str]:
        """See the port."""
        assert len(prefixes) <= MAX_COMPLETED
        if not prefixes:
            return []
        found = (await self._search(Collection.TWEETS, requests.most_used_body(prefixes)))["aggregations"]
        used = (found[str(place)][requests.EXACT]["buckets"] for place in range(len(prefixes)))
        return [buckets[0]["key"] if buckets else "" for buckets in used]

    async def count(self, collection: Collection) -> int:
        """See the port."""
        answer = await self._asked("GET", f"/{self._generations.alias(collection)}/_count", requests.count_body())
        return int(answer["count"])

    async def begin(self) -> None:
        """See the port."""
        self._building = None
        await self._lock.take()
        self._building = await self._generations.begin()

    async def fill(self, changes: Sequence[Change]) -> None:
        """See the port."""
        number = self._begun()
        # What stands, put there by `apply` or by an earlier try, has the same version or a higher one; a tombstone has the highest.
        operations = [
            _operation(change, self._generations.filling(change.collection, number), "external")
            for change in changes
            if change.document is not None
        ]
        if not operations:
            return
        for refusal in await self._opensearch.bulk(operations, BACKGROUND_TIMEOUT_S):
            if refusal is None or refusal.status == CONFLICT:
                continue
            if refusal.status == NOT_FOUND:
                self._building = None
                raise errors.failed_precondition("the index that was being built was given up")
            raise refusal
        self._lock.count(len(operations))

    async def finish(self) -> None:
        """See the port."""
        number = self._begun()
        await self._lock.confirm()
        await self._generations.refresh([self._generations.filling(kind, number) for kind in Collection])
        await self._generations.take_over(number)
        self._building = None
        await self._lock.leave()
        self._later(self._remove_before(number))

    async def close(self) -> None:
        """See the port."""
        number, self._building = self._building, None
        # What they have not made is made by who needs it, and what they have not removed is removed after the next takeover.
        for task in tuple(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if number is not None:
            try:
                await self._generations.give_up(number)
            except errors.RoostError as error:
                _log.warning("an unfinished search index is left behind", number=number, error=str(error))
        await self._lock.leave()
        await self._opensearch.close()

    async def _remove_before(self, number: int) -> None:
        # Searches that began in the index before this one are over by then.
        await asyncio.sleep(MAX_CALL_S)
        try:
            await self._generations.remove_retired(number)
        except errors.RoostError as error:
            _log.warning("a retired search index is left behind", error=str(error))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        # In an empty context: it outlives the call that asked for it.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self) -> None:
        give_up = asyncio.get_running_loop().time() + OPEN_MOST_S
        while True:
            try:
                await self._generations.ensure()
            except (errors.RoostError, RequestRejected) as error:
                if asyncio.get_running_loop().time() > give_up:
                    _log.error("no search index: searches are refused until the server answers", error=str(error))
                    return
                await asyncio.sleep(OPEN_RETRY_S)
            else:
                return

    def _begun(self) -> int:
        if self._building is None:
            raise errors.failed_precondition("no index is being built anew by this process")
        return self._building

    async def _apply(self, changes: Sequence[Change]) -> None:
        """Changes of different documents."""
        for _ in range(TRIES):
            # Seen before the write: what is begun after this look is filled by a scan that sees what these changes tell of.
            standing = await self._generations.standing()
            in_use = {kind: self._generations.alias(kind) for kind in Collection}
            filling = [
                {kind: self._generations.filling(kind, number) for kind in Collection} for number in standing.filling
            ]
            # The one being built first: where it took over in between, the second write finds it as the one in use.
            for names in filling:
                await self._write(changes, names)
            if not await self._write(changes, in_use):
                # Somebody dropped it.
                await self._generations.ensure()
                continue
            touched = {change.collection for change in changes}
            await self._generations.refresh(names[kind] for names in (*filling, in_use) for kind in touched)
            return
        raise unavailable("the search index changes hands")

    async def _write(self, changes: Sequence[Change], names: dict[Collection, str]) -> bool:
        """False where an index is not there any more."""
        operations = [_operation(change, names[change.collection], "external_gte") for change in changes]
        pending = list(changes)
        for _ in range(TRIES):
            refused: list[Change] = []
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
        raise unavailable("other processes change the same documents")

    async def _reconsider(
        self, refused: Sequence[Change], names: dict[Collection, str]
    ) -> tuple[list[Change], list[BulkOperation]]:
        """Those of the refused that are right all the same, as writes over just what was seen."""
        seen = [requests.VERSION, requests.REMOVED]
        wanted = [{"_index": names[c.collection], "_id": str(c.id), "_source": seen} for c in refused]
        answer = await self._opensearch.call("POST", "/_mget", {"docs": wanted}, BACKGROUND_TIMEOUT_S)
        changes: list[Change] = []
        operations: list[BulkOperation] = []
        for change, found in zip(refused, answer["docs"], strict=True):
            standing = found.get("_source")
            if standing is not None and _stays(standing, change):
                continue
            changes.append(change)
            operations.append(_over(change, names[change.collection], found if standing is not None else None))
        return changes, operations

    async def _search(self, collection: Collection, body: dict[str, Any], **parameters: str) -> Any:
        path = f"/{self._generations.alias(collection)}/_search"
        answer = await self._asked("POST", path, body, {"allow_partial_search_results": "false", **parameters})
        if answer["timed_out"]:
            raise unavailable("the search took too long")
        return answer

    async def _asked(self, method: str, path: str, body: object, parameters: Mapping[str, str] | None = None) -> Any:
        try:
            return await self._opensearch.call(method, path, body, parameters=parameters)
        except RequestRejected as error:
            if error.status != NOT_FOUND:
                raise
        # Somebody dropped the index: an empty one answers, until it is filled.
        await self._generations.ensure()
        return await self._opensearch.call(method, path, body, parameters=parameters)


def _each_once(changes: Sequence[Change]) -> Iterable[list[Change]]:
    """The changes in order, in parts that have each document once."""
    parts: list[list[Change]] = []
    times: dict[tuple[Collection, int], int] = {}
    for change in changes:
        key = change.collection, change.id
        part = times.get(key, 0)
        times[key] = part + 1
        if part == len(parts):
            parts.append([])
        parts[part].append(change)
    return parts


def _operation(change: Change, name: str, version_type: str) -> BulkOperation:
    version = ABOVE_ALL if change.document is None else change.document.version
    # Only under names that exist: nobody makes an index by writing to it.
    options = {"_index": name, "_id": str(change.id), "require_alias": True}
    return BulkOperation("index", options | {"version": version, "version_type": version_type}, _body(change))


def _over(change: Change, name: str, found: dict[str, Any] | None) -> BulkOperation:
    options: dict[str, Any] = {"_index": name, "_id": str(change.id), "require_alias": True}
    if found is None:
        return BulkOperation("create", options, _body(change))
    options |= {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
    return BulkOperation("index", options, _body(change))


def _stays(standing: dict[str, Any], change: Change) -> bool:
    """Whether the change is to be passed over, for what stands is newer or the same."""
    if change.document is None:
        return bool(standing.get(requests.REMOVED))
    return not standing.get(requests.REMOVED) and standing[requests.VERSION] > change.document.version


def _body(change: Change) -> bytes:
    return requests.TOMBSTONE if change.document is None else requests.document_body(change.document)
