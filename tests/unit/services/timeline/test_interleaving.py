"""The protocol of home timelines under random interleavings, one command at a time.

Posts, deliveries, builds, drops, evictions, replays, deletes, follows and tier changes take turns at every point where the real ones
could: a delivery stands between reading followers and appending, a build between any two answers of its pull. Once all is quiet,
every home that is warm must read exactly as the model says. Stores that break one rule each must be found out by the same schedules.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any

import pytest
from roost.timeline.v1 import timeline_service_pb2 as pb

from services.timeline import pull
from services.timeline.builds import Build, Builds
from services.timeline.plan import HYBRID, Rules, Source
from services.timeline.relations import Relations
from services.timeline.store import HomeList, OpenBuild
from services.timeline.store.embedded import Building, EmbeddedHomeTimelines, Warm

# Short lists, so that trimming, abandoning and reading below the floor happen all the time.
KEEP, TRIM_ABOVE = 12, 16
READERS, AUTHORS = (101, 102, 103), (1, 2, 3, 4, 5)
COMMANDS = 250
SCHEDULES = 3_000
# Every fault is found within far fewer.
SCHEDULES_FOR_FAULTS = 1_500


class _Step:
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

    def normal_since(self, ms: int) -> Sequence[int]:
        return [author for author, changed in self.normal_ms.items() if changed > ms]

    async def fetch(self, reader: int) -> Relations:
        # The followees come in pages: the graph may change between them.
        found = []
        for author in AUTHORS:
            if author in self.follows[reader]:
                found.append((self.follows[reader][author], author))
            await _Step()
        return Relations(0, found)

    def relations(self, reader: int) -> Relations:
        return Relations(0, [(since, author) for author, since in self.follows[reader].items()])

    async def newest(self, authors: Sequence[int], before_id: int, depth: int, found: dict[int, Sequence[int]]) -> None:
        for author in authors:
            await _Step()
            ids = [i for i, by in self.standing.items() if by == author and (not before_id or i < before_id)]
            if ids:
                found[author] = sorted(ids, reverse=True)[:depth]

    def model(self, reader: int) -> list[int]:
        followees = {reader, *self.follows[reader]}
        return sorted((i for i, by in self.standing.items() if by in followees), reverse=True)


class Schedule:
    """One random run."""

    def __init__(self, seed: int, store: EmbeddedHomeTimelines, rules: Rules) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.store = store
        self.rules = rules
        world: Any = self.world
        self.builds = Builds(store, world, world, world, self.rules, lambda: self.world.now_ms / 1000, KEEP)
        self.uncommitted: list[tuple[int, int]] = []
        self.running: list[tuple[Build | None, Coroutine[Any, Any, None]]] = []
        self.seen: Counter[str] = Counter()
        self.last_id = 0

    def run(self) -> None:
        commands: list[tuple[int, Callable[[], None]]] = [
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
        for reader in READERS:
            for author in self.random.sample(AUTHORS, 3):
                self.world.follows[reader][author] = self.world.now_ms
        chosen = self.random.choices([c for _, c in commands], [w for w, _ in commands], k=COMMANDS)
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
            if behind and self.random.random() < 0.2:
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

    async def delivery(self, author: int) -> None:
        """One batch of a partition: tier, then followers, then the append; the offset after the effect."""
        first = self.world.reached[author]
        batch = self.world.log[author][first : first + self.random.randint(1, 8)]
        if not self.world.is_celebrity(author):
            await _Step()
            followers = [reader for reader in READERS if author in self.world.follows[reader]]
            await _Step()
            await self.store.append([(tweet_id, followers) for tweet_id in batch])
        # Not past a replay that came meanwhile.
        if self.world.reached[author] == first:
            self.world.reached[author] = first + len(batch)

    def deliver(self) -> None:
        author = self.random.choice(AUTHORS)
        if self.world.reached[author] < len(self.world.log[author]):
            self.running.append((None, self.delivery(author)))

    def build(self) -> None:
        """Also where one is under way: a second builder."""
        build = Build(self.random.choice(READERS))
        self.running.append((build, self.builds.pull(build)))

    def fail(self) -> None:
        builds = [entry for entry in self.running if entry[0] is not None]
        if builds:
            entry = self.random.choice(builds)
            self.running.remove(entry)
            try:
                entry[1].throw(ConnectionError())
            except ConnectionError:
                self.seen["failed"] += 1

    def drop(self) -> None:
        drain(self.store.drop(self.random.choice(READERS)))

    def use(self) -> None:
        """A read that makes others the least recently read; the store keeps two of the three."""
        drain(self.store.read(self.random.choice(READERS)))

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
        """Where a warm home does not read as the model says."""
        found = []
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
            down = pull.Walk(world, home, pulled, lambda: [*present], 0, depth)
            while (round_ := await down.next()) is not None:
                ids += round_.ids
            return ids

        standing = self.world.standing
        return [tweet_id for tweet_id in drain(walk()) if standing.get(tweet_id) in present]


class ReadThenWriteThenMark(EmbeddedHomeTimelines):
    """Naive: nothing is kept of what is appended while the pull is under way."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        return Building(user_id, opened_ms, mode, KEEP)

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, Building)
        self._homes[build.user_id] = Warm(ids, floor, build, TRIM_ABOVE)
        return await self.read(build.user_id)


