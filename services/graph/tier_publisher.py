"""Celebrity tiers: the rule that assigns the tiers, and the publisher that streams their changes to subscribers.

A celebrity has so many followers that fan-out does not add the author's tweets to home timelines; readers pull them
instead.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import WriteStamp
from services.graph.store import TierStore
from services.platform.background import BackgroundWorker
from services.platform.log_events import LogEvent
from services.platform.rpc import errors

# For this many milliseconds after a demotion, the snapshots of new subscribers contain the demotion. A demoted author
# is still pulled into home timelines that were built before the demotion, and a home timeline that is not read for 30
# days is dropped. One day is spare.
FORMER_CELEBRITY_RETENTION_MS = 31 * 24 * 3600 * 1000
# Time in seconds between two heartbeats. Subscribers end a stream that sends nothing for 30 s, that is, after six
# missing heartbeats.
HEARTBEAT_S = 5.0
# Maximum number of entries in one streamed message: the proto's `max_items`.
MAX_ENTRIES = 1_000
# Maximum number of changes queued for one subscriber; beyond it, its subscription ends with UNAVAILABLE. Far fewer
# changes occur in a second, so a subscriber with a full queue should reconnect and read a new snapshot.
MAX_PENDING = 10_000
# POLL_EVERY_S is the time in seconds between two reads of the tiers that other processes wrote. STALE_AFTER_S is the
# maximum time in seconds for which the last result is used while reads fail. Their sum is far below the margin between
# processes (60 s), during which the tweets of a promoted author are both appended and pulled.
POLL_EVERY_S = 1.0
STALE_AFTER_S = 10.0
# Maximum number of users classified in one transaction after the threshold was changed. The transaction takes about 10
# ms, and other writes wait until it ends.
RECLASSIFY_BATCH = 1_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TierRule:
    """Assigns tiers by follower count.

    A user becomes a celebrity at `threshold` followers and stays a celebrity until the count falls below 0.8 of
    `threshold`. Because of the gap, one follower who unfollows and follows again and again does not change the tier
    each time.
    """

    threshold: int

    def tier(
        self, followers: int, current: pb.Tier.ValueType, choice: pb.TierChoice.ValueType = pb.TIER_CHOICE_AUTOMATIC
    ) -> pb.Tier.ValueType:
        """Returns the tier of a user who has `followers` followers and is now in tier `current`.

        An operator's choice other than AUTOMATIC overrides the count.
        """
        # Integers, because 0.8 of the threshold has no exact floating-point value.
        if current == pb.TIER_CELEBRITY and followers * 5 >= self.threshold * 4:
            return _OVERRIDES.get(choice, pb.TIER_CELEBRITY)
        return self.from_count_alone(followers, choice)

    def from_count_alone(
        self, followers: int, choice: pb.TierChoice.ValueType = pb.TIER_CHOICE_AUTOMATIC
    ) -> pb.Tier.ValueType:
        """Returns the tier by number of followers and operator's choice, without regard to the current tier. Used after
        the threshold was changed, because the current tiers were assigned by the old threshold."""
        by_count = pb.TIER_CELEBRITY if followers >= self.threshold else pb.TIER_NORMAL
        return _OVERRIDES.get(choice, by_count)

    def followers_until_change(self, followers: int) -> int:
        """Returns how many more followers the user must gain before the tier can change; 0 if a loss of followers can
        change it too."""
        return self.threshold - followers if followers * 5 < self.threshold * 4 else 0


_OVERRIDES = {pb.TIER_CHOICE_NORMAL: pb.TIER_NORMAL, pb.TIER_CHOICE_CELEBRITY: pb.TIER_CELEBRITY}


class TierPublisher:
    """Sends tiers to subscribers: all celebrities, and authors demoted within the last 31 days.

    For use by one event loop. `clock` returns Unix seconds. Of several entries of one user, the one with the greatest
    `changed_at_ms` is kept, so duplicates and reordering do no harm.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: dict[int, pb.TierEntry] = {}
        self._subscriptions: set[Subscription] = set()
        self._stale = False

    async def start(self) -> None:
        """Does nothing: `publish` fills the publisher while the service is built."""

    async def stop(self) -> None:
        """Ends every subscription with UNAVAILABLE, because an endless stream would delay the end of the process."""
        for subscription in tuple(self._subscriptions):
            subscription.end("the service is stopping: reconnect")

    def publish(self, entries: Iterable[pb.TierEntry]) -> None:
        """Stores each entry that is newer than the known entry of the same user, and queues it for every subscriber,
        before this method returns."""
        news: list[pb.TierEntry] = []
        for entry in entries:
            known = self._entries.get(entry.user_id)
            if known is None or known.changed_at_ms < entry.changed_at_ms:
                self._entries[entry.user_id] = entry
                news.append(entry)
        for subscription in tuple(self._subscriptions):
            subscription.add(news)

    def set_stale(self, stale: bool) -> None:
        """Sets whether this publisher may lack changes that other processes wrote.

        While stale, subscriptions are ended and refused with UNAVAILABLE. Then fan-out pauses and readers pull all
        authors.
        """
        self._stale = stale
        if stale:
            for subscription in tuple(self._subscriptions):
                subscription.end("celebrity tiers cannot be read from the store now: retry later")

    def entries(self) -> list[pb.TierEntry]:
        """Returns all entries in no particular order, without users demoted more than 31 days ago."""
        oldest_ms = int(self._clock() * 1000) - FORMER_CELEBRITY_RETENTION_MS
        for entry in tuple(self._entries.values()):
            if entry.tier != pb.TIER_CELEBRITY and entry.changed_at_ms < oldest_ms:
                del self._entries[entry.user_id]
        return list(self._entries.values())

    def subscribe(self) -> Subscription:
        """Returns a subscription, to be used as a context manager; no change is lost between its snapshot and its first
        update.

        Raises UNAVAILABLE while the tiers are stale.
        """
        if self._stale:
            raise errors.unavailable("celebrity tiers cannot be read from the store now: retry later")
        return Subscription(self.entries(), self._subscriptions)


