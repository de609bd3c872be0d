"""Tiers and decrees: one row a user whom the rule or an operator ever moved, changed by compare-and-set alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import Change, EventBuilder
from services.graph.store import TierHook
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.compare_and_set import MAX_ROUNDS, back_off, compare_and_set
from services.graph.tier_publisher import TierRule
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.events.log import Record
from services.platform.rpc import errors

# All rows are read at a start and by every process every few seconds: few partitions, yet not one that all writers contend for.
SHARDS = 16
PAGE_ROWS = 1_000

_Due = tuple[pb.Tier.ValueType, pb.TierChoice.ValueType]


class Star(NamedTuple):
    """A user's tier, by whose choice, and since when (Unix milliseconds). `change` is the id of the last change to it, and `event`
    what that change published, empty where it moved nobody."""

    tier: pb.Tier.ValueType = pb.TIER_NORMAL
    choice: pb.TierChoice.ValueType = pb.TIER_CHOICE_AUTOMATIC
    changed_at_ms: int = 0
    change: int | None = None
    event: bytes = b""


class TierRows:
    """The rows of tiers. Where a change was made and not told, whoever comes next tells it."""

    def __init__(self, keyspace: Keyspace, outbox: Outbox, rule: TierRule) -> None:
        self._keyspace = keyspace
        self._outbox = outbox
        self._rule = rule
        self._hooks: list[TierHook] = []

    def on_change(self, hook: TierHook) -> None:
        """Calls `hook` with each tier that this process changes, before the change returns."""
        self._hooks.append(hook)

    def followers_until_change(self, followers: int) -> int:
        """How many followers more it takes until the rule could ask for another tier, for one just judged by this count; 0 where fewer
        could, too."""
        return self._rule.followers_until_change(followers)

    async def judge(
        self, user_id: int, followers: int, change: Change, event_id: int, *, from_count_alone: bool = False
    ) -> bool:
        """Moves the user to the tier that the count asks for; whether that is another. Its event gets `event_id`."""

        def due(star: Star) -> _Due:
            if from_count_alone:
                return self._rule.from_count_alone(followers, star.choice), star.choice
            return self._rule.tier(followers, star.tier, star.choice), star.choice

        return (await self._change(user_id, due, change, event_id))[1]

    async def override(
        self, user_id: int, choice: pb.TierChoice.ValueType, followers: int, change: Change, event_id: int
    ) -> tuple[pb.Tier.ValueType, bool]:
        """Lets `choice` decide from now on. The tier that stands then, and whether it changed."""

        def due(star: Star) -> _Due:
            return (star.tier if choice == star.choice else self._rule.from_count_alone(followers, choice)), choice

        star, moved = await self._change(user_id, due, change, event_id)
        return star.tier, moved

    async def misclassified(self, followers: Mapping[int, int]) -> list[int]:
        """Who of these does not stand where the count alone, or a decree, says; `followers` are counts by user id."""
        keys = [(user_id % SHARDS, user_id) for user_id in followers]
        rows = await self._keyspace.read_each(schema.STAR, keys)
        found: list[int] = []
        for (user_id, count), row in zip(followers.items(), rows, strict=True):
            tier, choice = row[0][:2] if row else (pb.TIER_NORMAL, pb.TIER_CHOICE_AUTOMATIC)
            if self._rule.from_count_alone(count, choice) != tier:
                found.append(user_id)
        return found

    async def all(self) -> list[pb.TierEntry]:
        """Every row, in no promised order."""
        found: list[pb.TierEntry] = []
        asked = [(shard, 0, PAGE_ROWS) for shard in range(SHARDS)]
        while asked:
            pages = await self._keyspace.read_each(schema.STARS, asked)
            found += [
                pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms)
                for page in pages
                for user_id, tier, at_ms in page
                # A decree that moved nobody has no time.
                if at_ms
            ]
            asked = [
                (key[0], page[-1][0], PAGE_ROWS)
                for key, page in zip(asked, pages, strict=True)
                if len(page) == PAGE_ROWS
            ]
        return found

    async def _change(
        self, user_id: int, due: Callable[[Star], _Due], change: Change, event_id: int
    ) -> tuple[Star, bool]:
        for attempt in range(MAX_ROUNDS):
            star = await self._told(user_id)
            tier, choice = due(star)
            if (tier, choice) == (star.tier, star.choice):
                return star, False
            new = _moved(user_id, star, tier, choice, change, event_id)
            key = (user_id % SHARDS, user_id)
            if await compare_and_set(
                self._keyspace, schema.SWAP_STAR, (*new, *key, star.change), lambda: self._stands(user_id, event_id)
            ):
                await self._tell(user_id, new)
                return new, tier != star.tier
            await back_off(attempt)
        raise errors.unavailable("too many change the same tier at once")

    async def _stands(self, user_id: int, event_id: int) -> bool:
        rows = await self._keyspace.read_serial(schema.STAR, user_id % SHARDS, user_id)
        return bool(rows) and rows[0][3] == event_id

    async def _told(self, user_id: int) -> Star:
        """The row; what it still owes is published before."""
        rows = await self._keyspace.read(schema.STAR, user_id % SHARDS, user_id)
        if not rows:
            return Star()
        tier, choice, changed_at_ms, change, event = rows[0]
        star = Star(tier, choice, changed_at_ms, change, event or b"")
        if star.event:
            told = await self._keyspace.read(schema.TOLD, user_id)
            if not told or told[0][0] != star.change:
                await self._tell(user_id, star)
        return star

    async def _tell(self, user_id: int, star: Star) -> None:
        if not star.event:
            return
        event = event_pb2.Event.FromString(star.event)
        records = [Record("user.tier_changed", event.key, event.event_id, star.event, event.traceparent)]
        steps = self._outbox.statements(records)
        await self._keyspace.batch([*steps, (schema.TELL, (user_id, star.change, star.changed_at_ms * 1000))])
        self._outbox.publish(records)
        entries: Sequence[pb.TierEntry] = [
            pb.TierEntry(user_id=user_id, tier=star.tier, changed_at_ms=star.changed_at_ms)
        ]
        for hook in self._hooks:
            hook(entries)


def _moved(
    user_id: int,
    star: Star,
    tier: pb.Tier.ValueType,
    choice: pb.TierChoice.ValueType,
    change: Change,
    event_id: int,
) -> Star:
    if tier == star.tier:
        return Star(tier, choice, star.changed_at_ms, event_id)
    facts = EventBuilder(change._replace(event_ids=(event_id,)))
    facts.tier_changed(user_id, tier == pb.TIER_CELEBRITY)
    # Later than the change before, whatever the clock says: readers order a user's tiers by this time.
    at_ms = max(change.at_ms, star.changed_at_ms + 1)
    return Star(tier, choice, at_ms, event_id, facts.records[0].payload)
