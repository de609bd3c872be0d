"""All edges between two users as one value, and the rows and events that result from a change of these edges.

This module does no I/O. The row of a pair contains the edges from before its last change and the stamp of that change.
So any process that reads the row can compute the follow-up writes of the change and execute them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import EventBuilder, WriteStamp
from services.graph.store.cassandra import schema
from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

Statement = tuple[str, tuple[Any, ...]]

# Sides of a count, as stored in its rows.
FOLLOWERS, FOLLOWING = 0, 1


class EdgeType(IntEnum):
    """The type of an edge; the value is its index in `Edges`."""

    FOLLOW = 0
    BLOCK = 1
    MUTE = 2


class Edge(NamedTuple):
    """The time at which the edge was created (Unix milliseconds) and, for a follow, the bucket of the followee's
    followers in which the edge is stored."""

    at_ms: int
    bucket: int = 0


# Ordered by type; for each type the edge of the user with the lesser id comes first.
Edges = tuple[Edge | None, ...]
NO_EDGES: Edges = (None,) * (2 * len(EdgeType))


class EdgeAction(Enum):
    """An action of one user on another: the edge type, and whether the edge is created (True) or deleted (False)."""

    FOLLOW = (EdgeType.FOLLOW, True)
    UNFOLLOW = (EdgeType.FOLLOW, False)
    BLOCK = (EdgeType.BLOCK, True)
    UNBLOCK = (EdgeType.BLOCK, False)
    MUTE = (EdgeType.MUTE, True)
    UNMUTE = (EdgeType.MUTE, False)


class Pair(NamedTuple):
    """The row of two users, `low` having the lesser id.

    `stamp` (Unix microseconds) is the write timestamp of the copies of the row and only increases. `change` is the
    version of the last change, None if the pair never changed. `last` is a JSON text with the edges before the last
    change, and the time, event ids and trace context of the change. From it, any process can compute the follow-up
    writes.
    """

    low: int
    high: int
    change: int | None = None
    stamp: int = 0
    last: str = ""
    edges: Edges = NO_EDGES

    @classmethod
    def of(cls, low: int, high: int, row: tuple[Any, ...] | None) -> Pair:
        """Builds the pair from a row of `schema.PAIR`; `row` is None if no row exists."""
        if row is None or row[0] is None:
            return cls(low, high)
        change, stamp, last, low_follows, low_bucket, high_follows, high_bucket, *plain = row
        follows = (_edge(low_follows, low_bucket), _edge(high_follows, high_bucket))
        return cls(low, high, change, stamp, last, (*follows, *(_edge(at_ms, 0) for at_ms in plain)))

    def values(self) -> tuple[Any, ...]:
        """Returns the values that `schema.SWAP_PAIR` sets, in order."""
        low, high, *plain = self.edges
        follows = (*(low or (None, None)), *(high or (None, None)))
        return (self.change, self.stamp, self.last, *follows, *(edge and edge.at_ms for edge in plain))

    def relationship(self, user_id: int) -> pb.Relationship:
        """Returns the relationship of `user_id`, one of the two, to the other."""
        own = 0 if user_id == self.low else 1
        has = [edge is not None for edge in self.edges]
        return pb.Relationship(
            user_id=self.high if own == 0 else self.low,
            following=has[own],
            followed_by=has[1 - own],
            blocking=has[2 * EdgeType.BLOCK + own],
            blocked_by=has[2 * EdgeType.BLOCK + 1 - own],
            muting=has[2 * EdgeType.MUTE + own],
        )

    def after(self, action: EdgeAction, source_id: int, edge: Edge) -> Edges | None:
        """Returns the edges of the pair after `source_id` has performed the action, or None if the action changes no
        edge. `edge` is the edge to create, if the action creates one.

        Raises PERMISSION_DENIED (reason BLOCKED) for a follow if one of the two users blocks the other.
        """
        kind, makes = action.value
        index = 2 * kind + (0 if source_id == self.low else 1)
        if action is EdgeAction.FOLLOW and any(self.edges[2 * EdgeType.BLOCK : 2 * EdgeType.BLOCK + 2]):
            raise errors.permission_denied(
                "you cannot follow this user: one of you blocks the other", reason=Reason.BLOCKED
            )
        if makes == (self.edges[index] is not None):
            return None
        edges = list(self.edges)
        edges[index] = edge if makes else None
        if action is EdgeAction.BLOCK:
            edges[0] = edges[1] = None
        return tuple(edges)

    def changed(self, edges: Edges, change: WriteStamp, now_us: int) -> Pair:
        """Returns the row after `change`. The timestamp of the new row is later than that of the stored row, even if the
        clock was set back."""
        last = json.dumps([self.edges, change.at_ms, change.event_ids, change.traceparent], separators=(",", ":"))
        return Pair(self.low, self.high, change.version, max(now_us, self.stamp + 1), last, edges)


class EdgeChange(NamedTuple):
    """The last change of a pair: its write stamp, and the edges before the change."""

    pair: Pair
    change: WriteStamp
    before: Edges

    @classmethod
    def of(cls, pair: Pair) -> EdgeChange:
        """Returns the last change of a pair that was changed at least once."""
        assert pair.change is not None
        before, at_ms, event_ids, traceparent = json.loads(pair.last)
        edges = tuple(edge and Edge(*edge) for edge in before)
        return cls(pair, WriteStamp(at_ms, pair.change, tuple(event_ids), traceparent), edges)

    def _differences(self) -> Iterator[tuple[EdgeType, int, int, Edge | None, Edge | None]]:
        """Yields (type, source id, target id, edge before, edge after) of each changed edge; a block comes before the
        follows that it removes."""
        pair = self.pair
        for kind in (EdgeType.BLOCK, EdgeType.MUTE, EdgeType.FOLLOW):
            for own, direction in enumerate(((pair.low, pair.high), (pair.high, pair.low))):
                before, after = self.before[2 * kind + own], pair.edges[2 * kind + own]
                if before != after:
                    yield (kind, *direction, before, after)

    def rows(self) -> list[Statement]:
        """Returns the statements that insert and delete the copies by user, all with the pair's stamp as write
        timestamp."""
        statements: list[Statement] = []
        stamp = self.pair.stamp
        for kind, source, target, before, after in self._differences():
            add, drop = _COPIES[kind]
            if before:
                statements.append((drop, (stamp, source, before.at_ms, target)))
            if after:
                statements.append((add, (source, after.at_ms, target, stamp)))
            if kind == EdgeType.FOLLOW and before:
                statements.append((schema.DROP_FOLLOWER, (stamp, target, before.bucket, before.at_ms, source)))
            if kind == EdgeType.FOLLOW and before and not after:
                # If the follow was excluded from the counts, its exclusion is deleted with the follow.
                statements.append((schema.COUNT_AGAIN, (stamp, source, FOLLOWING, target)))
                statements.append((schema.COUNT_AGAIN, (stamp, target, FOLLOWERS, source)))
            if kind == EdgeType.FOLLOW and after:
                statements.append((schema.ADD_FOLLOWER, (target, after.bucket, after.at_ms, source, stamp)))
        return statements

    def changed_counts(self) -> list[tuple[int, int, int]]:
        """Returns (user id, FOLLOWERS or FOLLOWING, bucket) of each count that this change makes dirty."""
        found: list[tuple[int, int, int]] = []
        for kind, source, target, before, after in self._differences():
            if kind == EdgeType.FOLLOW:
                found += [
                    (source, FOLLOWING, 0),
                    *((target, FOLLOWERS, edge.bucket) for edge in (before, after) if edge),
                ]
        return found

    def events(self) -> EventBuilder:
        """Builds the events of this change. Their ids come from the write stamp, so a repeat builds the same events."""
        events = EventBuilder(self.change)
        add_event = {
            (EdgeType.FOLLOW, True): events.followed,
            (EdgeType.FOLLOW, False): events.unfollowed,
            (EdgeType.BLOCK, True): events.blocked,
            (EdgeType.BLOCK, False): events.unblocked,
            (EdgeType.MUTE, True): events.muted,
            (EdgeType.MUTE, False): events.unmuted,
        }
        for kind, source, target, _, after in self._differences():
            add_event[kind, after is not None](source, target)
        return events

    def readers(self) -> list[int]:
        """Returns the users whose relation version changes, ascending: both users, or for a mute only the one who
        mutes."""
        found: set[int] = set()
        for kind, source, target, _, _ in self._differences():
            found |= {source} if kind == EdgeType.MUTE else {source, target}
        return sorted(found)


_COPIES = {
    EdgeType.FOLLOW: (schema.ADD_FOLLOWING, schema.DROP_FOLLOWING),
    EdgeType.BLOCK: (schema.ADD_BLOCK, schema.DROP_BLOCK),
    EdgeType.MUTE: (schema.ADD_MUTE, schema.DROP_MUTE),
}


def pair_key(one_id: int, other_id: int) -> tuple[int, int]:
    """Returns the key of the two users' row: (lesser id, greater id)."""
    return (one_id, other_id) if one_id < other_id else (other_id, one_id)


def pair_key_of(record: Record) -> tuple[int, int] | None:
    """Returns the key of the pair that an event is about, or None for a tier change, which is about one user."""
    event = event_pb2.Event.FromString(record.payload)
    body = getattr(event, record.topic.replace(".", "_"))
    if isinstance(body, event_pb2.UserTierChanged):
        return None
    if isinstance(body, event_pb2.UserFollowed | event_pb2.UserUnfollowed):
        return pair_key(body.follower_id, body.followee_id)
    return pair_key(body.user_id, body.target_id)


def _edge(at_ms: int | None, bucket: int | None) -> Edge | None:
    return None if at_ms is None else Edge(at_ms, bucket or 0)
