"""Tracks to how many followers this process has delivered each of its most recent tweets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from roost.fanout.v1 import fanout_service_pb2 as pb

# Maximum number of tracked tweets. Beyond it the oldest are dropped. A busy process delivers as many in some minutes,
# which is enough for an operator who asks about a recent tweet.
MAX_TRACKED = 10_000


@dataclass(slots=True)
class DeliveryStatus:
    """The delivery of one tweet. `followers` counts the followers that were sent to the timeline service, `delivered`
    the home timelines that got the tweet, because they were warm or being built. Times are Unix milliseconds;
    `finished_ms` is 0 while the delivery runs."""

    started_ms: int
    state: pb.FanoutState.ValueType = pb.FANOUT_STATE_RUNNING
    followers: int = 0
    delivered: int = 0
    finished_ms: int = 0


class DeliveryTracker:
    """Holds the delivery statuses of the last `max_tracked` tweets. `clock` returns Unix seconds."""

    def __init__(self, clock: Callable[[], float], max_tracked: int = MAX_TRACKED) -> None:
        self._clock = clock
        self._max_tracked = max_tracked
        self._statuses: OrderedDict[int, DeliveryStatus] = OrderedDict()

    def get(self, tweet_id: int) -> DeliveryStatus | None:
        """Returns the delivery status of the tweet, None if this process does not track the tweet."""
        return self._statuses.get(tweet_id)

    def begin(self, tweet_id: int) -> None:
        """Starts the delivery of a tweet. If the delivery is a retry, its counts begin at 0 again, and its start time
        stays."""
        before = self._statuses.pop(tweet_id, None)
        self._statuses[tweet_id] = DeliveryStatus(before.started_ms if before is not None else self._now_ms())
        while len(self._statuses) > self._max_tracked:
            self._statuses.popitem(last=False)

    def record_delivered(self, tweet_id: int, followers: int, delivered: int) -> None:
        """Adds to the counts of the tweet: `followers` more followers were sent to the timeline service, and
        `delivered` more home timelines got the tweet."""
        if (status := self._statuses.get(tweet_id)) is not None:
            status.followers += followers
            status.delivered += delivered

    def end(self, tweet_id: int, state: pb.FanoutState.ValueType) -> None:
        """Finishes a delivery: DONE if all followers were served, PULLED if the author is a celebrity, so that no
        follower had to be served."""
        if (status := self._statuses.get(tweet_id)) is not None:
            status.state = state
            status.finished_ms = self._now_ms()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
