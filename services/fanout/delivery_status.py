"""How far the delivery of each of the last tweets is, in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from roost.fanout.v1 import fanout_service_pb2 as pb

# Some minutes of a busy process: what an operator who asks about a tweet has just seen.
RECEIPTS_KEPT = 10_000


@dataclass(slots=True)
class Receipt:
    """One tweet's delivery. Times are Unix milliseconds; `finished_ms` is 0 while it runs."""

    started_ms: int
    state: pb.FanoutState.ValueType = pb.FANOUT_STATE_RUNNING
    followers: int = 0
    delivered: int = 0
    finished_ms: int = 0


class Receipts:
    """The receipts of the last RECEIPTS_KEPT tweets; `clock` gives unix seconds."""

    def __init__(self, clock: Callable[[], float], kept: int = RECEIPTS_KEPT) -> None:
        self._clock = clock
        self._kept = kept
        self._receipts: OrderedDict[int, Receipt] = OrderedDict()

    def get(self, tweet_id: int) -> Receipt | None:
        """The tweet's receipt, where it is kept."""
        return self._receipts.get(tweet_id)

    def begin(self, tweet_id: int) -> None:
        """A delivery begins, or begins again: its counts start from zero, its start stays."""
        before = self._receipts.pop(tweet_id, None)
        self._receipts[tweet_id] = Receipt(before.started_ms if before is not None else self._now_ms())
        while len(self._receipts) > self._kept:
            self._receipts.popitem(last=False)

    def serve(self, tweet_id: int, followers: int, delivered: int) -> None:
        """Some followers were served; `delivered` of their homes were warm."""
        if (receipt := self._receipts.get(tweet_id)) is not None:
            receipt.followers += followers
            receipt.delivered += delivered

    def end(self, tweet_id: int, state: pb.FanoutState.ValueType) -> None:
        """Every follower was served, or none needs to be."""
        if (receipt := self._receipts.get(tweet_id)) is not None:
            receipt.state = state
            receipt.finished_ms = self._now_ms()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
