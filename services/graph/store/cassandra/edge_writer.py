"""Writes of edges: the pair's row by compare-and-set, then all that follows from it.

Whoever wins the row has made the change, so there is one change and one event however many try at once. What follows (the lists by
user, the marks of counts, the outbox) is one batch that can be repeated by anybody, and so need not be a logged one: a note made
before the change names the pair, and its mark, made after the batch, says that nothing is owed. In between, whoever reads the row to
write it finishes the change, and a sweeper looks for what nobody read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any
from weakref import WeakValueDictionary

import structlog
from cachetools import LRUCache

from services.graph.events import Change
from services.graph.store import Outcome
from services.graph.store.cassandra import schema
from services.graph.store.cassandra.compare_and_set import MAX_ROUNDS, back_off, compare_and_set
from services.graph.store.cassandra.follow_counts import RECOUNT_EVERY_MS, Tallies
from services.graph.store.cassandra.intent_log import IntentLog
from services.graph.store.cassandra.relationship import FOLLOWERS, Act, Edge, EdgeChange, Edges, Pair, Statement, ends
from services.graph.store.cassandra.tier_rows import TierRows
from services.graph.store.cassandra.user_index import People
from services.platform.cassandra.keyspace import Keyspace
from services.platform.cassandra.outbox import Outbox
from services.platform.redis.shared_versions import SharedVersions
from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, current_call

# What is put off: users whose count was too dear to take again at once, and marks that Redis did not take. A user left out is judged at
# the next follow, a mark left out is made by the sweeper.
MAX_PUT_OFF = 1_000
# Until the mark is made, a reader who can reach Redis may be shown what stood before.
MARK_AGAIN_S = 0.5
# Whoever is this far from the next tier is not counted again at each follow, for that would be half of its cost: not before a quarter of
# the way is gone in this process, or the time is over. Judged late is who gains it all by many processes in that time, and then nobody.
FAR = 500
FAR_FOR_S = 60.0
# Users known to be far, at about 150 bytes: 15 MB. Who drops out is counted.
MAX_FAR = 100_000

_log = structlog.get_logger(__name__)


class EdgeWriter:
    """The one writer of pairs. `mint` gives new ids, `clock` unix seconds."""

    def __init__(
        self,
        keyspace: Keyspace,
        shared: SharedVersions,
        outbox: Outbox,
        tallies: Tallies,
        stars: TierRows,
        mint: Callable[[], Awaitable[int]],
        clock: Callable[[], float],
    ) -> None:
        self._keyspace = keyspace
        self._shared = shared
        self._outbox = outbox
        self._tallies = tallies
        self._stars = stars
        self._people = People(keyspace)
        self._notes = IntentLog(keyspace, clock)
        self._mint = mint
        self._clock = clock
        # Writers of one process queue for a pair: to meet in compare-and-set costs each a round of it.
        self._queues: WeakValueDictionary[tuple[int, int], asyncio.Lock] = WeakValueDictionary()
        self._put_off: dict[Hashable, asyncio.Task[None]] = {}
        # Users whose followers were last counted before the last follow.
        self._stale: set[int] = set()
        # Until when (the loop's seconds), and for how many follows more, each of these is not counted.
        self._far: LRUCache[int, tuple[float, int]] = LRUCache(MAX_FAR)

    async def write(self, act: Act, source_id: int, target_id: int, change: Change) -> Outcome:
        """Lets `source_id` act. UNAVAILABLE where it is unknown whether it was done, or too many write the same pair."""
        key = ends(source_id, target_id)
        queue = self._queues.setdefault(key, asyncio.Lock())
        async with queue:
            for attempt in range(MAX_ROUNDS):
                pair = await self.settled(*key)
                edge = Edge(change.at_ms, self._tallies.bucket(target_id, source_id))
                edges = pair.after(act, source_id, edge)
                if edges is None:
                    return Outcome(pair.relationship(source_id), False)
                changed = await self._swap(pair, edges, change)
                if changed:
                    return Outcome(changed.relationship(source_id), True)
                await back_off(attempt)
        raise errors.unavailable("too many change the same edge at once")

    async def settled(self, low: int, high: int) -> Pair:
        """The row of two people, once nothing is owed for its last change."""
        rows = await self._keyspace.read(schema.PAIR, low, high)
        pair = Pair.of(low, high, rows[0] if rows else None)
        if pair.change is not None and not await self._notes.is_finished(pair):
            await self.finish(pair, await self._mint())
        return pair

    async def finish(self, pair: Pair, fresh: int) -> None:
        """Does what the pair's last change owes; `fresh` becomes the relation version of those it touched. Any number of times."""
        action = EdgeChange.of(pair)
        counted = action.counted()
        facts = action.facts()
        # Before tiers add to them: those publish on their own.
        records = list(facts.records)
        steps: list[Statement] = [*action.rows(), *self._tallies.marks(counted), *self._outbox.statements(records)]
        await self._keyspace.unlogged_batch(steps)
        self._outbox.publish(records)
        # The rows stand: from here on readers may be told to look, and counts are taken.
        spare = iter(action.change.event_ids[len(records) :])
        followees = {user_id: None for user_id, side, _ in counted if side == FOLLOWERS}
        marked, *_ = await asyncio.gather(
            self._shared.change_relations(action.readers(), fresh),
            *(self._judge(user_id, action.change, next(spare)) for user_id in followees),
        )
        if marked:
            await self._settle(pair)
        else:
            self._later((pair.low, pair.high), self._mark(pair, action.readers()))

    async def close(self) -> None:
        """Drops what was put off."""
        tasks = tuple(self._put_off.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _swap(self, pair: Pair, edges: Edges, change: Change) -> Pair | None:
        """Makes the change; None where another was first."""
        key = (pair.low, pair.high)
        changed = pair.changed(edges, change, int(self._clock() * 1_000_000))
        # Durable before the change is: what is made and not finished can then be found.
        people = self._people.steps(key)
        await asyncio.gather(self._notes.make(changed), self._keyspace.write_each(people))
        self._people.learn(key)

        async def stands() -> bool:
            rows = await self._keyspace.read_serial(schema.PAIR, *key)
            return bool(rows) and rows[0][0] == change.version

        if not await compare_and_set(self._keyspace, schema.SWAP_PAIR, (*changed.values(), *key, pair.change), stands):
            return None
        # It is made, so it is finished even when the caller's time is up: each statement keeps its own bound.
        current_call.set(current_call.get()._replace(deadline=NEVER))
        await self.finish(changed, change.version)
        return changed

    async def _settle(self, pair: Pair) -> None:
        """Says that nothing is owed. Last: whoever sees it relies on all of the rest."""
        await self._notes.mark(pair)

    async def _mark(self, pair: Pair, readers: list[int]) -> None:
        while True:
            if await self._shared.change_relations(readers, await self._mint()):
                await self._settle(pair)
                return
            await asyncio.sleep(MARK_AGAIN_S)

    async def _judge(self, user_id: int, change: Change, event_id: int) -> None:
        until, room = self._far.get(user_id, (0.0, 0))
        now = asyncio.get_running_loop().time()
        if room > 0 and now < until:
            self._far[user_id] = (until, room - 1)
            return
        tally = await self._tallies.followers(user_id)
        await self._stars.judge(user_id, tally.edges, change, event_id)
        if (followers_until_change := self._stars.followers_until_change(tally.edges)) >= FAR:
            self._far[user_id] = (now + FAR_FOR_S, followers_until_change // 4)
            return
        if not tally.fresh:
            self._stale.add(user_id)
            if not self._later(user_id, self._judge_again(user_id)):
                self._stale.discard(user_id)

    async def _judge_again(self, user_id: int) -> None:
        """Once the count may be taken again: the last follow of a rush must not go uncounted."""
        while user_id in self._stale:
            await asyncio.sleep(RECOUNT_EVERY_MS / 1000)
            # Before it counts: a follow that comes meanwhile puts it there again.
            self._stale.discard(user_id)
            tally = await self._tallies.followers(user_id)
            version, event_id = await self._mint(), await self._mint()
            change = Change(int(self._clock() * 1000), version, (event_id,))
            await self._stars.judge(user_id, tally.edges, change, event_id)

    def _later(self, key: Hashable, work: Coroutine[Any, Any, None]) -> bool:
        """Does it in the background, one thing a key; False where there is no room."""
        if key in self._put_off or len(self._put_off) >= MAX_PUT_OFF:
            work.close()
            return key in self._put_off

        async def run() -> None:
            # Nobody waits for it, so nobody's deadline ends it.
            current_call.set(current_call.get()._replace(deadline=NEVER))
            try:
                await work
            except errors.RoostError as error:
                _log.warning("put off, and failed", of=key, error=str(error))
            finally:
                del self._put_off[key]

        self._put_off[key] = asyncio.create_task(run())
        return True
