"""The protocol of home timelines in Redis under random schedules, one Redis command at a time, on a real server.

Between any two commands, be they of one transaction, others come: appends, builders of two processes, failed builders, whole-log replays,
partitions that catch up unevenly, more appends during a build than a home holds; and the server loses what it likes: everything, one key,
or, at a restart from an older snapshot, whatever came since. Variants that break one rule each must be found out by the same schedules.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest

from services.platform.redis.connection import RedisConnection, command, unreachable
from services.platform.rpc.errors import RoostError
from services.timeline import pull
from services.timeline.fanout_rules import HYBRID, FanoutRules
from services.timeline.store import HomeList, OpenBuild
from services.timeline.store.redis import store as redis_store
from services.timeline.store.redis import trimming
from services.timeline.store.redis.encoding import Sizes, Warm, decode_home, list_key, marker_key, packed
from services.timeline.store.redis.store import BuildMarker, RedisHomeTimelines
from tests import redis_servers
from tests.home_interleavings import KEEP, READERS, TRIM_ABOVE, Schedule, Step

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SIZES = Sizes(keep=KEEP, reserve=4, trim_above=TRIM_ABOVE, drop_above=40, soon=2)
SCHEDULES = 200
# Every fault is found within far fewer.
SCHEDULES_FOR_FAULTS = 250


class Wire:
    """One connection that waits: the schedule is the only thread."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._reader = hiredis.Reader(notEnoughData=self)

    def say(self, raw: bytes) -> Any:
        self._socket.sendall(raw)
        while (reply := self._reader.gets()) is self:
            self._reader.feed(self._socket.recv(65_536))
        return reply

    def close(self) -> None:
        self._socket.close()


class Asked:
    """Commands on their way: each is a step, and so is each reply."""

    def __init__(self, pipe: StepPipe, commands: Sequence[bytes]) -> None:
        self._pipe = pipe
        self._commands = commands

    def __await__(self) -> Generator[None, None, list[Any]]:
        wire = self._pipe.wire or self._pipe.process.borrow()
        replies = []
        ended = False
        try:
            for raw in self._commands:
                yield
                self._pipe.check()
                replies.append(wire.say(raw))
            yield
            self._pipe.check()
            ended = True
        finally:
            if self._pipe.wire is None:
                self._pipe.process.give_back(wire, ended)
        return replies


class StepPipe:
    """A connection to the server as it is now: after a restart, or once its process died, it is lost."""

    def __init__(self, process: StepRedis, wire: Wire | None) -> None:
        self.process = process
        # None: shared. What is sent over such a one stays together, so each row of commands gets one of its own here.
        self.wire = wire
        self.run_id = process.server.run_id
        self._life = process.life

    def execute(self, payload: bytes, replies: int) -> Asked:
        commands = _split(payload)
        assert len(commands) == replies
        return Asked(self, commands)

    def check(self) -> None:
        if self.run_id != self.process.server.run_id or self._life != self.process.life:
            raise unreachable()


class StepRedis:
    """What a process has of Redis, as far as the store asks; one node for all keys."""

    clustered = False

    def __init__(self, server: Restarting) -> None:
        self.server = server
        self.life = 0
        self._free: list[Wire] = []

    def node(self, tag: str) -> StepRedis:
        return self

    async def reads(self) -> StepPipe:
        await Step()
        return StepPipe(self, None)

    writes = reads

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[StepPipe]:
        await Step()
        wire = self.borrow()
        whole = False
        try:
            yield StepPipe(self, wire)
            whole = True
        finally:
            self.give_back(wire, whole)

    def refusal(self, reply: Exception) -> RoostError:
        return unreachable()

    def borrow(self) -> Wire:
        return self._free.pop() if self._free else Wire(self.server.path)

    def give_back(self, wire: Wire, whole: bool) -> None:
        """One that was left in the middle of something is closed, as after a crash."""
        if whole:
            self._free.append(wire)
        else:
            wire.close()

    def crash(self) -> None:
        """All that the process was doing ends here, and nothing is tidied up."""
        self.life += 1

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


