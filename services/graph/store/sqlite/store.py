"""The embedded adapter: one SQLite file, and the hot filter in memory beside it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import Change, EventBuilder
from services.graph.store import Judged, Listing, Outcome, Position, TierHook
from services.graph.store.sqlite import schema as sql
from services.graph.store.sqlite.visibility_cache import Visibility
from services.graph.tier_publisher import TierRule
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite import outbox
from services.platform.sqlite.absences import decide, is_absent
from services.platform.sqlite.database import Database

T = TypeVar("T")

# Friends of friends: at most 2,500 rows, about 2 ms.
SUGGEST_FROM_FOLLOWEES = 50
SUGGEST_FROM_EACH = 50
# Rows walked over in one transaction when somebody goes or comes back: others' writes wait for so many.
ABSENT_A_STEP = 500
_TOP = Position((1 << 63) - 1, (1 << 63) - 1)
_THRESHOLD = "celebrity_threshold"


class EmbeddedGraphStore:
    """GraphStore over SQLite. Writes are one transaction each, committed in groups."""

    def __init__(self, db: Database, rule: TierRule) -> None:
        self.db = db
        self._rule = rule
        self._visibility = Visibility(db)
        self._hooks: list[TierHook] = []
        # Writes whose caller may have gone: they must still correct the memory.
        self._writes: set[asyncio.Task[object]] = set()

    @classmethod
    async def open(cls, path: Path, rule: TierRule) -> Self:
        """Opens or makes the file. FAILED_PRECONDITION if another owner has it."""
        return cls(await Database.open(path, sql.MIGRATIONS), rule)

    async def close(self) -> None:
        await self.db.close()

    def on_tier_change(self, hook: TierHook) -> None:
        self._hooks.append(hook)

    async def follow(self, follower_id: int, followee_id: int, change: Change) -> Outcome:
        return await self._write(_Write.follow, follower_id, followee_id, change)

    async def unfollow(self, follower_id: int, followee_id: int, change: Change) -> Outcome:
        return await self._write(_Write.unfollow, follower_id, followee_id, change)

    async def block(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._write(_Write.block, user_id, target_id, change)

    async def unblock(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._write(_Write.unblock, user_id, target_id, change)

    async def mute(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._write(_Write.mute, user_id, target_id, change)

    async def unmute(self, user_id: int, target_id: int, change: Change) -> Outcome:
        return await self._write(_Write.unmute, user_id, target_id, change)

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
        return await self._visibility.answer(request)

    async def relation_version(self, user_id: int) -> int:
        row = await self.db.read(lambda c: c.execute(sql.VERSION, (user_id,)).fetchone())
        return row[0] if row else 0

    async def counts(self, user_ids: Sequence[int]) -> dict[int, pb.UserCounts]:
        ids = tuple(user_ids)
        rows = await self.db.read(lambda c: [(i, row) for i in ids if (row := c.execute(sql.COUNTS, (i,)).fetchone())])
        return {user_id: pb.UserCounts(followers=row[0], following=row[1]) for user_id, row in rows}

    async def set_absent(self, user_id: int, absent: bool, at_us: int) -> None:
        # First: what is followed from here on looks there, and what was before is walked over below.
        if not await self.db.write(lambda c: decide(c, user_id, absent, at_us)):
            return
        for listing, side in ((Listing.FOLLOWING, sql.OF_FOLLOWERS), (Listing.FOLLOWERS, sql.OF_FOLLOWEES)):
            below: Position | None = None
            while page := await self.page(listing, user_id, below, ABSENT_A_STEP):
                await self.db.write(lambda c: _uncount(c, page, side, user_id, absent))  # noqa: B023 (awaited)
                below = page[-1]

    async def suggestions(self, user_id: int, limit: int) -> list[int]:
        return await self.db.read(lambda c: _suggestions(c, user_id, limit))

    async def popular(self, limit: int) -> list[int]:
        return await self.db.read(lambda c: [row[0] for row in c.execute(sql.MOST_FOLLOWED, (limit,))])

    async def reclassify(
        self, user_id: int, choice: pb.TierChoice.ValueType, change: Change
    ) -> tuple[pb.Tier.ValueType, bool]:
        def unit(c: sqlite3.Connection) -> tuple[tuple[pb.Tier.ValueType, bool], list[pb.TierEntry]]:
            write = _Write(c, change, self._rule)
            tier = write.override(user_id, choice)
            write.finish()
            return (tier, bool(write.tiers)), write.tiers

        return await self._commit(unit)

    async def tiers(self, since_ms: int) -> list[pb.TierEntry]:
        rows = await self.db.read(lambda c: c.execute(sql.TIERS, (pb.TIER_CELEBRITY, since_ms)).fetchall())
        return [pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms) for user_id, tier, at_ms in rows]

    async def judge_afresh(self, after_id: int, limit: int, change: Change) -> Judged:
        def unit(c: sqlite3.Connection) -> tuple[Judged, list[pb.TierEntry]]:
            write = _Write(c, change, self._rule)
            rows = c.execute(sql.COUNTED_AFTER, (after_id, limit)).fetchall()
            for user_id, followers in rows:
                write.judge(user_id, followers, from_count_alone=True)
            write.finish()
            return Judged(len(write.tiers), rows[-1][0] if rows else 0), write.tiers

        return await self._commit(unit)

    async def threshold(self) -> int:
        row = await self.db.read(lambda c: c.execute(sql.SETTING, (_THRESHOLD,)).fetchone())
        return row[0] if row else 0

    async def set_threshold(self, threshold: int) -> None:
        await self.db.write(lambda c: c.execute(sql.SET_SETTING, (_THRESHOLD, threshold)).rowcount)

    async def _write(
        self, act: Callable[[_Write, int, int], bool], source: int, target: int, change: Change
    ) -> Outcome:
        def unit(c: sqlite3.Connection) -> tuple[Outcome, list[pb.TierEntry]]:
            write = _Write(c, change, self._rule)
            changed = act(write, source, target)
            write.finish()
            return Outcome(_relationship(c, source, target), changed), write.tiers

        blockers = (source,) if act in (_Write.block, _Write.unblock) else ()
        readers = (source,) if act in (_Write.mute, _Write.unmute) else (source, target)
        return await self._commit(unit, readers, blockers)

    async def _commit(
        self,
        unit: Callable[[sqlite3.Connection], tuple[T, list[pb.TierEntry]]],
        readers: Sequence[int] = (),
        blockers: Sequence[int] = (),
    ) -> T:
        """Runs the unit, then corrects the memory and tells of the tiers before it answers, also if the caller has gone."""

        async def run() -> T:
            try:
                result, tiers = await self.db.write(unit)
            finally:
                self._visibility.forget(readers, blockers)
            if tiers:
                for hook in self._hooks:
                    hook(tiers)
            return result

        task = asyncio.create_task(run())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)


class _Write:
    """One transaction at work, in the writer thread. The acts say whether they changed anything."""

    def __init__(self, connection: sqlite3.Connection, change: Change, rule: TierRule) -> None:
        self._connection = connection
        self._change = change
        self._rule = rule
        self._facts = EventBuilder(change)
        self.tiers: list[pb.TierEntry] = []

    def finish(self) -> None:
        """Adds the events to the transaction."""
        if self._facts.records:
            outbox.enqueue(self._connection, self._facts.records)

    def follow(self, follower_id: int, followee_id: int) -> bool:
        pair = (follower_id, followee_id)
        if self._one(sql.HAS_BLOCK_BETWEEN, (*pair, followee_id, follower_id)):
            raise errors.permission_denied("one of you blocks the other", reason=Reason.BLOCKED)
        at_ms, version = self._change.at_ms, self._change.version
        if not self._rows(sql.ADD_FOLLOWING, (*pair, at_ms)):
            return False
        self._rows(sql.ADD_FOLLOWER, (followee_id, at_ms, follower_id))
        self._facts.followed(*pair)
        following = self._counts(follower_id, sql.OF_FOLLOWEES, followee_id)
        followers = self._counts(followee_id, sql.OF_FOLLOWERS, follower_id)
        self._one(sql.COUNT_UP, (follower_id, 0, following, version))
        self.judge(followee_id, self._one(sql.COUNT_UP, (followee_id, followers, 0, version)))
        return True

    def unfollow(self, follower_id: int, followee_id: int) -> bool:
        rows = self._connection.execute(sql.DROP_FOLLOWING, (follower_id, followee_id)).fetchall()
        if not rows:
            return False
        self._rows(sql.DROP_FOLLOWER, (followee_id, rows[0][0], follower_id))
        self._facts.unfollowed(follower_id, followee_id)
        following = 1 - self._rows(sql.COUNT_AGAIN, (follower_id, sql.OF_FOLLOWEES, followee_id))
        followers = 1 - self._rows(sql.COUNT_AGAIN, (followee_id, sql.OF_FOLLOWERS, follower_id))
        self._one(sql.COUNT_DOWN, (0, following, self._change.version, follower_id))
        self.judge(followee_id, self._one(sql.COUNT_DOWN, (followers, 0, self._change.version, followee_id)))
        return True

    def block(self, user_id: int, target_id: int) -> bool:
        if not self._rows(sql.ADD_BLOCK, (user_id, target_id, self._change.at_ms)):
            return False
        self._facts.blocked(user_id, target_id)
        self.unfollow(user_id, target_id)
        self.unfollow(target_id, user_id)
        self._renew(user_id, target_id)
        return True

    def unblock(self, user_id: int, target_id: int) -> bool:
        if not self._rows(sql.DROP_BLOCK, (user_id, target_id)):
            return False
        self._facts.unblocked(user_id, target_id)
        self._renew(user_id, target_id)
        return True

    def mute(self, user_id: int, target_id: int) -> bool:
        if not self._rows(sql.ADD_MUTE, (user_id, target_id, self._change.at_ms)):
            return False
        self._facts.muted(user_id, target_id)
        self._renew(user_id)
        return True

    def unmute(self, user_id: int, target_id: int) -> bool:
        if not self._rows(sql.DROP_MUTE, (user_id, target_id)):
            return False
        self._facts.unmuted(user_id, target_id)
        self._renew(user_id)
        return True

    def judge(self, user_id: int, followers: int, *, from_count_alone: bool = False) -> None:
        """Moves the user to the tier that the count asks for, if that is another."""
        tier, choice, changed_at_ms = self._tier_row(user_id)
        due = (
            self._rule.from_count_alone(followers, choice)
            if from_count_alone
            else self._rule.tier(followers, tier, choice)
        )
        if due != tier:
            self._move(user_id, due, choice, changed_at_ms)

    def override(self, user_id: int, choice: pb.TierChoice.ValueType) -> pb.Tier.ValueType:
        """Lets `choice` decide from now on, and returns the tier that it makes."""
        tier, decided_by, changed_at_ms = self._tier_row(user_id)
        if choice == decided_by:
            return tier
        followers = self._one(sql.FOLLOWERS_COUNT, (user_id,)) or 0
        due = self._rule.from_count_alone(followers, choice)
        if due != tier:
            self._move(user_id, due, choice, changed_at_ms)
        else:
            self._rows(sql.SET_TIER, (user_id, tier, choice, changed_at_ms))
        return due

    def _tier_row(self, user_id: int) -> tuple[pb.Tier.ValueType, pb.TierChoice.ValueType, int]:
        row: tuple[pb.Tier.ValueType, pb.TierChoice.ValueType, int] | None = self._connection.execute(
            sql.TIER, (user_id,)
        ).fetchone()
        return row or (pb.TIER_NORMAL, pb.TIER_CHOICE_AUTOMATIC, 0)

    def _move(
        self, user_id: int, tier: pb.Tier.ValueType, choice: pb.TierChoice.ValueType, changed_before_ms: int
    ) -> None:
        # Later than the change before, whatever the clock says: readers order a user's tiers by this time.
        at_ms = max(self._change.at_ms, changed_before_ms + 1)
        self._rows(sql.SET_TIER, (user_id, tier, choice, at_ms))
        self._facts.tier_changed(user_id, tier == pb.TIER_CELEBRITY)
        self.tiers.append(pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms))

    def _counts(self, user_id: int, side: int, other_id: int) -> int:
        """How much a new edge adds to the user's count: 0, and kept as left out, if the other does not take part."""
        if not is_absent(self._connection, other_id):
            return 1
        self._rows(sql.UNCOUNT, (user_id, side, other_id))
        return 0

    def _renew(self, *user_ids: int) -> None:
        for user_id in user_ids:
            self._one(sql.COUNT_UP, (user_id, 0, 0, self._change.version))

    def _rows(self, statement: str, values: Sequence[int]) -> int:
        """How many rows the statement changed."""
        return self._connection.execute(statement, values).rowcount

    def _one(self, statement: str, values: Sequence[int]) -> int:
        """The first value of the only row, 0 without one. It fetches all rows: a statement cut short may leave work undone."""
        rows = self._connection.execute(statement, values).fetchall()
        return int(rows[0][0]) if rows else 0


def _uncount(connection: sqlite3.Connection, others: Sequence[Position], side: int, user_id: int, absent: bool) -> None:
    """Leaves the user out of these people's counts, or counts the user again; what is so already stays."""
    for _, other_id in others:
        # Undone meanwhile, perhaps.
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
        tie = _relationship(connection, user_id, candidate)
        if not (tie.following or tie.blocking or tie.blocked_by or tie.muting):
            suggested.append(candidate)
    return suggested