class ClosesAnyBuild(EmbeddedHomeTimelines):
    """Does not look whether the build under way is the one that it closes."""

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, Building)
        self._homes[build.user_id] = build
        return await super().close_build(build, ids, floor)


class _Forgetful(Building):
    __slots__ = ()

    def insert(self, tweet_id: int) -> bool:
        self.pending.append(tweet_id)
        del self.pending[:-KEEP]
        return True


class NeverAbandons(EmbeddedHomeTimelines):
    """Keeps only the newest of what was appended during a build, and goes on."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        build = self._homes[user_id] = _Forgetful(user_id, opened_ms, mode, KEEP)
        return build


class _TrimsByArrival(Warm):
    __slots__ = ("arrived",)

    def insert(self, tweet_id: int) -> bool:
        if tweet_id > self.floor and tweet_id not in self.ids:
            self.ids.append(tweet_id)
            if len(self.ids) > self.trim_above:
                kept = self.ids[-self.keep :]
                self.floor = max(self.floor, min(kept) - 1)
                self.ids = kept
        return True


class TrimsByArrival(EmbeddedHomeTimelines):
    """Cuts off what came first, whatever its id, as a plain list in Redis would."""

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        home = await super().close_build(build, ids, floor)
        warm = self._homes.get(build.user_id)
        if home is not None and isinstance(warm, Warm) and isinstance(build, Building):
            self._homes[build.user_id] = _TrimsByArrival(warm.ids, warm.floor, build, TRIM_ABOVE)
        return home

    async def read(self, user_id: int) -> HomeList | None:
        home = await super().read(user_id)
        return home and HomeList(array("q", sorted(home.ids)), home.floor, home.opened_ms, home.mode)


class HasNoFloor(EmbeddedHomeTimelines):
    """Takes a full list for the whole history."""

    async def read(self, user_id: int) -> HomeList | None:
        home = await super().read(user_id)
        return home and HomeList(home.ids, 0, home.opened_ms, home.mode)


class ForgetsLateFollowees(Rules):
    """Trusts push for whoever is followed now."""

    def late(self, home: HomeList, relations: Relations) -> list[int]:
        return []


class ForgetsTierChanges(Rules):
    """Pulls who is a celebrity now, and nobody who was one when the home was built."""

    def pulled(self, reader: int, relations: Relations, tiers: Any, home: HomeList) -> Mapping[int, Source]:
        found = super().pulled(reader, relations, tiers, home)
        return {author: why for author, why in found.items() if why != pb.ENTRY_SOURCE_PULLED_TIER_CHANGE}


def run(
    seed: int, store: type[EmbeddedHomeTimelines] = EmbeddedHomeTimelines, rules: type[Rules] = Rules
) -> tuple[list[str], Counter[str]]:
    schedule = Schedule(seed, store(2, KEEP, TRIM_ABOVE), rules(HYBRID, 0))
    schedule.run()
    return schedule.faults(), schedule.seen


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    # Builds of a few ids an author, so that they go round after round.
    monkeypatch.setattr(pull, "MIN_BUILD_DEPTH", 2)


@pytest.mark.slow
def test_every_warm_home_reads_as_the_model_says() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        faults, happened = run(seed)
        assert not faults, f"seed {seed}: {faults}"
        seen += happened
    # The schedules reach what they are for.
    assert seen["warm"] > SCHEDULES / 3
    for what in ("installed", "overtaken", "failed", "replayed", "with a floor"):
        assert seen[what] > SCHEDULES / 5, seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "store",
    [ReadThenWriteThenMark, ClosesAnyBuild, NeverAbandons, TrimsByArrival, HasNoFloor],
    ids=lambda s: s.__name__,
)
def test_a_store_that_breaks_a_rule_is_found_out(store: type[EmbeddedHomeTimelines]) -> None:
    assert sum(bool(run(seed, store)[0]) for seed in range(SCHEDULES_FOR_FAULTS)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("rules", [ForgetsLateFollowees, ForgetsTierChanges], ids=lambda r: r.__name__)
def test_a_read_that_breaks_a_rule_is_found_out(rules: type[Rules]) -> None:
    assert sum(bool(run(seed, rules=rules)[0]) for seed in range(SCHEDULES_FOR_FAULTS)) >= 3
