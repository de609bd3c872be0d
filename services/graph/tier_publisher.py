"""Tiers: who has so many followers that tweets are pulled by readers instead of pushed to them.

The rule is a function of the count and of what stands; the board holds the few who matter and tells those who listen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import Change
from services.graph.store import GraphStore
from services.platform.rpc import errors

# One who ceased is still pulled by homes opened before that; no home lives longer than 30 days without a read.
KEEP_CEASED_MS = 31 * 24 * 3600 * 1000
# Readers give up on a stream that is silent for 30 s: six chances.
HEARTBEAT_S = 5.0
# Entries a message; the contract's bound.
MAX_ENTRIES = 1_000
# Changes that may wait for one subscriber: far more than any second brings. One so slow does better to start again.
MAX_WAITING = 10_000
# How often a process looks what others changed, and how long it stands by what it saw last when it cannot look. Together far below the
# margin by which push and pull overlap between processes, 60 s.
WATCH_EVERY_S = 1.0
BLIND_AFTER_S = 10.0
# Users of one transaction when the threshold has changed: some 10 ms in which other writes wait.
RECLASSIFY_BATCH = 1_000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TierRule:
    """A celebrity from `threshold` followers on, until fewer than 0.8 of it are left: so that one unfollow and one follow,
    over and over, do not move anybody to and fro."""

    threshold: int

    def tier(
        self, followers: int, standing: pb.Tier.ValueType, choice: pb.TierChoice.ValueType = pb.TIER_CHOICE_AUTOMATIC
    ) -> pb.Tier.ValueType:
        """The tier at this many followers for one who now stands at `standing`; a decree decides alone."""
        # In whole numbers: 0.8 of the threshold has no exact double.
        if standing == pb.TIER_CELEBRITY and followers * 5 >= self.threshold * 4:
            return _DECREED.get(choice, pb.TIER_CELEBRITY)
        return self.from_count_alone(followers, choice)

    def from_count_alone(
        self, followers: int, choice: pb.TierChoice.ValueType = pb.TIER_CHOICE_AUTOMATIC
    ) -> pb.Tier.ValueType:
        """The tier by the count alone: for a threshold that has changed, under which nobody has a past."""
        by_count = pb.TIER_CELEBRITY if followers >= self.threshold else pb.TIER_NORMAL
        return _DECREED.get(choice, by_count)

    def followers_until_change(self, followers: int) -> int:
        """How many followers are missing until the tier of one with so many can change; 0 where losing some could change it, too."""
        return self.threshold - followers if followers * 5 < self.threshold * 4 else 0


_DECREED = {pb.TIER_CHOICE_NORMAL: pb.TIER_NORMAL, pb.TIER_CHOICE_CELEBRITY: pb.TIER_CELEBRITY}


class TierPublisher:
    """The celebrities, and who ceased to be one within 31 days. Of one event loop; `clock` gives unix seconds.

    Entries of one user are ordered by `changed_at_ms`, so it does not matter how often or in which order they come.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[int, pb.TierEntry] = {}
        self._subscriptions: set[Subscription] = set()
        self._blind = False

    async def start(self) -> None:
        """Nothing to begin: it is filled when the service is built."""

    async def stop(self) -> None:
        """Ends every subscription with UNAVAILABLE: a stream without end would hold up the drain."""
        for subscription in tuple(self._subscriptions):
            subscription.end("the service is stopping")

    def post(self, entries: Iterable[pb.TierEntry]) -> None:
        """Takes in what is news and hands it to the subscribers, before it returns."""
        news: list[pb.TierEntry] = []
        for entry in entries:
            known = self._entries.get(entry.user_id)
            if known is None or known.changed_at_ms < entry.changed_at_ms:
                self._entries[entry.user_id] = entry
                news.append(entry)
        for subscription in tuple(self._subscriptions):
            subscription.add(news)

    def see(self, stale: bool) -> None:
        """Says whether the board may miss changes from now on. While it may, nobody is told anything: that pauses who depends on it."""
        self._blind = stale
        if stale:
            for subscription in tuple(self._subscriptions):
                subscription.end("it cannot be said who is a celebrity")

    def entries(self) -> list[pb.TierEntry]:
        """Everybody on the board, in no promised order."""
        oldest_ms = int(self._clock() * 1000) - KEEP_CEASED_MS
        for entry in tuple(self._entries.values()):
            if entry.tier != pb.TIER_CELEBRITY and entry.changed_at_ms < oldest_ms:
                del self._entries[entry.user_id]
        return list(self._entries.values())

    def subscribe(self) -> Subscription:
        """A subscription, to be entered with `with`. Its snapshot and its changes meet without a gap. UNAVAILABLE while it is blind."""
        if self._blind:
            raise errors.unavailable("it cannot be said who is a celebrity")
        return Subscription(self.entries(), self._subscriptions)


