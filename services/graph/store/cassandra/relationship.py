"""All that stands between two people, as one value: what an act makes of it, and which rows and facts follow from a change.

Nothing here touches a store. A change is computed from what stood before and what stands after, so it can be finished by anybody
who reads the row: the row keeps what stood before its last change, and that change's stamp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum, IntEnum
from typing import Any, NamedTuple

from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import Change, EventBuilder
from services.graph.store.cassandra import schema
from services.platform.events.log import Record
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

Statement = tuple[str, tuple[Any, ...]]

# Sides of a count, as they stand in its rows.
FOLLOWERS, FOLLOWING = 0, 1


class Kind(IntEnum):
    """Of an edge, and its place in `Edges`."""

    FOLLOW = 0
    BLOCK = 1
    MUTE = 2


class Edge(NamedTuple):
    """Since when (Unix milliseconds) and, of a follow, in which bucket of the followee's followers it lies."""

    at_ms: int
    bucket: int = 0


# By kind, and of each kind the lesser id's edge first.
Edges = tuple[Edge | None, ...]
NO_EDGES: Edges = (None,) * (2 * len(Kind))


class Act(Enum):
    """What one person does to the other: the edge's kind, and whether it is made or removed."""

    FOLLOW = (Kind.FOLLOW, True)
    UNFOLLOW = (Kind.FOLLOW, False)
    BLOCK = (Kind.BLOCK, True)
    UNBLOCK = (Kind.BLOCK, False)
    MUTE = (Kind.MUTE, True)
    UNMUTE = (Kind.MUTE, False)


class Pair(NamedTuple):
    """The row of two people, `low` the lesser id. `stamp` is the write time of its copies (microseconds), and only grows;
    `change` the version of the last change, None where there was none, and `last` what it needs to be finished."""

    low: int
    high: int
    change: int | None = None
    stamp: int = 0
    last: str = ""
    edges: Edges = NO_EDGES

    @classmethod
    def of(cls, low: int, high: int, row: tuple[Any, ...] | None) -> Pair:
        """From a row of `cql.PAIR`, None where there is no row."""
        if row is None or row[0] is None:
            return cls(low, high)
        change, stamp, last, low_follows, low_bucket, high_follows, high_bucket, *plain = row
        follows = (_edge(low_follows, low_bucket), _edge(high_follows, high_bucket))
        return cls(low, high, change, stamp, last, (*follows, *(_edge(at_ms, 0) for at_ms in plain)))

    def values(self) -> tuple[Any, ...]:
        """What `cql.SWAP_PAIR` sets."""
        low, high, *plain = self.edges
        follows = (*(low or (None, None)), *(high or (None, None)))
        return (self.change, self.stamp, self.last, *follows, *(edge and edge.at_ms for edge in plain))

    def relationship(self, user_id: int) -> pb.Relationship:
        """How one of the two stands to the other."""
        own = 0 if user_id == self.low else 1
        has = [edge is not None for edge in self.edges]
        return pb.Relationship(
            user_id=self.high if own == 0 else self.low,
            following=has[own],
            followed_by=has[1 - own],
            blocking=has[2 * Kind.BLOCK + own],
            blocked_by=has[2 * Kind.BLOCK + 1 - own],
            muting=has[2 * Kind.MUTE + own],
        )

    def after(self, act: Act, source_id: int, edge: Edge) -> Edges | None:
        """The edges once `source_id` has acted, None where that changes nothing. PERMISSION_DENIED for a follow across a block."""
        kind, makes = act.value
        place = 2 * kind + (0 if source_id == self.low else 1)
        if act is Act.FOLLOW and any(self.edges[2 * Kind.BLOCK : 2 * Kind.BLOCK + 2]):
            raise errors.permission_denied("one of you blocks the other", reason=Reason.BLOCKED)
        if makes == (self.edges[place] is not None):
            return None
        edges = list(self.edges)
        edges[place] = edge if makes else None
        if act is Act.BLOCK:
            edges[0] = edges[1] = None
        return tuple(edges)

    def changed(self, edges: Edges, change: Change, now_us: int) -> Pair:
        """The row that `change` makes of this one. Its stamp is later than the one before, whatever the clock says."""
        last = json.dumps([self.edges, change.at_ms, change.event_ids, change.traceparent], separators=(",", ":"))
        return Pair(self.low, self.high, change.version, max(now_us, self.stamp + 1), last, edges)


