"""Stores the counts of followers and followees in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.store import EdgeLists, Listing, Position
from services.graph.store.sqlite import schema as sql
from services.platform.sqlite.absences import decide
from services.platform.sqlite.database import Database

# Maximum number of edges processed in one transaction when a user becomes absent or active again; other writes wait
# until the transaction ends.
ABSENCE_STEP = 500


class SqliteCountStore:
    """Implements CountStore on SQLite. `lists` reads the lists of the same database."""

    def __init__(self, db: Database, lists: EdgeLists) -> None:
        self._db = db
        self._lists = lists

    async def batch_get(self, user_ids: Sequence[int]) -> dict[int, pb.UserCounts]:
        ids = tuple(user_ids)
        rows = await self._db.read(lambda c: [(i, row) for i in ids if (row := c.execute(sql.COUNTS, (i,)).fetchone())])
        return {user_id: pb.UserCounts(followers=row[0], following=row[1]) for user_id, row in rows}

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        # The absence is stored first: later follows check it, and the loop below handles the earlier follows.
        if not await self._db.write(lambda c: decide(c, user_id, absent, at_us)):
            return
        for listing, side in ((Listing.FOLLOWING, sql.OF_FOLLOWERS), (Listing.FOLLOWERS, sql.OF_FOLLOWEES)):
            below: Position | None = None
            while page := await self._lists.page(listing, user_id, below, ABSENCE_STEP):
                await self._db.write(lambda c: _apply_absence(c, page, side, user_id, absent))  # noqa: B023 (awaited)
                below = page[-1]


def _apply_absence(
    connection: sqlite3.Connection, others: Sequence[Position], side: int, user_id: int, absent: bool
) -> None:
    """If `absent`, excludes the user from the follower or followee counts (`side`) of `others`, else includes the user
    again. Counts that are correct already stay unchanged."""
    for _, other_id in others:
        # The follow may have been deleted since the list was read.
        follows = (user_id, other_id) if side == sql.OF_FOLLOWERS else (other_id, user_id)
        if absent and not connection.execute(sql.HAS_FOLLOW, follows).fetchone():
            continue
        if connection.execute(sql.UNCOUNT if absent else sql.COUNT_AGAIN, (other_id, side, user_id)).rowcount:
            connection.execute(sql.COUNT_ONE[side], (-1 if absent else 1, other_id))
