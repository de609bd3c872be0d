"""Reads the lists of edges from SQLite. They are not cached: each call reads the database."""

from __future__ import annotations

import sqlite3
from collections import Counter

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import Listing, Position
from services.graph.store.sqlite import schema as sql
from services.graph.store.sqlite.transactions import relationship_of
from services.platform.sqlite.database import Database

# Maximum number of the user's newest followees that suggestions read, and of the newest followees of each of them. So
# suggestions read at most 2,500 rows, which takes about 2 ms.
SUGGEST_FROM_FOLLOWEES = 50
SUGGEST_FROM_EACH = 50
_TOP = Position((1 << 63) - 1, (1 << 63) - 1)


class SqliteEdgeLists:
    """Implements EdgeLists on SQLite."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        bound = (user_id, *(below or _TOP), limit)
        return await self._db.read(lambda c: [Position(*row) for row in c.execute(sql.PAGES[listing], bound)])

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        rows = await self._db.read(lambda c: c.execute(sql.SCANS[kind], (*after, limit)).fetchall())
        return [pb.Edge(from_id=source, to_id=target, created_at_ms=at_ms) for source, target, at_ms in rows]

    async def suggestions(self, user_id: int, limit: int) -> list[int]:
        return await self._db.read(lambda c: _suggestions(c, user_id, limit))

    async def popular(self, limit: int) -> list[int]:
        return await self._db.read(lambda c: [row[0] for row in c.execute(sql.MOST_FOLLOWED, (limit,))])


def _suggestions(connection: sqlite3.Connection, user_id: int, limit: int) -> list[int]:
    def newest(of: int, most: int) -> list[int]:
        return [row[0] for row in connection.execute(sql.NEWEST_FOLLOWEES, (of, most))]

    found: Counter[int] = Counter()
    for followee in newest(user_id, SUGGEST_FROM_FOLLOWEES):
        found.update(newest(followee, SUGGEST_FROM_EACH))
    found.pop(user_id, None)
    suggested: list[int] = []
    for candidate, _ in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        if len(suggested) == limit:
            break
        relationship = relationship_of(connection, user_id, candidate)
        if not (relationship.following or relationship.blocking or relationship.blocked_by or relationship.muting):
            suggested.append(candidate)
    return suggested
