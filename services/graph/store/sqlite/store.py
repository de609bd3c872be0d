"""The SQLite adapter of graph's store: one file, with the visibility cache in memory beside it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import EventBuilder, WriteStamp
from services.graph.store import Listing, Outcome, Position, ReclassifiedBatch, TierHook
from services.graph.store.sqlite import schema as sql
from services.graph.store.sqlite.visibility_cache import SqliteVisibilityCache
from services.graph.tier_publisher import TierRule
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite import outbox
from services.platform.sqlite.absences import decide, is_absent
from services.platform.sqlite.database import Database

T = TypeVar("T")

# Suggestions read at most 2,500 rows, about 2 ms.
SUGGEST_FROM_FOLLOWEES = 50
SUGGEST_FROM_EACH = 50
# Edges processed in one transaction when a user becomes inactive or active again; other writes wait meanwhile.
ABSENCE_STEP = 500
_TOP = Position((1 << 63) - 1, (1 << 63) - 1)
_THRESHOLD = "celebrity_threshold"


class EmbeddedGraphStore:
    """GraphStore on SQLite. Each write is one transaction; transactions are committed in groups."""

    def __init__(self, db: Database, rule: TierRule) -> None:
        self.db = db
        self._rule = rule
        self._visibility_cache = SqliteVisibilityCache(db)
        self._hooks: list[TierHook] = []
        # Writes whose caller may be gone: they must still invalidate the cache.
        self._writes: set[asyncio.Task[object]] = set()

    @classmethod
    async def open(cls, path: Path, rule: TierRule) -> Self:
        """Opens the file, or creates it. Raises FAILED_PRECONDITION if another process has it open."""
        return cls(await Database.open(path, sql.MIGRATIONS), rule)

    async def close(self) -> None:
        await self.db.close()

    def on_tier_change(self, hook: TierHook) -> None:
        self._hooks.append(hook)

    async def follow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._write(_WriteTransaction.follow, follower_id, followee_id, change)

    async def unfollow(self, follower_id: int, followee_id: int, change: WriteStamp) -> Outcome:
        return await self._write(_WriteTransaction.unfollow, follower_id, followee_id, change)

    async def block(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(_WriteTransaction.block, user_id, target_id, change)

    async def unblock(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(_WriteTransaction.unblock, user_id, target_id, change)

    async def mute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(_WriteTransaction.mute, user_id, target_id, change)

    async def unmute(self, user_id: int, target_id: int, change: WriteStamp) -> Outcome:
        return await self._write(_WriteTransaction.unmute, user_id, target_id, change)

    async def relationships(self, user_id: int, other_ids: Sequence[int]) -> list[pb.Relationship]:
        others = tuple(other_ids)
        return await self.db.read(lambda c: [_relationship(c, user_id, other) for other in others])

    async def page(self, listing: Listing, user_id: int, below: Position | None, limit: int) -> list[Position]:
        bound = (user_id, *(below or _TOP), limit)
        return await self.db.read(lambda c: [Position(*row) for row in c.execute(sql.PAGES[listing], bound)])

    async def scan(self, kind: pb.EdgeKind.ValueType, after: tuple[int, int], limit: int) -> list[pb.Edge]:
        rows = await self.db.read(lambda c: c.execute(sql.SCANS[kind], (*after, limit)).fetchall())
        return [pb.Edge(from_id=source, to_id=target, created_at_ms=at_ms) for source, target, at_ms in rows]

    async def visibility(self, request: pb.GetVisibilityFilterRequest) -> pb.GetVisibilityFilterResponse:
        return await self._visibility_cache.answer(request)

    async def relation_version(self, user_id: int) -> int:
        row = await self.db.read(lambda c: c.execute(sql.VERSION, (user_id,)).fetchone())
        return row[0] if row else 0

    async def counts(self, user_ids: Sequence[int]) -> dict[int, pb.UserCounts]:
        ids = tuple(user_ids)
        rows = await self.db.read(lambda c: [(i, row) for i in ids if (row := c.execute(sql.COUNTS, (i,)).fetchone())])
        return {user_id: pb.UserCounts(followers=row[0], following=row[1]) for user_id, row in rows}

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        # First: later follows check the stored decision; the loop below handles the earlier ones.
        if not await self.db.write(lambda c: decide(c, user_id, absent, at_us)):
            return
        for listing, side in ((Listing.FOLLOWING, sql.OF_FOLLOWERS), (Listing.FOLLOWERS, sql.OF_FOLLOWEES)):
            below: Position | None = None
            while page := await self.page(listing, user_id, below, ABSENCE_STEP):
                await self.db.write(lambda c: _apply_absence(c, page, side, user_id, absent))  # noqa: B023 (awaited)
                below = page[-1]

    async def suggestions(self, user_id: int, limit: int) -> list[int]:
        return await self.db.read(lambda c: _suggestions(c, user_id, limit))

    async def popular(self, limit: int) -> list[int]:
        return await self.db.read(lambda c: [row[0] for row in c.execute(sql.MOST_FOLLOWED, (limit,))])

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: WriteStamp
    ) -> tuple[pb.Tier.ValueType, bool]:
        def unit(c: sqlite3.Connection) -> tuple[tuple[pb.Tier.ValueType, bool], list[pb.TierEntry]]:
            write = _WriteTransaction(c, change, self._rule)
            tier = write.override(user_id, choice)
            write.finish()
            return (tier, bool(write.tiers)), write.tiers

        return await self._commit(unit)

    async def tiers(self, since_ms: int) -> list[pb.TierEntry]:
        rows = await self.db.read(lambda c: c.execute(sql.TIERS, (pb.TIER_CELEBRITY, since_ms)).fetchall())
        return [pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms) for user_id, tier, at_ms in rows]

    async def reclassify_batch(self, after_id: int, limit: int, change: WriteStamp) -> ReclassifiedBatch:
        def unit(c: sqlite3.Connection) -> tuple[ReclassifiedBatch, list[pb.TierEntry]]:
            write = _WriteTransaction(c, change, self._rule)
            rows = c.execute(sql.COUNTED_AFTER, (after_id, limit)).fetchall()
            for user_id, followers in rows:
                write.classify(user_id, followers, from_count_alone=True)
            write.finish()
            return ReclassifiedBatch(len(write.tiers), rows[-1][0] if rows else 0), write.tiers

        return await self._commit(unit)

    async def threshold(self) -> int:
        row = await self.db.read(lambda c: c.execute(sql.SETTING, (_THRESHOLD,)).fetchone())
        return row[0] if row else 0

    async def set_threshold(self, threshold: int) -> None:
        await self.db.write(lambda c: c.execute(sql.SET_SETTING, (_THRESHOLD, threshold)).rowcount)

    async def _write(
        self, action: Callable[[_WriteTransaction, int, int], bool], source: int, target: int, change: WriteStamp
    ) -> Outcome:
        def unit(c: sqlite3.Connection) -> tuple[Outcome, list[pb.TierEntry]]:
            write = _WriteTransaction(c, change, self._rule)
            changed = action(write, source, target)
            write.finish()
            return Outcome(_relationship(c, source, target), changed), write.tiers

        blockers = (source,) if action in (_WriteTransaction.block, _WriteTransaction.unblock) else ()
        readers = (source,) if action in (_WriteTransaction.mute, _WriteTransaction.unmute) else (source, target)
        return await self._commit(unit, readers, blockers)

    async def _commit(
        self,
        unit: Callable[[sqlite3.Connection], tuple[T, list[pb.TierEntry]]],
        readers: Sequence[int] = (),
        blockers: Sequence[int] = (),
    ) -> T:
        """Runs the transaction, then invalidates the cache and calls the tier hooks, even if the caller is cancelled.

        `readers` are the users whose edges change, `blockers` those whose blocks change.
        """

        async def run() -> T:
            try:
                result, tiers = await self.db.write(unit)
            finally:
                self._visibility_cache.invalidate(readers, blockers)
            if tiers:
                for hook in self._hooks:
                    hook(tiers)
            return result

        task = asyncio.create_task(run())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)


class _WriteTransaction:
    """One write transaction. Runs in the writer thread; the action methods return whether they changed anything."""

    def __init__(self, connection: sqlite3.Connection, change: WriteStamp, rule: TierRule) -> None:
        self._connection = connection
        self._change = change
        self._rule = rule
        self._events = EventBuilder(change)
        self.tiers: list[pb.TierEntry] = []

    def finish(self) -> None:
        """Adds the events to the outbox, in the same transaction."""
        if self._events.records:
            outbox.enqueue(self._connection, self._events.records)

    def follow(self, follower_id: int, followee_id: int) -> bool:
        pair = (follower_id, followee_id)
        if self._execute_for_value(sql.HAS_BLOCK_BETWEEN, (*pair, followee_id, follower_id)):
            raise errors.permission_denied(
                "you cannot follow this user: one of you blocks the other", reason=Reason.BLOCKED
            )
        at_ms, version = self._change.at_ms, self._change.version
        if not self._execute(sql.ADD_FOLLOWING, (*pair, at_ms)):
            return False
        self._execute(sql.ADD_FOLLOWER, (followee_id, at_ms, follower_id))
        self._events.followed(*pair)
        following = self._count_delta(follower_id, sql.OF_FOLLOWEES, followee_id)
        followers = self._count_delta(followee_id, sql.OF_FOLLOWERS, follower_id)
        self._execute_for_value(sql.COUNT_UP, (follower_id, 0, following, version))
        self.classify(followee_id, self._execute_for_value(sql.COUNT_UP, (followee_id, followers, 0, version)))
        return True

    def unfollow(self, follower_id: int, followee_id: int) -> bool:
        rows = self._connection.execute(sql.DROP_FOLLOWING, (follower_id, followee_id)).fetchall()
        if not rows:
            return False
        self._execute(sql.DROP_FOLLOWER, (followee_id, rows[0][0], follower_id))
        self._events.unfollowed(follower_id, followee_id)
        following = 1 - self._execute(sql.COUNT_AGAIN, (follower_id, sql.OF_FOLLOWEES, followee_id))
        followers = 1 - self._execute(sql.COUNT_AGAIN, (followee_id, sql.OF_FOLLOWERS, follower_id))
        self._execute_for_value(sql.COUNT_DOWN, (0, following, self._change.version, follower_id))
        self.classify(
            followee_id, self._execute_for_value(sql.COUNT_DOWN, (followers, 0, self._change.version, followee_id))
        )
        return True

    def block(self, user_id: int, target_id: int) -> bool:
        if not self._execute(sql.ADD_BLOCK, (user_id, target_id, self._change.at_ms)):
            return False
        self._events.blocked(user_id, target_id)
        self.unfollow(user_id, target_id)
        self.unfollow(target_id, user_id)
        self._bump_versions(user_id, target_id)
        return True

    def unblock(self, user_id: int, target_id: int) -> bool:
        if not self._execute(sql.DROP_BLOCK, (user_id, target_id)):
            return False
        self._events.unblocked(user_id, target_id)
        self._bump_versions(user_id, target_id)
        return True

    def mute(self, user_id: int, target_id: int) -> bool:
        if not self._execute(sql.ADD_MUTE, (user_id, target_id, self._change.at_ms)):
            return False
        self._events.muted(user_id, target_id)
        self._bump_versions(user_id)
        return True

    def unmute(self, user_id: int, target_id: int) -> bool:
        if not self._execute(sql.DROP_MUTE, (user_id, target_id)):
            return False
        self._events.unmuted(user_id, target_id)
        self._bump_versions(user_id)
        return True

    def classify(self, user_id: int, followers: int, *, from_count_alone: bool = False) -> None:
        """Sets the tier that the rule gives for the count, if it differs from the current one."""
        tier, choice, changed_at_ms = self._tier_row(user_id)
        due = (
            self._rule.from_count_alone(followers, choice)
            if from_count_alone
            else self._rule.tier(followers, tier, choice)
        )
        if due != tier:
            self._set_tier(user_id, due, choice, changed_at_ms)

    def override(self, user_id: int, choice: pb.TierChoice.ValueType) -> pb.Tier.ValueType:
        """Stores the operator's `choice`, applies it and returns the resulting tier."""
        tier, current_choice, changed_at_ms = self._tier_row(user_id)
        if choice == current_choice:
            return tier
        followers = self._execute_for_value(sql.FOLLOWERS_COUNT, (user_id,)) or 0
        due = self._rule.from_count_alone(followers, choice)
        if due != tier:
            self._set_tier(user_id, due, choice, changed_at_ms)
        else:
            self._execute(sql.SET_TIER, (user_id, tier, choice, changed_at_ms))
        return due

    def _tier_row(self, user_id: int) -> tuple[pb.Tier.ValueType, pb.TierChoice.ValueType, int]:
        row: tuple[pb.Tier.ValueType, pb.TierChoice.ValueType, int] | None = self._connection.execute(
            sql.TIER, (user_id,)
        ).fetchone()
        return row or (pb.TIER_NORMAL, pb.TIER_CHOICE_AUTOMATIC, 0)

    def _set_tier(
        self, user_id: int, tier: pb.Tier.ValueType, choice: pb.TierChoice.ValueType, changed_before_ms: int
    ) -> None:
        # Later than the previous change even if the clock was set back: readers order a user's tiers by this time.
        at_ms = max(self._change.at_ms, changed_before_ms + 1)
        self._execute(sql.SET_TIER, (user_id, tier, choice, at_ms))
        self._events.tier_changed(user_id, tier == pb.TIER_CELEBRITY)
        self.tiers.append(pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms))

    def _count_delta(self, user_id: int, side: int, other_id: int) -> int:
        """Returns what a new edge adds to the user's count: 1, or 0 if the other user is not active. In that case the
        edge is stored as excluded."""
        if not is_absent(self._connection, other_id):
            return 1
        self._execute(sql.UNCOUNT, (user_id, side, other_id))
        return 0

    def _bump_versions(self, *user_ids: int) -> None:
        for user_id in user_ids:
            self._execute_for_value(sql.COUNT_UP, (user_id, 0, 0, self._change.version))

    def _execute(self, statement: str, values: Sequence[int]) -> int:
        """Returns how many rows the statement changed."""
        return self._connection.execute(statement, values).rowcount

    def _execute_for_value(self, statement: str, values: Sequence[int]) -> int:
        """Returns the first column of the only row, or 0 without a row. Fetches all rows, because an unfinished
        RETURNING statement may leave rows unwritten."""
        rows = self._connection.execute(statement, values).fetchall()
        return int(rows[0][0]) if rows else 0


