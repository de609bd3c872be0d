"""Builds the events that graph publishes. A store writes an event to its outbox in the transaction that changes the
edges or the tier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import Message
from roost.event.v1 import event_pb2

from services.platform.events.log import Record
from services.platform.events.records import new_record


class WriteStamp(NamedTuple):
    """The time, version, event ids and trace of a write. They are decided before the write runs, so that a repeat has
    the same effect.

    `at_ms` is the time of the write (Unix milliseconds), `version` becomes the relation version of the users whose
    edges the write changes, `event_ids` holds one id for each event that the write may cause, and `traceparent` is the
    trace context of the call.
    """

    at_ms: int
    version: int
    event_ids: tuple[int, ...]
    traceparent: str = ""


class EventBuilder:
    """Builds the events of one write. Each method appends one event, as a record for the outbox, to `records`.

    Each event gets the next id of `change.event_ids`, so a repeat of the write builds identical events. Methods raise
    StopIteration if no id is left.
    """

    def __init__(self, change: WriteStamp) -> None:
        self._change = change
        self._ids: Iterator[int] = iter(change.event_ids)
        self.records: list[Record] = []

    def followed(self, follower_id: int, followee_id: int) -> None:
        """Adds `user.followed`, keyed by the follower."""
        self._add(event_pb2.UserFollowed(follower_id=follower_id, followee_id=followee_id))

    def unfollowed(self, follower_id: int, followee_id: int) -> None:
        """Adds `user.unfollowed`, keyed by the follower."""
        self._add(event_pb2.UserUnfollowed(follower_id=follower_id, followee_id=followee_id))

    def blocked(self, user_id: int, target_id: int) -> None:
        """Adds `user.blocked`, keyed by the user who blocks."""
        self._add(event_pb2.UserBlocked(user_id=user_id, target_id=target_id))

    def unblocked(self, user_id: int, target_id: int) -> None:
        """Adds `user.unblocked`, keyed by the user who blocked."""
        self._add(event_pb2.UserUnblocked(user_id=user_id, target_id=target_id))

    def muted(self, user_id: int, target_id: int) -> None:
        """Adds `user.muted` for a mute of `target_id` by `user_id`, keyed by `user_id`. The target must not learn of
        it."""
        self._add(event_pb2.UserMuted(user_id=user_id, target_id=target_id))

    def unmuted(self, user_id: int, target_id: int) -> None:
        """Adds `user.unmuted` for the end of a mute of `target_id` by `user_id`, keyed by `user_id`."""
        self._add(event_pb2.UserUnmuted(user_id=user_id, target_id=target_id))

    def tier_changed(self, user_id: int, celebrity: bool) -> None:
        """Adds `user.tier_changed`, keyed by the user; `celebrity` is the new tier."""
        self._add(event_pb2.UserTierChanged(user_id=user_id, celebrity=celebrity))

    def _add(self, body: Message) -> None:
        at_ms, _, _, traceparent = self._change
        self.records.append(new_record(body, next(self._ids), at_ms, traceparent))