class EdgeChange(NamedTuple):
    """The last change of a pair: its stamp, and every edge that it made or removed."""

    pair: Pair
    change: Change
    before: Edges

    @classmethod
    def of(cls, pair: Pair) -> EdgeChange:
        """Of a pair that was changed at least once."""
        assert pair.change is not None
        before, at_ms, event_ids, traceparent = json.loads(pair.last)
        edges = tuple(edge and Edge(*edge) for edge in before)
        return cls(pair, Change(at_ms, pair.change, tuple(event_ids), traceparent), edges)

    def _differences(self) -> Iterator[tuple[Kind, int, int, Edge | None, Edge | None]]:
        """(kind, source, target, edge before, edge after) of each that changed: a block before the follows that it ends."""
        pair = self.pair
        for kind in (Kind.BLOCK, Kind.MUTE, Kind.FOLLOW):
            for own, ends in enumerate(((pair.low, pair.high), (pair.high, pair.low))):
                before, after = self.before[2 * kind + own], pair.edges[2 * kind + own]
                if before != after:
                    yield (kind, *ends, before, after)

    def rows(self) -> list[Statement]:
        """The copies to write and to delete, all with the pair's stamp."""
        steps: list[Statement] = []
        stamp = self.pair.stamp
        for kind, source, target, before, after in self._differences():
            add, drop = _COPIES[kind]
            if before:
                steps.append((drop, (stamp, source, before.at_ms, target)))
            if after:
                steps.append((add, (source, after.at_ms, target, stamp)))
            if kind == Kind.FOLLOW and before:
                steps.append((schema.DROP_FOLLOWER, (stamp, target, before.bucket, before.at_ms, source)))
            if kind == Kind.FOLLOW and before and not after:
                # Of an edge that is gone nothing is left to leave out.
                steps.append((schema.COUNT_AGAIN, (stamp, source, FOLLOWING, target)))
                steps.append((schema.COUNT_AGAIN, (stamp, target, FOLLOWERS, source)))
            if kind == Kind.FOLLOW and after:
                steps.append((schema.ADD_FOLLOWER, (target, after.bucket, after.at_ms, source, stamp)))
        return steps

    def counted(self) -> list[tuple[int, int, int]]:
        """(user id, FOLLOWERS or FOLLOWING, bucket) of each count that has to be taken anew."""
        found: list[tuple[int, int, int]] = []
        for kind, source, target, before, after in self._differences():
            if kind == Kind.FOLLOW:
                found += [
                    (source, FOLLOWING, 0),
                    *((target, FOLLOWERS, edge.bucket) for edge in (before, after) if edge),
                ]
        return found

    def facts(self) -> EventBuilder:
        """What it publishes, with ids of its own: a second time gives the same events."""
        facts = EventBuilder(self.change)
        tell = {
            (Kind.FOLLOW, True): facts.followed,
            (Kind.FOLLOW, False): facts.unfollowed,
            (Kind.BLOCK, True): facts.blocked,
            (Kind.BLOCK, False): facts.unblocked,
            (Kind.MUTE, True): facts.muted,
            (Kind.MUTE, False): facts.unmuted,
        }
        for kind, source, target, _, after in self._differences():
            tell[kind, after is not None](source, target)
        return facts

    def readers(self) -> list[int]:
        """Whose relation version changes: both, or of a mute the one alone who mutes."""
        found: set[int] = set()
        for kind, source, target, _, _ in self._differences():
            found |= {source} if kind == Kind.MUTE else {source, target}
        return sorted(found)


_COPIES = {
    Kind.FOLLOW: (schema.ADD_FOLLOWING, schema.DROP_FOLLOWING),
    Kind.BLOCK: (schema.ADD_BLOCK, schema.DROP_BLOCK),
    Kind.MUTE: (schema.ADD_MUTE, schema.DROP_MUTE),
}


def ends(one_id: int, other_id: int) -> tuple[int, int]:
    """The key of two people's row: the lesser id first."""
    return (one_id, other_id) if one_id < other_id else (other_id, one_id)


def pair_of(record: Record) -> tuple[int, int] | None:
    """The key of the pair that an event tells of; None where it tells of one user's tier."""
    event = event_pb2.Event.FromString(record.payload)
    body = getattr(event, record.topic.replace(".", "_"))
    if isinstance(body, event_pb2.UserTierChanged):
        return None
    if isinstance(body, event_pb2.UserFollowed | event_pb2.UserUnfollowed):
        return ends(body.follower_id, body.followee_id)
    return ends(body.user_id, body.target_id)


def _edge(at_ms: int | None, bucket: int | None) -> Edge | None:
    return None if at_ms is None else Edge(at_ms, bucket or 0)
