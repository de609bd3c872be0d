"""Stores tiers and operators' choices: one row for each user whose tier or choice was ever changed. Rows are changed by
compare-and-set only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from roost.graph.v1 import graph_service_pb2 as pb

from services.graph.events import EventBuilder, WriteStamp
from services.graph.store import TierHook
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.compare_and_set import MAX_ROUNDS, back_off, compare_and_set
from services.graph.tier_publisher import TierRule
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.events.records import record_of
from services.platform.rpc import errors

# Number of partitions of the table; a row's partition is its user id modulo this number. Every process reads all
# partitions at the start and every second, so the partitions are few. A single partition would make all conditional
# writes conflict with each other, because Cassandra serializes the conditional writes of one partition.
SHARDS = 16
# Maximum number of rows per read; more rows are read page by page.
PAGE_ROWS = 1_000

_Due = tuple[pb.Tier.ValueType, pb.TierChoice.ValueType]


class TierRow(NamedTuple):
    """A user's tier, the operator's choice, and the time of the last tier change (Unix milliseconds; 0: the tier never
    changed).

    `change` is the id of the row's last change; `event` is the serialized event of that change, empty if the tier did
    not change.
    """

    tier: pb.Tier.ValueType = pb.TIER_NORMAL
    choice: pb.TierChoice.ValueType = pb.TIER_CHOICE_AUTOMATIC
    changed_at_ms: int = 0
    change: int | None = None
    event: bytes = b""


class TierRows:
    """Reads and changes tier rows. If a process died after it changed a row and before it published the row's event,
    the next writer of the row publishes that event."""

    def __init__(self, keyspace: Keyspace, outbox: Outbox, rule: TierRule) -> None:
        self._keyspace = keyspace
        self._outbox = outbox
        self._rule = rule
        self._hooks: list[TierHook] = []

    def on_change(self, hook: TierHook) -> None:
        """Registers `hook`, which this object calls with each tier that this process changes, before the method that
        changes the tier returns."""
        self._hooks.append(hook)

    def followers_until_change(self, followers: int) -> int:
        """Returns how many more followers a user must gain before the tier can change; 0 if a loss of followers can
        change it too."""
        return self._rule.followers_until_change(followers)

    async def classify(
        self, user_id: int, followers: int, change: WriteStamp, event_id: int, *, from_count_alone: bool = False
    ) -> bool:
        """Sets the user's tier to the one that the tier rule assigns to a user with this number of followers. Returns
        whether the tier changed; the event of a change gets the id `event_id`.

        The rule normally depends on the current tier too, because a celebrity stays a celebrity until the number falls
        below 0.8 of the threshold. With `from_count_alone`, used after a change of the threshold, the rule ignores the
        current tier. Raises UNAVAILABLE
        if too many concurrent writes conflict on the row.
        """

        def due(current: TierRow) -> _Due:
            if from_count_alone:
                return self._rule.from_count_alone(followers, current.choice), current.choice
            return self._rule.tier(followers, current.tier, current.choice), current.choice

        return (await self._change(user_id, due, change, event_id))[1]

    async def override(
        self, user_id: int, choice: pb.TierChoice.ValueType, followers: int, change: WriteStamp, event_id: int
    ) -> tuple[pb.Tier.ValueType, bool]:
        """Stores the operator's `choice` for the user and sets the tier that results from the choice and the number of
        followers. Returns that tier, and whether it differs from the tier before. Raises UNAVAILABLE if too many
        concurrent writes conflict on the row."""

        def due(current: TierRow) -> _Due:
            return (
                current.tier if choice == current.choice else self._rule.from_count_alone(followers, choice)
            ), choice

        current, moved = await self._change(user_id, due, change, event_id)
        return current.tier, moved

    async def misclassified(self, followers: Mapping[int, int]) -> list[int]:
        """Computes the tier of each user from the operator's choice or the number of followers alone, not from the
        stored tier. Returns the ids of the users whose stored tier differs from the computed one. `followers` maps user
        ids to numbers of followers."""
        keys = [(user_id % SHARDS, user_id) for user_id in followers]
        rows = await self._keyspace.read_each(schema.TIER_ROW, keys)
        found: list[int] = []
        for (user_id, count), row in zip(followers.items(), rows, strict=True):
            tier, choice = row[0][:2] if row else (pb.TIER_NORMAL, pb.TIER_CHOICE_AUTOMATIC)
            if self._rule.from_count_alone(count, choice) != tier:
                found.append(user_id)
        return found

    async def all(self) -> list[pb.TierEntry]:
        """Returns all tiers in no particular order."""
        found: list[pb.TierEntry] = []
        keys = [(shard, 0, PAGE_ROWS) for shard in range(SHARDS)]
        while keys:
            pages = await self._keyspace.read_each(schema.TIER_ROWS, keys)
            found += [
                pb.TierEntry(user_id=user_id, tier=tier, changed_at_ms=at_ms)
                for page in pages
                for user_id, tier, at_ms in page
                # A row without a time holds an operator's choice that never changed the tier.
                if at_ms
            ]
            keys = [
                (key[0], page[-1][0], PAGE_ROWS)
                for key, page in zip(keys, pages, strict=True)
                if len(page) == PAGE_ROWS
            ]
        return found

    async def _change(
        self, user_id: int, due: Callable[[TierRow], _Due], change: WriteStamp, event_id: int
    ) -> tuple[TierRow, bool]:
        """Changes the user's row to the tier and choice that `due` returns for the current row. Returns the row after
        the change, and whether the tier changed. Raises UNAVAILABLE if too many concurrent writes conflict on the
        row."""
        for attempt in range(MAX_ROUNDS):
            current = await self._read_published(user_id)
            tier, choice = due(current)
            if (tier, choice) == (current.tier, current.choice):
                return current, False
            new = _with_tier(user_id, current, tier, choice, change, event_id)
            key = (user_id % SHARDS, user_id)
            if await compare_and_set(
                self._keyspace,
                schema.SWAP_TIER_ROW,
                (*new, *key, current.change),
                lambda: self._is_applied(user_id, event_id),
            ):
                await self._publish(user_id, new)
                return new, tier != current.tier
            await back_off(attempt)
        raise errors.unavailable("too many concurrent changes of this user's tier: retry later")

    async def _is_applied(self, user_id: int, event_id: int) -> bool:
        """Reads the row serially, and returns whether its last change has this event id."""
        rows = await self._keyspace.read_serial(schema.TIER_ROW, user_id % SHARDS, user_id)
        return bool(rows) and rows[0][3] == event_id

    async def _read_published(self, user_id: int) -> TierRow:
        """Returns the user's row. If the event of the row was not published, publishes the event first."""
        rows = await self._keyspace.read(schema.TIER_ROW, user_id % SHARDS, user_id)
        if not rows:
            return TierRow()
        tier, choice, changed_at_ms, change, event = rows[0]
        current = TierRow(tier, choice, changed_at_ms, change, event or b"")
        if current.event:
            published = await self._keyspace.read(schema.PUBLISHED_CHANGE, user_id)
            if not published or published[0][0] != current.change:
                await self._publish(user_id, current)
        return current

    async def _publish(self, user_id: int, current: TierRow) -> None:
        """Writes the row's event to the outbox and passes the new tier to the hooks. Does nothing if the row has no
        event."""
        if not current.event:
            return
        records = [record_of(current.event)]
        steps = self._outbox.statements(records)
        await self._keyspace.batch(
            [*steps, (schema.SET_PUBLISHED_CHANGE, (user_id, current.change, current.changed_at_ms * 1000))]
        )
        self._outbox.publish(records)
        entries: Sequence[pb.TierEntry] = [
            pb.TierEntry(user_id=user_id, tier=current.tier, changed_at_ms=current.changed_at_ms)
        ]
        for hook in self._hooks:
            hook(entries)


def _with_tier(
    user_id: int,
    current: TierRow,
    tier: pb.Tier.ValueType,
    choice: pb.TierChoice.ValueType,
    change: WriteStamp,
    event_id: int,
) -> TierRow:
    if tier == current.tier:
        return TierRow(tier, choice, current.changed_at_ms, event_id)
    events = EventBuilder(change._replace(event_ids=(event_id,)))
    events.tier_changed(user_id, tier == pb.TIER_CELEBRITY)
    # Later than the previous change even if the clock was set back: readers order a user's tiers by this time.
    at_ms = max(change.at_ms, current.changed_at_ms + 1)
    return TierRow(tier, choice, at_ms, event_id, events.records[0].payload)
