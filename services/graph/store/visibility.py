"""What hides authors from readers, kept in process memory beside the embedded tables.

An embedded store belongs to one process, so memory that every write corrects before it returns is as good as the tables.
Entries are dropped rather than changed: that is right in whatever order the writes come back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cachetools import LRUCache
from roost.graph.v1 import graph_service_pb2 as pb

from services.common.drivers.sqlite import Database
from services.graph.store import schema as sql

# Ids kept, each about 64 bytes in a frozenset: 64 MB at most in each of the two caches.
MAX_KEPT_IDS = 1_000_000
# A set larger than this is not kept but asked row by row, so that one reader cannot push out hundreds of others.
MAX_KEPT_SET = 5_000
_ALL = -1
# An entry costs about as much as so many ids.
_ENTRY_WEIGHT = 8

# None stands for a set too large to keep.
_Ids = frozenset[int] | None
_UNKNOWN: frozenset[int] = frozenset((0,))


class _Standing(NamedTuple):
    """A reader's own edges, all of one snapshot."""

    version: int
    blocked: frozenset[int]
    muted: frozenset[int]
    followees: _Ids


class _Load:
    """A load under way: what of it may be kept shrinks when writes return in the meantime."""

    def __init__(self, reader_id: int, authors: Iterable[int]) -> None:
        self.reader_id = reader_id
        self.authors = set(authors)


class Visibility:
    """Answers GetVisibilityFilter from memory where it can. Of one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._standings: LRUCache[int, _Standing] = LRUCache(MAX_KEPT_IDS, _standing_weight)
        self._blocks: LRUCache[int, _Ids] = LRUCache(MAX_KEPT_IDS, _ids_weight)
        self._loads: list[_Load] = []

    def forget(self, readers: Iterable[int], blockers: Iterable[int] = ()) -> None:
        """Drops the own edges of `readers` and whom `blockers` block, also from loads that may have read too early."""
        readers, blockers = tuple(readers), tuple(blockers)
        for user_id in readers:
            self._standings.pop(user_id, None)
        for user_id in blockers:
            self._blocks.pop(user_id, None)
        for load in self._loads:
            if load.reader_id in readers:
                load.reader_id = 0
            load.authors.difference_update(blockers)

    async def answer(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        """The response, in memory of its own."""
        reader_id, authors = request.user_id, request.candidate_ids
        standing = self._standings.get(reader_id)
        if standing is None:
            # All of it from one snapshot: a kept set might be older than the version that is read now, and what is
            # answered with a version may be remembered under it.
            standing, blocks = await self._load(reader_id, authors)
        else:
            get = self._blocks.get
            blocks = {author: get(author, _UNKNOWN) for author in authors}
            if unknown := [author for author, ids in blocks.items() if ids is _UNKNOWN]:
                blocks |= (await self._load(0, unknown))[1]
        blocked_by = [author for author, ids in blocks.items() if ids and reader_id in ids]
        followees = standing.followees
        following = [author for author in blocks if author in followees] if request.want_following and followees else []
        asks_followees = request.want_following and followees is None
        if asks_followees or None in blocks.values():
            large = [author for author, ids in blocks.items() if ids is None]
            rows = await self._db.read(lambda c: _ask_rows(c, reader_id, large, list(blocks) if asks_followees else ()))
            blocked_by += rows[0]
            following += rows[1]
        return pb.GetVisibilityFilterResponse(
            blocked_ids=standing.blocked,
            muted_ids=standing.muted,
            following_ids=following,
            blocked_by_ids=blocked_by,
            relation_version=standing.version,
        )

    async def _load(self, reader_id: int, authors: Iterable[int]) -> tuple[_Standing, dict[int, _Ids]]:
        """Reads what is wanted in one snapshot, and keeps what no write has overtaken. Reader 0 has no standing to read."""
        load = _Load(reader_id, authors)
        wanted = tuple(load.authors)
        self._loads.append(load)
        try:
            standing, blocks = await self._db.read(lambda c: (_read_standing(c, reader_id), _read_blocks(c, wanted)))
        finally:
            self._loads.remove(load)
        if load.reader_id and len(standing.blocked) + len(standing.muted) <= MAX_KEPT_SET:
            self._standings[reader_id] = standing
        for author in load.authors:
            self._blocks[author] = blocks[author]
        return standing, blocks


def _standing_weight(standing: _Standing) -> int:
    return _ENTRY_WEIGHT + len(standing.blocked) + len(standing.muted) + len(standing.followees or ())


def _ids_weight(ids: _Ids) -> int:
    return _ENTRY_WEIGHT + len(ids or ())


def _read_ids(connection: sqlite3.Connection, query: str, user_id: int, most: int) -> frozenset[int]:
    return frozenset(row[0] for row in connection.execute(query, (user_id, most)))


def _read_kept(connection: sqlite3.Connection, query: str, user_id: int) -> _Ids:
    ids = _read_ids(connection, query, user_id, MAX_KEPT_SET + 1)
    return ids if len(ids) <= MAX_KEPT_SET else None


def _read_standing(connection: sqlite3.Connection, reader_id: int) -> _Standing:
    if not reader_id:
        return _Standing(0, frozenset(), frozenset(), frozenset())
    row = connection.execute(sql.VERSION, (reader_id,)).fetchone()
    return _Standing(
        version=row[0] if row else 0,
        blocked=_read_ids(connection, sql.BLOCKED, reader_id, _ALL),
        muted=_read_ids(connection, sql.MUTED, reader_id, _ALL),
        followees=_read_kept(connection, sql.FOLLOWEES, reader_id),
    )


def _read_blocks(connection: sqlite3.Connection, authors: Sequence[int]) -> dict[int, _Ids]:
    return {author: _read_kept(connection, sql.BLOCKED, author) for author in authors}


def _ask_rows(
    connection: sqlite3.Connection, reader_id: int, blockers: Sequence[int], followees: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Those of `blockers` who block the reader, and those of `followees` whom the reader follows."""
    ask = connection.execute
    blocked_by = [author for author in blockers if ask(sql.HAS_BLOCK, (author, reader_id)).fetchone()]
    return blocked_by, [author for author in followees if ask(sql.HAS_FOLLOW, (reader_id, author)).fetchone()]
