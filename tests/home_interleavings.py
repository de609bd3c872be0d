"""Random schedules of operations on home timelines, one step at a time, compared with a model.

Posts, deliveries, builds, reads, drops, replays, deletes, follows and tier changes interleave at every point at which
the real ones could: a delivery between reading followers and appending, a build between any two answers of its pull,
and between any two commands of a store that waits. No event loop runs: the schedule advances one coroutine by one step
at a time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any

from services.platform.rpc.errors import RoostError
from services.timeline import pull
from services.timeline.fanout_rules import FanoutRules
from services.timeline.followees import FolloweeSet
from services.timeline.home.builder import HomeBuild, HomeBuilder
from services.timeline.store import HomeList, HomeTimelineStore

# Short lists, so that trims, abandoned builds and reads below the floor happen often.
KEEP, TRIM_ABOVE = 12, 16
READERS, AUTHORS = (101, 102, 103), (1, 2, 3, 4, 5)
COMMANDS = 250
# Operations in progress at once; with more, few would ever finish.
MAX_IN_PROGRESS = 12


class Step:
    """An await point at which the schedule may switch."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def drain(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine to its end without switching."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            return end.value


class World:
    """The model: tweets, follows and tiers, and the event log by author."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.live: dict[int, int] = {}
        self.log: dict[int, list[int]] = {author: [] for author in AUTHORS}
        self.reached = dict.fromkeys(AUTHORS, 0)
        self.follows: dict[int, dict[int, int]] = {reader: {} for reader in READERS}
        self.celebrity_since: dict[int, int] = {}
        self.normal_ms: dict[int, int] = {}
        self.version = 0

    # The interfaces that HomeBuilder and FanoutRules use of tiers, followees and the tweet service.
    @property
    def celebrities(self) -> Iterable[int]:
        return self.celebrity_since.keys()

    def is_celebrity(self, author: int) -> bool:
        return author in self.celebrity_since

    def demoted_since(self, ms: int) -> Sequence[int]:
        return [author for author, changed in self.normal_ms.items() if changed > ms]

    async def fetch(self, reader: int) -> FolloweeSet:
        # Followees are read in pages, and the graph may change between them.
        found = []
        for author in AUTHORS:
            if author in self.follows[reader]:
                found.append((self.follows[reader][author], author))
            await Step()
        return FolloweeSet(found)

    def relations(self, reader: int) -> FolloweeSet:
        return FolloweeSet([(since, author) for author, since in self.follows[reader].items()])

    async def newest(self, authors: Sequence[int], before_id: int, depth: int) -> pull.IdBatches:
        for author in authors:
            await Step()
            ids = [i for i, by in self.live.items() if by == author and (not before_id or i < before_id)]
            if ids:
                yield {author: sorted(ids, reverse=True)[:depth]}

    def model(self, reader: int) -> list[int]:
        followees = {reader, *self.follows[reader]}
        return sorted((i for i, by in self.live.items() if by in followees), reverse=True)


class Schedule:
    """One random run of `length` commands."""

    length = COMMANDS

    def __init__(self, seed: int, store: HomeTimelineStore, rules: FanoutRules) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.store = store
        self.rules = rules
        world: Any = self.world
        self.builds = HomeBuilder(store, world, world, world, self.rules, lambda: self.world.now_ms / 1000, KEEP)
        self.uncommitted: list[tuple[int, int]] = []
        self.running: list[tuple[HomeBuild | None, Coroutine[Any, Any, None]]] = []
        self.seen: Counter[str] = Counter()
        self.last_id = 0
        # Tweets delivered at least once: a warm home timeline must not lack them.
        self.delivered: set[int] = set()
        self._faults: list[str] = []

    def commands(self) -> list[tuple[int, Callable[[], None]]]:
        """Returns the commands with their weights."""
        return [
            (150, self.mint),
            (150, self.commit),
            (40, self.burst),
            # Deliveries advance faster than builds, so that things happen during a build.
            (150, lambda: self.advance(builds=True)),
            (700, lambda: self.advance(builds=False)),
            (250, self.deliver),
            (12, self.build),
            (4, self.fail),
            (4, self.drop),
            (10, self.use),
            (2, self.replay),
            (20, self.delete),
            (15, self.follow),
            (10, self.unfollow),
            (8, self.change_tier),
        ]

    def run(self) -> None:
        """Runs the commands, then lets everything settle."""
        commands = self.commands()
        for reader in READERS:
            for author in self.random.sample(AUTHORS, 3):
                self.world.follows[reader][author] = self.world.now_ms
        chosen = self.random.choices([c for _, c in commands], [w for w, _ in commands], k=self.length)
        for command in chosen:
            self.world.now_ms += 1
            command()
        self.settle()

    def settle(self) -> None:
        """Finishes everything in progress and delivers every partition; starts no build."""
        while self.uncommitted:
            self.commit()
        behind = AUTHORS
        while self.running or behind:
            self.advance(builds=self.random.random() < 0.2)
            behind = tuple(a for a in AUTHORS if self.world.reached[a] < len(self.world.log[a]))
            if behind and len(self.running) < MAX_IN_PROGRESS and self.random.random() < 0.2:
                self.running.append((None, self.delivery(self.random.choice(behind))))

    def mint(self) -> None:
        self.last_id += self.random.randint(1, 3)
        self.uncommitted.append((self.last_id, self.random.choice((*AUTHORS, *READERS))))

    def commit(self) -> None:
        """Commits one minted tweet. Ids are minted before they commit, so they become readable in another order."""
        if self.uncommitted:
            tweet_id, author = self.uncommitted.pop(self.random.randrange(len(self.uncommitted)))
            self.world.live[tweet_id] = author
            if author in self.world.log:
                self.world.log[author].append(tweet_id)

    def burst(self) -> None:
        author = self.random.choice(AUTHORS)
        for _ in range(self.random.choice((3, TRIM_ABOVE + 4))):
            self.last_id += 1
            self.world.live[self.last_id] = author
            self.world.log[author].append(self.last_id)

    def advance(self, builds: bool) -> None:
        """Advances a random build, or a random delivery, by one step."""
        entries = [entry for entry in self.running if (entry[0] is not None) == builds]
        if not entries:
            return
        entry = self.random.choice(entries)
        build, work = entry
        try:
            work.send(None)
        except StopIteration:
            self.running.remove(entry)
            if build is not None:
                self.seen["installed" if build.installed else "overtaken"] += 1
        except ConnectionError:
            self.running.remove(entry)

    async def delivery(self, author: int) -> None:
        """Delivers one batch of a partition: reads tier, then followers, then appends; commits the offset last."""
        first = self.world.reached[author]
        batch = self.world.log[author][first : first + self.random.randint(1, 8)]
        if not self.world.is_celebrity(author):
            await Step()
            followers = [reader for reader in READERS if author in self.world.follows[reader]]
            await Step()
            try:
                await self.store.append([(tweet_id, followers) for tweet_id in batch])
            except RoostError:
                # The consumer retries.
                self.seen["refused"] += 1
                return
        self.delivered.update(batch)
        # A replay in the meantime must not be skipped.
        if self.world.reached[author] == first:
            self.world.reached[author] = first + len(batch)

    def deliver(self) -> None:
        author = self.random.choice(AUTHORS)
        if self.world.reached[author] < len(self.world.log[author]) and len(self.running) < MAX_IN_PROGRESS:
            self.running.append((None, self.delivery(author)))

    def build(self) -> None:
        """Starts a build, also if one is in progress for the user."""
        build = HomeBuild(self.random.choice(READERS))
        self.running.append((build, self.builds.pull(build)))

    def fail(self) -> None:
        builds = [entry for entry in self.running if entry[0] is not None]
        if builds:
            entry = self.random.choice(builds)
            try:
                # If abandoning takes several commands, the build stays in progress.
                entry[1].throw(ConnectionError())
            except (ConnectionError, StopIteration):
                self.running.remove(entry)
            self.seen["failed"] += 1

    def drop(self) -> None:
        drain(self.store.drop(self.random.choice(READERS)))

    def use(self) -> None:
        """Reads a home timeline while everything else continues. In memory this also decides which one is evicted: the
        store holds two of three."""
        self.running.append((None, self.reading(self.random.choice(READERS))))

    async def reading(self, reader: int) -> None:
        """Checks that a read contains everything delivered before it began."""
        before = {*self.delivered}
        home = await self.store.read(reader)
        if home is not None:
            self.seen["read"] += 1
            missing = (before & {*self.world.model(reader)}) - {*self.read(reader, home)}
            if missing:
                self._faults.append(f"reader {reader}, meanwhile: missing {sorted(missing)}")

    def replay(self) -> None:
        author = self.random.choice(AUTHORS)
        for each in (author,) if self.random.random() < 0.5 else AUTHORS:
            self.world.reached[each] = 0
        self.seen["replayed"] += 1

    def delete(self) -> None:
        if self.world.live:
            del self.world.live[self.random.choice(list(self.world.live))]

    def follow(self) -> None:
        self.world.follows[self.random.choice(READERS)].setdefault(self.random.choice(AUTHORS), self.world.now_ms)

    def unfollow(self) -> None:
        self.world.follows[self.random.choice(READERS)].pop(self.random.choice(AUTHORS), None)

    def change_tier(self) -> None:
        author = self.random.choice(AUTHORS)
        if self.world.celebrity_since.pop(author, None) is None:
            self.world.normal_ms.pop(author, None)
            self.world.celebrity_since[author] = self.world.now_ms
        else:
            self.world.normal_ms[author] = self.world.now_ms
        self.world.version += 1

    def faults(self) -> list[str]:
        """Returns the differences from the model, found during the run and now that everything has settled."""
        found = [*self._faults]
        for reader in READERS:
            home = drain(self.store.read(reader))
            if home is not None:
                self.seen["warm"] += 1
                self.seen["with a floor"] += bool(home.floor)
                read, model = self.read(reader, home), self.world.model(reader)
                if read != model:
                    found.append(
                        f"reader {reader}: missing {sorted({*model} - {*read})}, extra {sorted({*read} - {*model})}"
                    )
        return found

    def read(self, reader: int, home: HomeList) -> list[int]:
        """Reads a home timeline as HomeReader does, filtered by the current follows and deletes."""
        relations = self.world.relations(reader)
        world: Any = self.world
        pulled = list(self.rules.pulled(reader, relations, world, home))
        present = {reader, *relations.followees}
        depth = self.random.randint(1, 5)

        async def walk() -> list[int]:
            ids: list[int] = []
            down = pull.DescendingMerge(world, home, pulled, present, 0, depth)
            async for batch in down:
                ids += batch.ids
            return ids

        live = self.world.live
        return [tweet_id for tweet_id in drain(walk()) if live.get(tweet_id) in present]