class Restarting:
    """The server. A restart puts back what a snapshot had, as a dump file does: the keys and how long they live."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.wire = Wire(path)
        self.starts = 0
        self.run_id = "run0"
        self._snapshot: dict[bytes, tuple[bytes, int]] = {}

    def say(self, *parts: str | bytes | int) -> Any:
        return self.wire.say(command(*parts))

    def snapshot(self) -> None:
        keys = self.say("KEYS", "*")
        self._snapshot = {key: (self.say("DUMP", key), self.say("PTTL", key)) for key in keys}

    def restart(self) -> None:
        self.starts += 1
        self.run_id = f"run{self.starts}"
        self.say("FLUSHALL")
        for key, (value, ttl) in self._snapshot.items():
            self.say("RESTORE", key, max(ttl, 0), value)


class RedisSchedule(Schedule):
    """A schedule over the stores of two processes, and a server that loses things."""

    length = 2_500

    def __init__(self, seed: int, server: Restarting, stores: Sequence[tuple[StepRedis, RedisHomeTimelines]]) -> None:
        super().__init__(seed, stores[0][1], FanoutRules(HYBRID, 0))
        self._server = server
        self._stores = stores

    def commands(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            *super().commands(),
            # Deliveries and builds take several commands here where they take one in memory.
            (1_000, lambda: self.advance(builds=True)),
            (3_000, lambda: self.advance(builds=False)),
            (25, self.build),
            (60, self.use),
            (1, self.flush),
            (4, self.evict),
            (4, self.snapshot),
            (2, self.restart),
            (2, self.crash),
            (60, self.change_process),
        ]

    def run(self) -> None:
        self.world.now_ms = 1_000_000
        super().run()

    def drop(self) -> None:
        self.running.append((None, self.store.drop(self.random.choice(READERS))))

    def change_process(self) -> None:
        """Whatever begins next begins in the other one."""
        self.store = self.builds._store = self.random.choice(self._stores)[1]

    def flush(self) -> None:
        self._server.say("FLUSHALL")
        self.seen["flushed"] += 1

    def evict(self) -> None:
        of = self.random.choice((list_key, marker_key))
        self.seen["evicted"] += self._server.say("DEL", of(self.random.choice(READERS)))

    def snapshot(self) -> None:
        self._server.snapshot()

    def restart(self) -> None:
        self._server.restart()
        self.seen["restarted"] += 1

    def crash(self) -> None:
        self.random.choice(self._stores)[0].crash()


class ReadThenWriteThenMark(RedisHomeTimelines):
    """Naive: reads what is there, writes it, says that it is warm."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        pipe = await self._node(user_id).reads()
        return BuildMarker(user_id, "any", pipe.run_id, opened_ms, mode)

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, BuildMarker)
        try:
            pipe = await self._node(build.user_id).reads()
            rows = (redis_store.ZERO_ID, *packed(sorted(ids)))
            writing = command("DEL", list_key(build.user_id)) + command("LPUSH", list_key(build.user_id), *rows)
            await self._answers(pipe, writing, 2)
            warm = Warm(pipe.run_id, build.opened_ms, build.mode, floor)
            await self._answers(pipe, command("SET", marker_key(build.user_id), warm.text()), 1)
        except RoostError:
            return None
        return None


class ClosesAnyBuild(RedisHomeTimelines):
    """Does not look whose build it closes."""

    async def _still_open(self, pipe: RedisConnection, build: BuildMarker) -> bool:
        homes = list_key(build.user_id)
        _, last = await self._answers(pipe, command("WATCH", homes) + command("LINDEX", homes, -1), 2)
        return bool(last == redis_store.ZERO_ID)


class OverlooksWhatWasTrimmed(RedisHomeTimelines):
    """Does not look whether the list is whole."""

    async def _still_open(self, pipe: RedisConnection, build: BuildMarker) -> bool:
        marker, homes = marker_key(build.user_id), list_key(build.user_id)
        _, held = await self._answers(pipe, command("WATCH", marker, homes) + command("GET", marker), 2)
        return bool(held == build.text().encode())


class WatchesNothing(RedisHomeTimelines):
    """Looks whether its build still stands, and then closes it, whatever came between."""

    async def _still_open(self, pipe: RedisConnection, build: BuildMarker) -> bool:
        found = await super()._still_open(pipe, build)
        await self._answers(pipe, command("UNWATCH"), 1)
        return found


class TrustsEveryServer(RedisHomeTimelines):
    """Takes what a restarted server has for what the one before had."""

    async def read(self, user_id: int) -> HomeList | None:
        try:
            pipe = await self._node(user_id).reads()
            reading = command("GET", marker_key(user_id)) + command("LRANGE", list_key(user_id), 0, -1)
            # Together, as in a transaction.
            marker, stored = await self._done(pipe, command("MULTI") + reading + command("EXEC"), 4)
        except RoostError:
            return None
        warm = Warm.parse(marker)
        return decode_home(warm, stored, self._sizes) if warm is not None and stored else None


class TakesNoListForAnEmptyOne(RedisHomeTimelines):
    """Believes the marker of a list that was evicted."""

    async def read(self, user_id: int) -> HomeList | None:
        try:
            pipe = await self._node(user_id).reads()
            reading = command("GET", marker_key(user_id)) + command("LRANGE", list_key(user_id), 0, -1)
            marker, stored = await self._done(pipe, command("MULTI") + reading + command("EXEC"), 4)
        except RoostError:
            return None
        warm = Warm.parse(marker)
        return decode_home(warm, stored, self._sizes) if warm is not None and warm.run_id == pipe.run_id else None


