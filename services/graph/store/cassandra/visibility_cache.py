"""Caches which authors are hidden from a reader, in process memory, under the reader's relation version in Redis.

This cache reads the version before the rows. A writer changes the version after the rows and before the write returns.
So an entry that is cached under a version is valid until the version changes, in every process. A block changes the
versions of both users, so the entry of a reader also becomes invalid if an author blocks the reader.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence

from cachetools import LRUCache
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.relationship import Pair, pair_key
from services.platform.cassandra.keyspace import Keyspace
from services.platform.redis.shared_versions import SharedVersions

# Maximum weight of the cache, counted in ids of 8 bytes in an array: 64 MB. Beyond it, the least recently used reader
# is dropped. An author in a dict takes as much as eight ids, so the cache holds 36,000 readers with 20 authors each.
MAX_WEIGHT = 8_000_000
_READER_WEIGHT = 60
_AUTHOR_WEIGHT = 8
# Maximum number of cached authors of one reader; beyond it, all cached authors of the reader are dropped. A reader
# reads tweets of about as many authors in a day.
MAX_AUTHORS = 2_000
# Maximum number of blocks and mutes of a cached reader. A reader with more is not cached, so that one user cannot evict
# thousands of others.
MAX_CACHED_EDGES = 50_000
# Maximum number of rows per read; more rows are read page by page.
PAGE_ROWS = 5_000
TOP = Position((1 << 63) - 1, (1 << 63) - 1)


class _Reader:
    """The cache entry of one reader under one version. `authors` maps an author id to (reader follows author, author
    blocks reader)."""

    __slots__ = ("authors", "blocked", "muted", "version")

    def __init__(self, version: int, blocked: array[int], muted: array[int]) -> None:
        self.version = version
        self.blocked = blocked
        self.muted = muted
        self.authors: dict[int, tuple[bool, bool]] = {}

    def weight(self) -> int:
        """Returns the size of this entry, counted in ids of 8 bytes."""
        return _READER_WEIGHT + len(self.blocked) + len(self.muted) + _AUTHOR_WEIGHT * len(self.authors)


class CassandraVisibilityCache:
    """Implements VisibilityStore on Cassandra and Redis. For use by one event loop; `mint` returns new ids."""

    def __init__(self, keyspace: Keyspace, shared: SharedVersions, mint: Callable[[], Awaitable[int]]) -> None:
        self._keyspace = keyspace
        self._shared = shared
        self._mint = mint
        self._readers: LRUCache[int, _Reader] = LRUCache(MAX_WEIGHT, _Reader.weight)
        self._loading: dict[tuple[int, int], asyncio.Task[_Reader]] = {}

    async def relation_version(self, user_id: int) -> int:
        """Returns the user's relation version. If Redis cannot be reached, returns a new id, which equals no cached
        version."""
        version = await self._shared.relation_version(user_id)
        return await self._mint() if version is None else version

    async def filter(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        """Builds the response from cached edges and reads all other edges from Cassandra. The lists in the response are
        copies, so the caller may change them."""
        reader = await self._reader(request.user_id)
        authors = await self._authors(request.user_id, reader, request.candidate_ids)
        return pb.GetVisibilityFilterResponse(
            blocked_ids=reader.blocked,
            muted_ids=reader.muted,
            following_ids=[i for i, (follows, _) in authors.items() if follows] if request.want_following else (),
            blocked_by_ids=[i for i, (_, blocks) in authors.items() if blocks],
            relation_version=reader.version,
        )

    async def _reader(self, user_id: int) -> _Reader:
        version = await self._shared.relation_version(user_id)
        if version is None:
            # Redis did not return a version, so no cached entry is used, because it is unknown whether the entry is
            # current. For the same reason, the result is not cached.
            return await self._load(user_id, await self._mint())
        cached = self._readers.get(user_id)
        if cached is not None and cached.version == version:
            return cached
        # Concurrent loads of the same reader and version share one task.
        task = self._loading.get((user_id, version))
        if task is None:
            task = self._loading[user_id, version] = asyncio.create_task(self._load(user_id, version))
            task.add_done_callback(lambda _: self._loading.pop((user_id, version), None))
        reader = await asyncio.shield(task)
        if len(reader.blocked) + len(reader.muted) <= MAX_CACHED_EDGES:
            self._readers[user_id] = reader
        return reader

    async def _load(self, user_id: int, version: int) -> _Reader:
        blocked, muted = await asyncio.gather(self._all(Listing.BLOCKS, user_id), self._all(Listing.MUTES, user_id))
        return _Reader(version, blocked, muted)

    async def _all(self, listing: Listing, user_id: int) -> array[int]:
        """Returns all ids of one of the user's lists."""
        found, below = array("q"), TOP
        while True:
            page = await self._keyspace.read(schema.PAGES[listing], user_id, *below, PAGE_ROWS)
            found.extend(other_id for _, other_id in page)
            if len(page) < PAGE_ROWS:
                return found
            below = Position(*page[-1])

    async def _authors(self, user_id: int, reader: _Reader, candidates: Iterable[int]) -> dict[int, tuple[bool, bool]]:
        """Returns (reader follows author, author blocks reader) by author id, reading uncached pairs."""
        wanted = dict.fromkeys(candidates)
        known = reader.authors
        found = {i: known[i] for i in wanted if i in known}
        unknown: Sequence[int] = [i for i in wanted if i not in found and i != user_id]
        if unknown:
            keys = [pair_key(user_id, other) for other in unknown]
            rows = await self._keyspace.read_each(schema.PAIR, keys)
            for other, key, row in zip(unknown, keys, rows, strict=True):
                relationship = Pair.of(*key, row[0] if row else None).relationship(user_id)
                found[other] = (relationship.following, relationship.blocked_by)
            if len(known) + len(unknown) > MAX_AUTHORS:
                known.clear()
            known.update(found)
            if self._readers.get(user_id) is reader:
                # The entry is inserted again, so that the cache computes its new weight.
                self._readers[user_id] = reader
        return found