class TierPoller(BackgroundWorker):
    """Worker that reads all celebrity tiers from the store every `every_s` seconds and passes them to the publisher.

    The poller finds the changes that other processes of graph wrote; changes of this process reach the publisher
    directly. The poller reads rows instead of events, because a consumer cannot know whether it has received all
    events. If reads fail for longer than STALE_AFTER_S seconds, the poller marks the publisher's tiers as stale until a
    read succeeds. `clock` returns Unix seconds, `monotonic` seconds.
    """

    def __init__(
        self,
        tiers: TierStore,
        publisher: TierPublisher,
        clock: Callable[[], float],
        every_s: float = POLL_EVERY_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("tier-watch")
        self._tiers = tiers
        self._publisher = publisher
        self._clock = clock
        self._every_s = every_s
        self._monotonic = monotonic

    async def _run(self) -> None:
        seen_at = self._monotonic()
        while True:
            try:
                looked_at = self._monotonic()
                self._publisher.publish(
                    await self._tiers.list_since(int(self._clock() * 1000) - FORMER_CELEBRITY_RETENTION_MS)
                )
                self._publisher.set_stale(stale=False)
                seen_at = looked_at
            except Exception as error:
                stale = self._monotonic() - seen_at > STALE_AFTER_S
                log.warning(LogEvent.TIER_POLL_FAILED, stale=stale, error=repr(error))
                self._publisher.set_stale(stale=stale)
            await asyncio.sleep(self._every_s)


class Subscription:
    """The stream of one subscriber: `snapshot` first, then changes from `next`. Only one task may call `next` at a
    time."""

    def __init__(self, snapshot: list[pb.TierEntry], among: set[Subscription]) -> None:
        self.snapshot = snapshot
        self._pending: deque[pb.TierEntry] = deque()
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
        """Queues changes for `next`. Ends the subscription if more than MAX_PENDING changes would be queued."""
        if len(self._pending) + len(news) > MAX_PENDING:
            log.warning(LogEvent.TIER_SUBSCRIPTION_ENDED, reason="too_slow", pending=len(self._pending))
            self.end("the subscriber is too slow: reconnect to get a new snapshot")
        elif news:
            self._pending.extend(news)
            self._wake.set()

    def end(self, reason: str) -> None:
        """Ends the subscription: drops queued changes, and `next` raises UNAVAILABLE with this reason from now on."""
        self._ended = reason
        self._pending.clear()
        self._among.discard(self)
        self._wake.set()

    async def next(self, timeout_s: float) -> list[pb.TierEntry]:
        """Waits up to `timeout_s` seconds for changes. Returns 1 to MAX_ENTRIES changes, or an empty list if none
        arrived.

        Raises UNAVAILABLE once the subscription has ended.
        """
        if not self._pending and not self._ended:
            self._wake.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        if self._ended:
            raise errors.unavailable(f"the tier stream ended: {self._ended}")
        return [self._pending.popleft() for _ in range(min(len(self._pending), MAX_ENTRIES))]


async def apply_threshold(tiers: TierStore, rule: TierRule, stamp: Callable[[int], Awaitable[WriteStamp]]) -> int:
    """Classifies all users again if the configured threshold differs from the one last applied. Returns how many users
    changed tier.

    `stamp(n)` returns a WriteStamp with `n` event ids. Call this function before the service accepts requests. If the
    process dies before all users are classified, the next start classifies all users again.
    """
    applied = await tiers.threshold()
    if applied == rule.threshold:
        return 0
    changed, after_id = 0, 0
    while True:
        batch = await tiers.reclassify_batch(after_id, RECLASSIFY_BATCH, await stamp(RECLASSIFY_BATCH))
        changed += batch.changed
        if not batch.last_id:
            break
        after_id = batch.last_id
    await tiers.set_threshold(rule.threshold)
    if applied:
        log.info(LogEvent.CELEBRITY_THRESHOLD_CHANGED, before=applied, now=rule.threshold, users_changed=changed)
    return changed