class ReadsInTwoSteps(RedisHomeTimelines):
    """Marker and list are of two moments."""

    async def read(self, user_id: int) -> HomeList | None:
        try:
            pipe = await self._node(user_id).reads()
            (marker,) = await self._answers(pipe, command("GET", marker_key(user_id)), 1)
            (stored,) = await self._answers(pipe, command("LRANGE", list_key(user_id), 0, -1), 1)
        except RoostError:
            return None
        warm = Warm.parse(marker)
        return decode_home(warm, stored, self._sizes) if warm and warm.run_id == pipe.run_id and stored else None


class HasNoFloor(RedisHomeTimelines):
    """Takes a full list for the whole history."""

    async def read(self, user_id: int) -> HomeList | None:
        home = await super().read(user_id)
        return home and HomeList(home.ids, 0, home.opened_ms, home.mode)


class TrimsByArrival(RedisHomeTimelines):
    """Cuts off what came first, whatever its id."""


def _cuts_anything(user_id: int, tail: Sequence[bytes], sizes: Sizes) -> bytes:
    return command("LTRIM", list_key(user_id), 0, sizes.keep - 1) if len(tail) > sizes.reserve else b""


class TrimsWithoutWatching(RedisHomeTimelines):
    """Looks at a list, and cuts another."""


async def _trims_unwatched(of: Any, node: Any, user_ids: Sequence[int], sizes: Sizes) -> None:
    pipe = await node.reads()
    for user_id in user_ids:
        start = sizes.keep - sizes.reserve
        try:
            (tail,) = await pipe.execute(command("LRANGE", list_key(user_id), start, -1), 1)
            if step := trimming._step(user_id, tail, sizes):
                await pipe.execute(step, 1)
        except RoostError:
            return


def run(seed: int, path: str, store: type[RedisHomeTimelines] = RedisHomeTimelines) -> tuple[list[str], Counter[str]]:
    server = Restarting(path)
    server.say("FLUSHALL")
    chance = random.Random(seed)
    # No time passes here: either nobody is ever left alone with a build, or nobody waits for another's.
    redis_store.OTHERS_BUILD_MS = chance.choice((0, 5_000))
    processes = [StepRedis(server), StepRedis(server)]
    stores: Any = [(process, store(process, SIZES)) for process in processes]  # type: ignore[arg-type]
    schedule = RedisSchedule(seed, server, stores)
    try:
        schedule.run()
        return schedule.faults(), schedule.seen
    finally:
        for process in processes:
            process.close()
        server.wire.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the module's own: it is flushed as a whole."""
    # The path of a socket may not be long.
    folder = Path(tmp_path_factory.mktemp("r"))
    where = folder / "s"
    with redis_servers.server(folder, "--unixsocket", str(where)):
        yield str(where)


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    # Builds of a few ids an author, so that they go round after round.
    monkeypatch.setattr(pull, "MIN_BUILD_DEPTH", 2)
    # Put back after runs that change it.
    monkeypatch.setattr(redis_store, "OTHERS_BUILD_MS", redis_store.OTHERS_BUILD_MS)


def test_every_warm_home_reads_as_the_model_says(path: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        faults, happened = run(seed, path)
        assert not faults, f"seed {seed}: {faults}"
        seen += happened
    # The schedules reach what they are for.
    assert seen["warm"] > SCHEDULES / 3, seen
    for what in ("installed", "overtaken", "failed", "replayed", "with a floor", "restarted", "evicted", "read"):
        assert seen[what] > SCHEDULES / 5, seen
    assert seen["refused"], seen


@pytest.mark.parametrize(
    "store",
    [
        ReadThenWriteThenMark,
        ClosesAnyBuild,
        OverlooksWhatWasTrimmed,
        WatchesNothing,
        TrustsEveryServer,
        TakesNoListForAnEmptyOne,
        ReadsInTwoSteps,
        HasNoFloor,
        TrimsByArrival,
        TrimsWithoutWatching,
    ],
    ids=lambda s: s.__name__,
)
def test_a_store_that_breaks_a_rule_is_found_out(
    store: type[RedisHomeTimelines], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store is TrimsByArrival:
        monkeypatch.setattr(trimming, "_step", _cuts_anything)
    if store is TrimsWithoutWatching:
        monkeypatch.setattr(redis_store, "trim", _trims_unwatched)
    assert any(run(seed, path, store)[0] for seed in range(SCHEDULES_FOR_FAULTS))


def _split(payload: bytes) -> list[bytes]:
    """The commands of a row of them."""
    reader = hiredis.Reader()
    reader.feed(payload)
    commands = []
    while (parts := reader.gets()) is not False:
        commands.append(command(*parts))
    return commands