def _apply_absence(
    connection: sqlite3.Connection, others: Sequence[Position], side: int, user_id: int, absent: bool
) -> None:
    """Excludes the user from the counts of `others`, or includes the user again. Counts that are right already stay."""
    for _, other_id in others:
        # The follow may have been deleted since the list was read.
        follows = (user_id, other_id) if side == sql.OF_FOLLOWERS else (other_id, user_id)
        if absent and not connection.execute(sql.HAS_FOLLOW, follows).fetchone():
            continue
        if connection.execute(sql.UNCOUNT if absent else sql.COUNT_AGAIN, (other_id, side, user_id)).rowcount:
            connection.execute(sql.COUNT_ONE[side], (-1 if absent else 1, other_id))


def _relationship(connection: sqlite3.Connection, user_id: int, other_id: int) -> pb.Relationship:
    there, back = (user_id, other_id), (other_id, user_id)
    following, followed_by, blocking, blocked_by, muting = connection.execute(
        sql.RELATIONSHIP, (*there, *back, *there, *back, *there)
    ).fetchone()
    return pb.Relationship(
        user_id=other_id,
        following=bool(following),
        followed_by=bool(followed_by),
        blocking=bool(blocking),
        blocked_by=bool(blocked_by),
        muting=bool(muting),
    )


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
        relationship = _relationship(connection, user_id, candidate)
        if not (relationship.following or relationship.blocking or relationship.blocked_by or relationship.muting):
            suggested.append(candidate)
    return suggested
