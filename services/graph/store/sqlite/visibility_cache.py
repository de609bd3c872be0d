"""What hides authors from readers, kept in process memory beside the embedded tables.

An embedded store belongs to one process, so memory that every write corrects before it returns is as good as the tables.
Entries are dropped rather than changed: that is right in whatever order the writes come back.
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
from services.platform.caching.read_tracking import ChangeTracker
from services.platform.sqlite.database import Database

# Readers' own edges, packed: 8 bytes an id, so 64 MB; with 200 followees each, some 30,000 readers.
MAX_STANDING_IDS = 8_000_000
# What an entry costs beside its ids, in ids: three arrays, a tuple, and its place in the cache.
_STANDING_WEIGHT = 60
# Whom blockers block, as sets of about 64 bytes an id: 64 MB.
MAX_BLOCKED_IDS = 1_000_000
_BLOCKS_WEIGHT = 8
# Authors known to block nobody, which is nearly everybody, at about 64 bytes: 32 MB.
MAX_QUIET = 500_000
# Larger than this is not kept but asked row by row, so that one user cannot push out thousands of others.
MAX_KEPT_EDGES = 50_000
_ALL = -1


class _Standing(NamedTuple):
    """A reader's own edges, all of one snapshot. `followees` ascend, and are None where they are too many to keep."""

    version: int
    blocked: array[int]
    muted: array[int]
    followees: array[int] | None


class _Read(NamedTuple):
    """What one snapshot says. `blocks` holds None where somebody blocks too many to keep."""

    standing: _Standing | None
    blocks: dict[int, frozenset[int] | None]


class _Load:
    """A read under way: what of it may be kept shrinks when writes return in the meantime."""

    def __init__(self, reader_id: int, authors: Iterable[int]) -> None:
        self.reader_id = reader_id
        self.authors = set(authors)


class Visibility:
    """Answers GetVisibilityFilter from memory where it can. Of one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._standings: LRUCache[int, _Standing] = LRUCache(MAX_STANDING_IDS, _standing_weight)
        self._blocks: LRUCache[int, frozenset[int] | None] = LRUCache(MAX_BLOCKED_IDS, _blocks_weight)
        self._quiet: set[int] = set()
        self._loads: list[_Load] = []
        # By reader: whoever blocks or unblocks somebody changes both.
        self._revisions = ChangeTracker()

    def forget(self, readers: Collection[int], blockers: Collection[int] = ()) -> None:
        """Drops the own edges of `readers` and whom `blockers` block, also from reads that may have come too early."""
        self._revisions.changed(readers)
        for user_id in readers:
            self._standings.pop(user_id, None)
        for user_id in blockers:
            self._blocks.pop(user_id, None)
            self._quiet.discard(user_id)
        for load in self._loads:
            if load.reader_id in readers:
                load.reader_id = 0
            load.authors.difference_update(blockers)

    async def answer(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        """The response, in memory of its own."""
        reader_id, authors = request.user_id, set(request.candidate_ids)
        self._revisions.read((reader_id,))
        standing = self._standings.get(reader_id)
        if standing is None:
            # All of it from one snapshot: what is kept might be older than the version that is read now, and what is
            # answered with a version may be remembered under it.
            standing, blocks = await self._load(reader_id, authors)
        else:
            blocks = await self._blocks_of(authors - self._quiet)
        blocked_by = [author for author, ids in blocks.items() if ids and reader_id in ids]
        if large := [author for author, ids in blocks.items() if ids is None]:
            blocked_by += await self._db.read(lambda c: [a for a in large if _has(c, sql.HAS_BLOCK, a, reader_id)])
        following: list[int] = []
        if request.want_following and standing.followees is not None:
            following = [author for author in authors if _is_in(standing.followees, author)]
        elif request.want_following:
            following = await self._db.read(lambda c: [a for a in authors if _has(c, sql.HAS_FOLLOW, reader_id, a)])
        return pb.GetVisibilityFilterResponse(
            blocked_ids=standing.blocked,
            muted_ids=standing.muted,
            following_ids=following,
            blocked_by_ids=blocked_by,
            relation_version=standing.version,
        )

    async def _blocks_of(self, authors: set[int]) -> dict[int, frozenset[int] | None]:
        blocks = {author: self._blocks[author] for author in authors if author in self._blocks}
        if unknown := authors - blocks.keys():
            blocks |= (await self._read(0, unknown)).blocks
        return blocks

    async def _load(self, reader_id: int, authors: set[int]) -> tuple[_Standing, dict[int, frozenset[int] | None]]:
        standing, blocks = await self._read(reader_id, authors)
        return standing or _Standing(0, array("q"), array("q"), array("q")), blocks

    async def _read(self, reader_id: int, authors: set[int]) -> _Read:
        """Reads in one snapshot, and keeps what no write has overtaken. With reader 0, the blocks alone."""
        load = _Load(reader_id, authors)
        self._loads.append(load)
        try:
            found = await self._db.read(lambda c: _read(c, reader_id, authors))
        finally:
            self._loads.remove(load)
        standing = found.standing
        if standing and load.reader_id and len(standing.blocked) + len(standing.muted) <= MAX_KEPT_EDGES:
            self._standings[reader_id] = standing
        for author in load.authors:
            ids = found.blocks[author]
            if ids is None or ids:
                self._blocks[author] = ids
            else:
                self._quiet.add(author)
        while len(self._quiet) > MAX_QUIET:
            self._quiet.pop()
        return found


def _standing_weight(standing: _Standing) -> int:
    return _STANDING_WEIGHT + len(standing.blocked) + len(standing.muted) + len(standing.followees or ())


def _blocks_weight(ids: frozenset[int] | None) -> int:
    return _BLOCKS_WEIGHT + len(ids or ())


def _is_in(ascending: array[int], user_id: int) -> bool:
    place = bisect_left(ascending, user_id)
    return place < len(ascending) and ascending[place] == user_id


def _has(connection: sqlite3.Connection, query: str, source_id: int, target_id: int) -> bool:
    return connection.execute(query, (source_id, target_id)).fetchone() is not None


def _read(connection: sqlite3.Connection, reader_id: int, authors: Iterable[int]) -> _Read:
    def ids(query: str, user_id: int, most: int) -> array[int]:
        return array("q", [row[0] for row in connection.execute(query, (user_id, most))])

    blocks: dict[int, frozenset[int] | None] = {}
    for author in authors:
        blocked = ids(sql.BLOCKED, author, MAX_KEPT_EDGES + 1)
        blocks[author] = frozenset(blocked) if len(blocked) <= MAX_KEPT_EDGES else None
    if not reader_id:
        return _Read(None, blocks)
    row = connection.execute(sql.VERSION, (reader_id,)).fetchone()
    followees = ids(sql.FOLLOWEES, reader_id, MAX_KEPT_EDGES + 1)
    standing = _Standing(
        version=row[0] if row else 0,
        blocked=ids(sql.BLOCKED, reader_id, _ALL),
        muted=ids(sql.MUTED, reader_id, _ALL),
        followees=followees if len(followees) <= MAX_KEPT_EDGES else None,
    )
    return _Read(standing, blocks)
