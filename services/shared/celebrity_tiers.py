"""Who is a celebrity: graph's stream of tiers, kept by each process that decides between push and pull."""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

import grpc
import structlog
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1 import graph_service_pb2_grpc as graph_grpc

from services.platform.caching import read_tracking

# Graph sends a sign of life every 5 s; after six missed ones nobody may decide by what was heard before.
SILENCE_S = 30.0
RETRY_FIRST_S = 0.05
# Well below any clock margin: within the margin a stale tier does no harm.
RETRY_MOST_S = 2.0
# In one process the first snapshot comes within milliseconds; a graph service that is away keeps nobody from starting.
START_WITHIN_S = 1.0

_TIERS = (0,)

log = structlog.get_logger(__name__)


class CelebritySubscriber:
    """The celebrities, and since when; a worker that follows graph.StreamTiers and reconnects.

    `margin_s` is the clock margin: how long push and pull overlap after a change, and so how long this view may lag.
    """

    def __init__(
        self, channel: grpc.aio.Channel, margin_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._stub = graph_grpc.GraphServiceStub(channel)
        self._margin_ms = int(margin_s * 1000)
        self._monotonic = monotonic
        self._good_until = float("-inf")
        self._since: dict[int, int] = {}
        self._normal: dict[int, int] = {}
        self._order: list[tuple[int, int]] | None = []
        self._task: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()
        # Changes with every tier that changes: compared for equality by whoever keeps something derived.
        self.version = 0
        self._hearing = False
        # All of it is one key.
        self._change_tracker = read_tracking.ChangeTracker()

    @property
    def celebrities(self) -> Iterable[int]:
        """The user ids of all celebrities; a live view, not to be held over an await."""
        return self._since.keys()

    def fresh(self) -> bool:
        """Whether the view may be decided by. Where it is not, readers pull and fan-out waits."""
        return self._monotonic() <= self._good_until

    def is_celebrity(self, user_id: int) -> bool:
        """Whether readers pull the author."""
        return user_id in self._since

    def is_excluded_from_fanout(self, user_id: int, now_ms: int) -> bool:
        """Whether fan-out leaves the author out: a celebrity, and for longer than the margin."""
        since = self._since.get(user_id)
        return since is not None and now_ms - since >= self._margin_ms

    def demoted_since(self, ms: int) -> Sequence[int]:
        """Who ceased to be a celebrity after `ms` (Unix milliseconds): at most 31 days of them are known."""
        if self._hearing:
            self._change_tracker.read(_TIERS)
        else:
            # Good for a while yet, but nobody would tell when it changes.
            read_tracking.mark_uncacheable()
        if self._order is None:
            self._order = sorted((changed, user_id) for user_id, changed in self._normal.items())
        return [user_id for _, user_id in self._order[bisect_right(self._order, (ms, 1 << 63)) :]]

    async def start(self) -> None:
        """Begins to follow the stream; waits a moment for the snapshot."""
        self._task = asyncio.create_task(self._follow(), name="tiers")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), START_WITHIN_S)

    async def stop(self) -> None:
        """Ends the stream."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _follow(self) -> None:
        delay_s = RETRY_FIRST_S
        while True:
            begun = self._monotonic()
            try:
                await self._listen()
                reason = "ended"
            except asyncio.CancelledError:
                # A channel that is closed cancels its calls, which looks as if we were to end.
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                reason = "cut off"
            except Exception as error:
                reason = repr(error)
            self._hearing = False
            self._change_tracker.changed(_TIERS)
            # What changes while nobody listens is unknown: half the margin stays for the decisions under way.
            now = self._monotonic()
            self._good_until = min(self._good_until, now + self._margin_ms / 2000)
            delay_s = RETRY_FIRST_S if now - begun > SILENCE_S else min(delay_s * 2, RETRY_MOST_S)
            log.info("tier stream lost, will reconnect", reason=reason, delay_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _listen(self) -> None:
        snapshot: list[graph.TierEntry] | None = []
        call = self._stub.StreamTiers(graph.StreamTiersRequest())
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    message = await call.read()
                if not isinstance(message, graph.StreamTiersResponse):
                    return
                if snapshot is None:
                    self._take(message.entries)
                else:
                    snapshot.extend(message.entries)
                    if not message.snapshot_end:
                        continue
                    # Swapped without an await between: nobody sees half a snapshot.
                    self._since.clear()
                    self._normal.clear()
                    self.version += 1
                    self._take(snapshot)
                    snapshot = None
                    self._hearing = True
                self._good_until = self._monotonic() + SILENCE_S
                self._heard.set()
        finally:
            call.cancel()

    def _take(self, entries: Iterable[graph.TierEntry]) -> None:
        self._change_tracker.changed(_TIERS)
        for entry in entries:
            now, before = (self._since, self._normal)
            if entry.tier != graph.TIER_CELEBRITY:
                now, before = before, now
            before.pop(entry.user_id, None)
            now[entry.user_id] = entry.changed_at_ms
            self._order = None
            self.version += 1
