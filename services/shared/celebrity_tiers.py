"""Subscribes to graph's stream of celebrity tiers, for services that choose between fan-out on write and on read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1 import graph_service_pb2_grpc as graph_grpc

from services.platform.rpc.stream_subscriber import StreamSubscriber

# Maximum time in seconds without a message of the stream; after that the tiers are stale. Graph sends a heartbeat every
# 5 s, so six in a row are missing then.
STREAM_TIMEOUT_S = 30.0
RETRY_FIRST_S = 0.05
# Maximum delay in seconds before the next attempt to subscribe to the stream of tiers; the first delay is
# RETRY_FIRST_S. The maximum is well below the setting `clock_margin_s` (5 s in one process, 60 s between processes): an
# author whose tier changed within this margin is both pulled and fanned out, so outdated tiers lose no tweet meanwhile.
RETRY_MAX_S = 2.0
# Maximum time in seconds that `start` waits for the first snapshot. If graph is unavailable, the service starts without
# tiers. In a single-process mesh the snapshot arrives within milliseconds.
START_WAIT_S = 1.0


class CelebritySubscriber(StreamSubscriber[graph.StreamTiersResponse]):
    """A worker that holds a current copy of the celebrity tiers: readers pull the tweets of celebrities, and fan-out
    skips celebrities.

    It subscribes to graph's StreamTiers, which sends all celebrities first and then each change, and subscribes again
    when the stream is lost. Readers and fan-out processes learn of a change at different times. So for `margin_s`
    seconds (the margin) after a promotion, tweets of the author are both pulled and fanned out, and no tweet is lost if
    the copy of the tiers is at most `margin_s` seconds old.
    """

    def __init__(
        self, channel: grpc.aio.Channel, margin_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__("tiers", silence_s=STREAM_TIMEOUT_S, retry_first_s=RETRY_FIRST_S, retry_max_s=RETRY_MAX_S)
        self._stub = graph_grpc.GraphServiceStub(channel)
        self._margin_ms = int(margin_s * 1000)
        self._monotonic = monotonic
        self._fresh_until = float("-inf")
        self._celebrity_since: dict[int, int] = {}
        self._demoted_at: dict[int, int] = {}
        self._demotions_by_time: list[tuple[int, int]] | None = []
        # The entries of a snapshot that is not complete yet.
        self._snapshot: list[graph.TierEntry] | None = None
        self._snapshot_received = asyncio.Event()
        # Changes with every tier change. Readers compare it for equality before they use cached results.
        self.version = 0

    @property
    def celebrities(self) -> Iterable[int]:
        """The user ids of all celebrities, as a view that changes with the tiers; do not keep it across an await."""
        return self._celebrity_since.keys()

    def fresh(self) -> bool:
        """Returns whether the copy of the tiers is current enough for decisions. If not, readers pull all authors and
        fan-out pauses."""
        return self._monotonic() <= self._fresh_until

    def is_celebrity(self, user_id: int) -> bool:
        """Returns whether the user is a celebrity, whose tweets readers pull."""
        return user_id in self._celebrity_since

    def is_excluded_from_fanout(self, user_id: int, now_ms: int) -> bool:
        """Returns whether fan-out skips the author, because the author has been a celebrity for at least the margin.
        `now_ms` is the current time in Unix milliseconds."""
        since = self._celebrity_since.get(user_id)
        return since is not None and now_ms - since >= self._margin_ms

    def demoted_since(self, ms: int) -> Sequence[int]:
        """Returns the users who stopped being celebrities after `ms` (Unix milliseconds). Graph sends demotions for 31
        days."""
        if self._demotions_by_time is None:
            self._demotions_by_time = sorted((changed, user_id) for user_id, changed in self._demoted_at.items())
        return [
            user_id for _, user_id in self._demotions_by_time[bisect_right(self._demotions_by_time, (ms, 1 << 63)) :]
        ]

    async def start(self) -> None:
        """Subscribes to graph's StreamTiers and waits up to START_WAIT_S seconds for the snapshot. If the snapshot does
        not arrive in time, returns all the same; `fresh` returns False until it arrives."""
        await super().start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._snapshot_received.wait(), START_WAIT_S)

    def _open(self) -> Any:
        self._snapshot = []
        return self._stub.StreamTiers(graph.StreamTiersRequest())

    def _receive(self, message: graph.StreamTiersResponse) -> None:
        if self._snapshot is None:
            self._apply(message.entries)
        else:
            self._snapshot.extend(message.entries)
            if not message.snapshot_end:
                return
            # All entries are replaced without an await in between, so no reader gets an incomplete snapshot.
            self._celebrity_since.clear()
            self._demoted_at.clear()
            self.version += 1
            self._apply(self._snapshot)
            self._snapshot = None
        self._fresh_until = self._monotonic() + STREAM_TIMEOUT_S
        self._snapshot_received.set()

    def _lost(self) -> None:
        # Changes are unknown until the next snapshot. Half the margin remains for decisions in progress.
        self._fresh_until = min(self._fresh_until, self._monotonic() + self._margin_ms / 2000)

    def _apply(self, entries: Iterable[graph.TierEntry]) -> None:
        for entry in entries:
            now, before = (self._celebrity_since, self._demoted_at)
            if entry.tier != graph.TIER_CELEBRITY:
                now, before = before, now
            before.pop(entry.user_id, None)
            now[entry.user_id] = entry.changed_at_ms
            self._demotions_by_time = None
            self.version += 1
