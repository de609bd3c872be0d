"""Tracks the delivery of the most recent tweets in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from roost.fanout.v1 import fanout_service_pb2 as pb

# Some minutes of a busy process: enough for an operator who asks about a recent tweet.
MAX_TRACKED = 10_000


@dataclass(slots=True)
class DeliveryStatus:
    """The delivery of one tweet. Times are Unix milliseconds; `finished_ms` is 0 while it runs. `delivered` counts
    followers with a warm home timeline."""

    started_ms: int
    state: pb.FanoutState.ValueType = pb.FANOUT_STATE_RUNNING
    followers: int = 0
    delivered: int = 0
    finished_ms: int = 0


class DeliveryTracker:
    """The delivery statuses of the last MAX_TRACKED tweets. `clock` returns Unix seconds."""

    def __init__(self, clock: Callable[[], float], max_tracked: int = MAX_TRACKED) -> None:
        self._clock = clock
        self._max_tracked = max_tracked
        self._statuses: OrderedDict[int, DeliveryStatus] = OrderedDict()

    def get(self, tweet_id: int) -> DeliveryStatus | None:
        """Returns the tweet's delivery status, or None if it is not tracked (any more)."""
        return self._statuses.get(tweet_id)

    def begin(self, tweet_id: int) -> None:
        """Starts or restarts a delivery: its counts are reset, its start time stays."""
        before = self._statuses.pop(tweet_id, None)
        self._statuses[tweet_id] = DeliveryStatus(before.started_ms if before is not None else self._now_ms())
        while len(self._statuses) > self._max_tracked:
            self._statuses.popitem(last=False)

    def record_delivered(self, tweet_id: int, followers: int, delivered: int) -> None:
        """Adds delivered followers; `delivered` of them have a warm home timeline."""
        if (status := self._statuses.get(tweet_id)) is not None:
            status.followers += followers
            status.delivered += delivered

    def end(self, tweet_id: int, state: pb.FanoutState.ValueType) -> None:
        """Finishes a delivery with this state: all followers were served, or none had to be."""
        if (status := self._statuses.get(tweet_id)) is not None:
            status.state = state
            status.finished_ms = self._now_ms()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
