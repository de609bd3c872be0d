"""Caches which authors are hidden from readers, in process memory beside the SQLite tables.

One process owns the store, and every write invalidates the cache before it returns, so cached entries are as current as
the tables. Entries are dropped rather than updated, because dropping is correct in whatever order writes return.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable
from typing import NamedTuple

from cachetools import LRUCache
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store.sqlite import schema as sql
from services.platform.sqlite.database import Database

# Maximum number of ids in the cached edges of all readers; beyond it, the least recently used reader is dropped. An id
# takes 8 bytes in an array: 64 MB in all, or some 30,000 readers with 200 followees each.
MAX_READER_EDGE_IDS = 8_000_000
# Overhead of one cached reader, counted in ids: three arrays, a tuple and the cache entry.
_READER_WEIGHT = 60
# Maximum number of ids in the cached sets of blocked users; beyond it, the least recently used blocker is dropped. An
# id takes about 64 bytes in a set: 64 MB in all.
MAX_BLOCKED_IDS = 1_000_000
_BLOCKS_WEIGHT = 8
# Maximum number of cached ids of authors who block nobody, as most users do; beyond it, an arbitrary id is dropped. An
# id takes about 64 bytes: 32 MB in all.
MAX_NON_BLOCKERS = 500_000
# Maximum number of ids in a cached list. A longer list of followees or blocked users is not cached: each look-up reads
# the row of the two users. A reader with more blocks and mutes is not cached at all. So one user cannot evict thousands
# of others.
MAX_CACHED_EDGES = 50_000
_ALL = -1


class _ReaderEdges(NamedTuple):
    """A reader's own edges, all from one snapshot. `followees` is ascending; None if there are more than
    MAX_CACHED_EDGES."""

    version: int
    blocked: array[int]
    muted: array[int]
    followees: array[int] | None


class _Snapshot(NamedTuple):
    """The result of one read transaction. `blocks` holds the users whom each author blocks; None if there are more than
    MAX_CACHED_EDGES."""

    own: _ReaderEdges | None
    blocks: dict[int, frozenset[int] | None]


class _PendingLoad:
    """A load in progress: the reader and the authors whose rows may be cached when the load ends. If a write changes
    rows of these users meanwhile, `invalidate` removes the users."""

    def __init__(self, reader_id: int, authors: Iterable[int]) -> None:
        self.reader_id = reader_id
        self.authors = set(authors)


class SqliteVisibilityCache:
    """Implements VisibilityStore from cached edges, and reads edges that are not cached from SQLite. For use by one
    event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._reader_edges: LRUCache[int, _ReaderEdges] = LRUCache(MAX_READER_EDGE_IDS, _reader_weight)
        self._blocks: LRUCache[int, frozenset[int] | None] = LRUCache(MAX_BLOCKED_IDS, _blocks_weight)
        self._known_non_blockers: set[int] = set()
        self._loads: list[_PendingLoad] = []

    def invalidate(self, readers: Collection[int], blockers: Collection[int] = ()) -> None:
        """Drops the cached edges of each user in `readers` and the cached blocks of each user in `blockers`. Also
        prevents loads in progress from caching rows of these users."""
        for user_id in readers:
            self._reader_edges.pop(user_id, None)
        for user_id in blockers:
            self._blocks.pop(user_id, None)
            self._known_non_blockers.discard(user_id)
        for load in self._loads:
            if load.reader_id in readers:
                load.reader_id = 0
            load.authors.difference_update(blockers)

    async def filter(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        """Builds the response from cached edges and reads all other edges from SQLite. The lists in the response are
        copies, so the caller may change them."""
        reader_id, authors = request.user_id, set(request.candidate_ids)
        own = self._reader_edges.get(reader_id)
        if own is None:
            # Own edges and blocks are read in one snapshot: cached blocks might be older than the version read now, and
            # callers cache the response under that version.
            own, blocks = await self._load(reader_id, authors)
        else:
            blocks = await self._blocks_of(authors - self._known_non_blockers)
        blocked_by = [author for author, ids in blocks.items() if ids and reader_id in ids]
        if large := [author for author, ids in blocks.items() if ids is None]:
            blocked_by += await self._db.read(lambda c: [a for a in large if _has(c, sql.HAS_BLOCK, a, reader_id)])
        following: list[int] = []
        if request.want_following and own.followees is not None:
            following = [author for author in authors if _is_in(own.followees, author)]
        elif request.want_following:
            following = await self._db.read(lambda c: [a for a in authors if _has(c, sql.HAS_FOLLOW, reader_id, a)])
        return pb.GetVisibilityFilterResponse(
            blocked_ids=own.blocked,
            muted_ids=own.muted,
            following_ids=following,
            blocked_by_ids=blocked_by,
            relation_version=own.version,
        )

    async def relation_version(self, user_id: int) -> int:
        row = await self._db.read(lambda c: c.execute(sql.VERSION, (user_id,)).fetchone())
        return row[0] if row else 0

    async def _blocks_of(self, authors: set[int]) -> dict[int, frozenset[int] | None]:
        blocks = {author: self._blocks[author] for author in authors if author in self._blocks}
        if unknown := authors - blocks.keys():
            blocks |= (await self._read(0, unknown)).blocks
        return blocks

    async def _load(self, reader_id: int, authors: set[int]) -> tuple[_ReaderEdges, dict[int, frozenset[int] | None]]:
        own, blocks = await self._read(reader_id, authors)
        return own or _ReaderEdges(0, array("q"), array("q"), array("q")), blocks

    async def _read(self, reader_id: int, authors: set[int]) -> _Snapshot:
        """Reads the reader's edges and the authors' blocks in one snapshot, and caches the rows that no write has
        changed meanwhile. For reader 0 (not signed in) reads only the blocks."""
        load = _PendingLoad(reader_id, authors)
        self._loads.append(load)
        try:
            found = await self._db.read(lambda c: _read(c, reader_id, authors))
        finally:
            self._loads.remove(load)
        own = found.own
        if own and load.reader_id and len(own.blocked) + len(own.muted) <= MAX_CACHED_EDGES:
            self._reader_edges[reader_id] = own
        for author in load.authors:
            ids = found.blocks[author]
            if ids is None or ids:
                self._blocks[author] = ids
            else:
                self._known_non_blockers.add(author)
        while len(self._known_non_blockers) > MAX_NON_BLOCKERS:
            self._known_non_blockers.pop()
        return found


def _reader_weight(own: _ReaderEdges) -> int:
    return _READER_WEIGHT + len(own.blocked) + len(own.muted) + len(own.followees or ())


def _blocks_weight(ids: frozenset[int] | None) -> int:
    return _BLOCKS_WEIGHT + len(ids or ())


def _is_in(ascending: array[int], user_id: int) -> bool:
    index = bisect_left(ascending, user_id)
    return index < len(ascending) and ascending[index] == user_id


def _has(connection: sqlite3.Connection, query: str, source_id: int, target_id: int) -> bool:
    return connection.execute(query, (source_id, target_id)).fetchone() is not None


def _read(connection: sqlite3.Connection, reader_id: int, authors: Iterable[int]) -> _Snapshot:
    def ids(query: str, user_id: int, most: int) -> array[int]:
        return array("q", [row[0] for row in connection.execute(query, (user_id, most))])

    blocks: dict[int, frozenset[int] | None] = {}
    for author in authors:
        blocked = ids(sql.BLOCKED, author, MAX_CACHED_EDGES + 1)
        blocks[author] = frozenset(blocked) if len(blocked) <= MAX_CACHED_EDGES else None
    if not reader_id:
        return _Snapshot(None, blocks)
    row = connection.execute(sql.VERSION, (reader_id,)).fetchone()
    followees = ids(sql.FOLLOWEES, reader_id, MAX_CACHED_EDGES + 1)
    own = _ReaderEdges(
        version=row[0] if row else 0,
        blocked=ids(sql.BLOCKED, reader_id, _ALL),
        muted=ids(sql.MUTED, reader_id, _ALL),
        followees=followees if len(followees) <= MAX_CACHED_EDGES else None,
    )
    return _Snapshot(own, blocks)
