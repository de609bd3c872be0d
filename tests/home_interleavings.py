"""Random schedules of what happens to home timelines, one command at a time, with a model to compare every home with.

Posts, deliveries, builds, reads, drops, replays, deletes, follows and tier changes take turns at every point where the real ones
could: a delivery stands between reading followers and appending, a build between any two answers of its pull, and, where the store
waits, between any two of its commands. No event loop runs: the schedule itself takes one step of one of them at a time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from typing import Any

from services.platform.rpc.errors import RoostError
from services.timeline import pull
from services.timeline.fanout_rules import FanoutRules
from services.timeline.followees import Relations
from services.timeline.home_builder import HomeBuild, HomeBuilder
from services.timeline.store import HomeList, HomeTimelineStore

# Short lists, so that trimming, abandoning and reading below the floor happen all the time.
KEEP, TRIM_ABOVE = 12, 16
READERS, AUTHORS = (101, 102, 103), (1, 2, 3, 4, 5)
COMMANDS = 250
# Things that go on at the same time: with more, none would come to its end.
UNDER_WAY = 12


class Step:
    """Where something else may happen."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def drain(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs to the end with nothing between."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            return end.value


class World:
    """The truth: tweets, follows and tiers, and the log by partitions."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.standing: dict[int, int] = {}
        self.log: dict[int, list[int]] = {author: [] for author in AUTHORS}
        self.reached = dict.fromkeys(AUTHORS, 0)
        self.follows: dict[int, dict[int, int]] = {reader: {} for reader in READERS}
        self.celebrity_since: dict[int, int] = {}
        self.normal_ms: dict[int, int] = {}
        self.version = 0

    # What Builds and Rules ask of tiers, relations and the tweet service.
    @property
    def celebrities(self) -> Iterable[int]:
        return self.celebrity_since.keys()

    def is_celebrity(self, author: int) -> bool:
        return author in self.celebrity_since

    def demoted_since(self, ms: int) -> Sequence[int]:
        return [author for author, changed in self.normal_ms.items() if changed > ms]

    async def fetch(self, reader: int) -> Relations:
        # The followees come in pages: the graph may change between them.
        found = []
        for author in AUTHORS:
            if author in self.follows[reader]:
                found.append((self.follows[reader][author], author))
            await Step()
        return Relations(0, found)

    def relations(self, reader: int) -> Relations:
        return Relations(0, [(since, author) for author, since in self.follows[reader].items()])

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        for author in authors:
            await Step()
            ids = [i for i, by in self.standing.items() if by == author and (not before_id or i < before_id)]
            if ids:
                found[author] = sorted(ids, reverse=True)[:depth]

    def model(self, reader: int) -> list[int]:
        followees = {reader, *self.follows[reader]}
        return sorted((i for i, by in self.standing.items() if by in followees), reverse=True)


class Schedule:
    """One random run of so many commands."""

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
        # Whose deliveries have come to an end once: these a warm home may not lack.
        self.delivered: set[int] = set()
        self._faults: list[str] = []

    def commands(self) -> list[tuple[int, Callable[[], None]]]:
        """What may happen, and how often."""
        return [
            (150, self.mint),
            (150, self.commit),
            (40, self.burst),
            # Deliveries go on faster than builds: that is when things happen during a build.
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
        """One run, until all is quiet."""
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
        """Everything under way ends, every partition is delivered; no new build begins."""
        while self.uncommitted:
            self.commit()
        behind = AUTHORS
        while self.running or behind:
            self.advance(builds=self.random.random() < 0.2)
            behind = tuple(a for a in AUTHORS if self.world.reached[a] < len(self.world.log[a]))
            if behind and len(self.running) < UNDER_WAY and self.random.random() < 0.2:
                self.running.append((None, self.delivery(self.random.choice(behind))))

    def mint(self) -> None:
        self.last_id += self.random.randint(1, 3)
        self.uncommitted.append((self.last_id, self.random.choice((*AUTHORS, *READERS))))

    def commit(self) -> None:
        """Ids are stamped before they commit: they become readable in another order."""
        if self.uncommitted:
            tweet_id, author = self.uncommitted.pop(self.random.randrange(len(self.uncommitted)))
            self.world.standing[tweet_id] = author
            if author in self.world.log:
                self.world.log[author].append(tweet_id)

    def burst(self) -> None:
        author = self.random.choice(AUTHORS)
        for _ in range(self.random.choice((3, TRIM_ABOVE + 4))):
            self.last_id += 1
            self.world.standing[self.last_id] = author
            self.world.log[author].append(self.last_id)

    def advance(self, builds: bool) -> None:
        """One command of a build, or of a delivery, that is under way."""
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
        """One batch of a partition: tier, then followers, then the append; the offset after the effect."""
        first = self.world.reached[author]
        batch = self.world.log[author][first : first + self.random.randint(1, 8)]
        if not self.world.is_celebrity(author):
            await Step()
            followers = [reader for reader in READERS if author in self.world.follows[reader]]
            await Step()
            try:
                await self.store.append([(tweet_id, followers) for tweet_id in batch])
            except RoostError:
                # The consumer tries again.
                self.seen["refused"] += 1
                return
        self.delivered.update(batch)
        # Not past a replay that came meanwhile.
        if self.world.reached[author] == first:
            self.world.reached[author] = first + len(batch)

    def deliver(self) -> None:
        author = self.random.choice(AUTHORS)
        if self.world.reached[author] < len(self.world.log[author]) and len(self.running) < UNDER_WAY:
            self.running.append((None, self.delivery(author)))

    def build(self) -> None:
        """Also where one is under way: a second builder."""
        build = HomeBuild(self.random.choice(READERS))
        self.running.append((build, self.builds.pull(build)))

    def fail(self) -> None:
        builds = [entry for entry in self.running if entry[0] is not None]
        if builds:
            entry = self.random.choice(builds)
            try:
                # Where giving up takes commands it goes on.
                entry[1].throw(ConnectionError())
            except (ConnectionError, StopIteration):
                self.running.remove(entry)
            self.seen["failed"] += 1

    def drop(self) -> None:
        drain(self.store.drop(self.random.choice(READERS)))

    def use(self) -> None:
        """A read while all else goes on; in memory it also makes others the least recently read, and the store keeps two of the three."""
        self.running.append((None, self.reading(self.random.choice(READERS))))

    async def reading(self, reader: int) -> None:
        """Whatever was delivered before it began is in it, at any moment."""
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
        if self.world.standing:
            del self.world.standing[self.random.choice(list(self.world.standing))]

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
        """Where a home did not read as the model says: while things happened, and now that all is quiet."""
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
        """The home as HomeReader reads it, with the filter of the present graph and of deletes."""
        relations = self.world.relations(reader)
        world: Any = self.world
        pulled = list(self.rules.pulled(reader, relations, world, home))
        present = {reader, *relations.followees}
        depth = self.random.randint(1, 5)

        async def walk() -> list[int]:
            ids: list[int] = []
            down = pull.DescendingMerge(world, home, pulled, lambda: [*present], 0, depth)
            while (round_ := await down.next()) is not None:
                ids += round_.ids
            return ids

        standing = self.world.standing
        return [tweet_id for tweet_id in drain(walk()) if standing.get(tweet_id) in present]
