"""The writes of graph within one SQLite transaction: edges, counts, tiers and events commit together or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import EventBuilder, WriteStamp
from services.graph.store.sqlite import schema as sql
from services.graph.tier_publisher import TierRule
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.sqlite import outbox
from services.platform.sqlite.absences import is_absent


class WriteTransaction:
    """One write transaction of graph; runs in the writer thread. The methods that change edges return whether they
    changed anything. `tiers` holds the tiers that the transaction changed."""

    def __init__(self, connection: sqlite3.Connection, change: WriteStamp, rule: TierRule) -> None:
        self._connection = connection
        self._change = change
        self._rule = rule
        self._events = EventBuilder(change)
        self.tiers: list[pb.TierEntry] = []

    def finish(self) -> None:
        """Adds the events of the write to the outbox, in the same transaction. Call it last."""
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
        """Sets the user's tier to the one that the tier rule assigns to a user with this number of followers, if the
        user has another tier now. With `from_count_alone`, used after a change of the threshold, the rule ignores the
        current tier."""
        tier, choice, changed_at_ms = self._tier_row(user_id)
        due = (
            self._rule.from_count_alone(followers, choice)
            if from_count_alone
            else self._rule.tier(followers, tier, choice)
        )
        if due != tier:
            self._set_tier(user_id, due, choice, changed_at_ms)

    def override(self, user_id: int, choice: pb.TierChoice.ValueType) -> pb.Tier.ValueType:
        """Stores the operator's `choice` for the user, sets the tier that results from the choice and the number of
        followers, and returns that tier."""
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
        """Returns by how much a new edge changes the user's count: 1, or 0 if the other user is absent. For an absent
        user, records that the edge is excluded from the count."""
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


def relationship_of(connection: sqlite3.Connection, user_id: int, other_id: int) -> pb.Relationship:
    """Returns the relationship of `user_id` to the other user."""
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
