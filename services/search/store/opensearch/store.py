"""The search index on OpenSearch, shared by all processes of the service. Changes are durable when `apply` returns.

A change is written to the generation in use and to one that is being built. If an index has another version of the
document, `document_writer` decides which version stays.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self

import structlog

from services.platform.config import Settings
from services.platform.log_events import LogEvent
from services.platform.opensearch.client import (
    MAX_CALL_S,
    NOT_FOUND,
    OpenSearch,
    RequestRejected,
    unavailable,
)
from services.platform.rpc import errors
from services.search.store import (
    MAX_CHANGES,
    MAX_COMPLETED,
    MAX_FOUND,
    BuildStatus,
    Collection,
    Hit,
    IndexChange,
    Query,
    RankPosition,
)
from services.search.store.opensearch import requests
from services.search.store.opensearch.build_lock import BuildLock
from services.search.store.opensearch.document_writer import DocumentWriter
from services.search.store.opensearch.index_aliases import IndexGenerations

# Seconds after which the attempts to create missing indexes at the start end with a logged error, and seconds between
# two attempts. OpenSearch may be starting too.
OPEN_MAX_S = 10.0
OPEN_RETRY_S = 0.5
# Maximum number of attempts of a write. An attempt fails if the index in use does not exist, because it was dropped.
# After the last one the write is rejected with UNAVAILABLE.
TRIES = 5

log = structlog.get_logger(__name__)


class OpenSearchIndex:
    """A SearchIndex on OpenSearch."""

    def __init__(self, opensearch: OpenSearch, settings: Settings) -> None:
        self._opensearch = opensearch
        self._generations = IndexGenerations(opensearch, settings.namespace, settings.opensearch_shards)
        self._writer = DocumentWriter(opensearch)
        self._lock = BuildLock(opensearch, settings.namespace)
        self._building: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, settings: Settings) -> Self:
        """Returns the index without waiting for OpenSearch. Missing indexes are created in the background, or by the
        first call that needs them. So the process starts even if OpenSearch does not answer, and only searches fail."""
        index = cls(OpenSearch.from_settings(settings), settings)
        index._start_task(index._create_missing())
        return index

    @property
    def position(self) -> int | None:
        return None

    async def build_status(self) -> BuildStatus:
        state = await self._generations.state()
        held = await self._lock.read() if state.filling else None
        return BuildStatus(state.number, state.filled, held.filled if held is not None and held.token else None)

    async def apply(self, changes: Sequence[IndexChange], position: int = 0) -> None:
        assert len(changes) <= MAX_CHANGES
        for once in _split_by_document(changes):
            await self._apply(once)

    async def newest(self, collection: Collection, query: Query, before_id: int, limit: int) -> Sequence[int]:
        found = await self._search(collection, requests.page_body(query, before_id, min(limit, MAX_FOUND)))
        return [hit["sort"][0] for hit in found["hits"]["hits"]]

    async def ranked(
        self, collection: Collection, query: Query, after: RankPosition | None, limit: int
    ) -> Sequence[RankPosition]:
        found = await self._search(collection, requests.ranked_body(query, after, min(limit, MAX_FOUND)))
        return [RankPosition(*hit["sort"]) for hit in found["hits"]["hits"]]

    async def best(self, query: Query, before_id: int, limit: int, preferred: Sequence[str] = ()) -> Sequence[Hit]:
        body = requests.best_body(query, before_id, min(limit, MAX_FOUND), preferred)
        # With `dfs_query_then_fetch` scores are computed from the term statistics of all shards, so that scores of
        # different shards are comparable.
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
        found = await self._search(Collection.TWEETS, requests.terms_body(prefix, min(limit, MAX_FOUND)))
        return [bucket["key"] for bucket in found["aggregations"][requests.EXACT]["buckets"]]

    async def most_used(self, prefixes: Sequence[str]) -> Sequence[str]:
        assert len(prefixes) <= MAX_COMPLETED
        if not prefixes:
            return []
        found = (await self._search(Collection.TWEETS, requests.most_used_body(prefixes)))["aggregations"]
        used = (found[str(place)][requests.EXACT]["buckets"] for place in range(len(prefixes)))
        return [buckets[0]["key"] if buckets else "" for buckets in used]

    async def count(self, collection: Collection) -> int:
        answer = await self._call_creating_index(
            "GET", f"/{self._generations.alias(collection)}/_count", requests.count_body()
        )
        return int(answer["count"])

    async def begin(self) -> None:
        self._building = None
        await self._lock.acquire()
        self._building = await self._generations.begin()

    async def fill(self, changes: Sequence[IndexChange]) -> None:
        number = self._require_build()
        documents = [change for change in changes if change.document is not None]
        if not documents:
            return
        if not await self._writer.add_unknown(documents, self._aliases_of_build(number)):
            self._building = None
            raise errors.failed_precondition(
                "another process discarded the search index being built: start a reindex again"
            )
        self._lock.count(len(documents))

    async def finish(self) -> None:
        number = self._require_build()
        await self._lock.renew()
        await self._generations.refresh([self._generations.filling(kind, number) for kind in Collection])
        await self._generations.take_over(number)
        self._building = None
        await self._lock.release()
        self._start_task(self._remove_before(number))

    async def close(self) -> None:
        number, self._building = self._building, None
        # The background tasks may be cancelled: a later call creates missing indexes, and the end of the next build
        # deletes retired ones.
        for task in tuple(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if number is not None:
            try:
                await self._generations.discard(number)
            except errors.RoostError as error:
                log.warning(LogEvent.SEARCH_INDEX_DISCARD_FAILED, number=number, error=str(error))
        await self._lock.release()
        await self._opensearch.close()

    async def _remove_before(self, number: int) -> None:
        # No search takes longer than MAX_CALL_S seconds, so afterwards none reads the old index.
        await asyncio.sleep(MAX_CALL_S)
        try:
            await self._generations.remove_retired(number)
        except errors.RoostError as error:
            log.warning(LogEvent.SEARCH_INDEX_REMOVE_RETIRED_FAILED, error=str(error))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        # An empty context, so that the task does not have the deadline of the call that starts it.
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _create_missing(self) -> None:
        give_up = asyncio.get_running_loop().time() + OPEN_MAX_S
        while True:
            try:
                await self._generations.ensure()
            except (errors.RoostError, RequestRejected) as error:
                if asyncio.get_running_loop().time() > give_up:
                    log.error(LogEvent.SEARCH_INDEX_OPEN_FAILED, error=str(error))
                    return
                await asyncio.sleep(OPEN_RETRY_S)
            else:
                return

    def _require_build(self) -> int:
        if self._building is None:
            raise errors.failed_precondition("this process is not building a search index: start a reindex first")
        return self._building

    def _aliases_of_build(self, number: int) -> dict[Collection, str]:
        return {kind: self._generations.filling(kind, number) for kind in Collection}

    async def _apply(self, changes: Sequence[IndexChange]) -> None:
        """Applies changes, each of another document, to the generations in use and being built. Raises UNAVAILABLE
        after TRIES attempts."""
        for _ in range(TRIES):
            # The state is read before the write. A build that begins afterwards needs no write, because its scan reads
            # the current tweets and users.
            state = await self._generations.state()
            in_use = {kind: self._generations.alias(kind) for kind in Collection}
            filling = [self._aliases_of_build(number) for number in state.filling]
            # The generation being built is written first. If it is put in use between the two writes, the second write
            # repeats the first. In the other order both writes could miss it.
            for names in filling:
                await self._writer.write(changes, names)
            if not await self._writer.write(changes, in_use):
                # The index in use does not exist: an operator or another process dropped it. Creates an empty one and
                # repeats the write.
                await self._generations.ensure()
                continue
            touched = {change.collection for change in changes}
            await self._generations.refresh(names[kind] for names in (*filling, in_use) for kind in touched)
            return
        raise unavailable("the search index was dropped or replaced during the write: retry later")

    async def _search(self, collection: Collection, body: dict[str, Any], **parameters: str) -> Any:
        path = f"/{self._generations.alias(collection)}/_search"
        answer = await self._call_creating_index(
            "POST", path, body, {"allow_partial_search_results": "false", **parameters}
        )
        if answer["timed_out"]:
            raise unavailable("the search took too long: retry later, or use fewer terms")
        return answer

    async def _call_creating_index(
        self, method: str, path: str, body: object, parameters: Mapping[str, str] | None = None
    ) -> Any:
        try:
            return await self._opensearch.call(method, path, body, parameters=parameters)
        except RequestRejected as error:
            if error.status != NOT_FOUND:
                raise
        # The index does not exist: an operator or another process dropped it. Creates an empty one and repeats the
        # request. Searches find nothing until a rebuild has filled the index.
        await self._generations.ensure()
        return await self._opensearch.call(method, path, body, parameters=parameters)


def _split_by_document(changes: Sequence[IndexChange]) -> Iterable[list[IndexChange]]:
    """Splits the changes into parts, in order, so that no part has two changes of one document."""
    parts: list[list[IndexChange]] = []
    times: dict[tuple[Collection, int], int] = {}
    for change in changes:
        key = change.collection, change.id
        part = times.get(key, 0)
        times[key] = part + 1
        if part == len(parts):
            parts.append([])
        parts[part].append(change)
    return parts
