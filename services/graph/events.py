"""The events this service publishes, made inside the transaction that makes them true."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from roost.event.v1 import event_pb2

from services.platform.events.log import Record


class Change(NamedTuple):
    """The stamp of one write: when (Unix milliseconds), the relation version that it gives to those it touches, the ids
    for as many events as it can cause, and the trace context of the call."""

    at_ms: int
    version: int
    event_ids: tuple[int, ...]
    traceparent: str = ""


class EventBuilder:
    """Collects the events of one change, each with an id of the change's own, so that a repeat gives the same events."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._ids: Iterator[int] = iter(change.event_ids)
        self.records: list[Record] = []

    def followed(self, follower_id: int, followee_id: int) -> None:
        """`user.followed`."""
        body = event_pb2.UserFollowed(follower_id=follower_id, followee_id=followee_id)
        self._add("user.followed", follower_id, event_pb2.Event(user_followed=body))

    def unfollowed(self, follower_id: int, followee_id: int) -> None:
        """`user.unfollowed`."""
        body = event_pb2.UserUnfollowed(follower_id=follower_id, followee_id=followee_id)
        self._add("user.unfollowed", follower_id, event_pb2.Event(user_unfollowed=body))

    def blocked(self, user_id: int, target_id: int) -> None:
        """`user.blocked`."""
        body = event_pb2.UserBlocked(user_id=user_id, target_id=target_id)
        self._add("user.blocked", user_id, event_pb2.Event(user_blocked=body))

    def unblocked(self, user_id: int, target_id: int) -> None:
        """`user.unblocked`."""
        body = event_pb2.UserUnblocked(user_id=user_id, target_id=target_id)
        self._add("user.unblocked", user_id, event_pb2.Event(user_unblocked=body))

    def muted(self, user_id: int, target_id: int) -> None:
        """`user.muted`."""
        body = event_pb2.UserMuted(user_id=user_id, target_id=target_id)
        self._add("user.muted", user_id, event_pb2.Event(user_muted=body))

    def unmuted(self, user_id: int, target_id: int) -> None:
        """`user.unmuted`."""
        body = event_pb2.UserUnmuted(user_id=user_id, target_id=target_id)
        self._add("user.unmuted", user_id, event_pb2.Event(user_unmuted=body))

    def tier_changed(self, user_id: int, celebrity: bool) -> None:
        """`user.tier_changed`."""
        body = event_pb2.UserTierChanged(user_id=user_id, celebrity=celebrity)
        self._add("user.tier_changed", user_id, event_pb2.Event(user_tier_changed=body))

    def _add(self, topic: str, key: int, event: event_pb2.Event) -> None:
        at_ms, _, _, traceparent = self._change
        event.event_id = next(self._ids)
        event.key = key
        event.occurred_at.CopyFrom(Timestamp(seconds=at_ms // 1000, nanos=at_ms % 1000 * 1_000_000))
        event.traceparent = traceparent
        self.records.append(Record(topic, key, event.event_id, event.SerializeToString(), traceparent))