class TierWatch:
    """Keeps a board to a store that other processes write too: a worker. What this process writes reaches the board at once.

    It looks at the rows, not at events: a look that succeeds leaves nothing out, and one that fails is known to have failed.
    """

    def __init__(
        self, store: GraphStore, board: TierPublisher, clock: Callable[[], float], every_s: float = WATCH_EVERY_S
    ) -> None:
        self._store = store
        self._board = board
        self._clock = clock
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to look."""
        self._task = asyncio.create_task(self._run(), name="tier-watch")

    async def stop(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        seen_at = loop.time()
        while True:
            try:
                looked_at = loop.time()
                self._board.post(await self._store.tiers(int(self._clock() * 1000) - KEEP_CEASED_MS))
                self._board.see(stale=False)
                seen_at = looked_at
            except Exception as error:
                stale = loop.time() - seen_at > BLIND_AFTER_S
                _log.warning("tiers not seen", stale=stale, error=repr(error))
                self._board.see(stale=stale)
            await asyncio.sleep(self._every_s)


class Subscription:
    """One listener: the snapshot it starts from, then what comes. `next` is for one task at a time."""

    def __init__(self, snapshot: list[pb.TierEntry], among: set[Subscription]) -> None:
        self.snapshot = snapshot
        self._waiting: deque[pb.TierEntry] = deque()
        self._wake = asyncio.Event()
        self._ended = ""
        self._among = among
        among.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._among.discard(self)

    def add(self, news: list[pb.TierEntry]) -> None:
        """Queues changes; ends the subscription if more than MAX_WAITING would wait."""
        if len(self._waiting) + len(news) > MAX_WAITING:
            _log.warning("tier stream ended", reason="slow", waiting=len(self._waiting))
            self.end("too slow: start again from a snapshot")
        elif news:
            self._waiting.extend(news)
            self._wake.set()

    def end(self, reason: str) -> None:
        """Makes `next` raise UNAVAILABLE from now on."""
        self._ended = reason
        self._waiting.clear()
        self._among.discard(self)
        self._wake.set()

    async def next(self, timeout_s: float) -> list[pb.TierEntry]:
        """The changes waiting, 1 to MAX_ENTRIES; none if `timeout_s` seconds bring none. UNAVAILABLE once ended."""
        if not self._waiting and not self._ended:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        if self._ended:
            raise errors.unavailable(f"the stream of tiers ended: {self._ended}")
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_ENTRIES))]


async def settle_threshold(store: GraphStore, rule: TierRule, stamp: Callable[[int], Awaitable[Change]]) -> int:
    """Judges everybody anew if the store was last judged by another threshold, and returns how many changed their tier.

    `stamp(n)` makes a Change for up to n events. To be called before the service answers; a crash within only means
    another run.
    """
    judged_by = await store.threshold()
    if judged_by == rule.threshold:
        return 0
    changed, after_id = 0, 0
    while True:
        batch = await store.judge_afresh(after_id, RECLASSIFY_BATCH, await stamp(RECLASSIFY_BATCH))
        changed += batch.changed
        if not batch.last_id:
            break
        after_id = batch.last_id
    await store.set_threshold(rule.threshold)
    if judged_by:
        _log.info("celebrity threshold changed", before=judged_by, now=rule.threshold, users_changed=changed)
    return changed
