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
from services.timeline.store.redis import pushes, trimming
from services.timeline.store.redis import store as redis_store
from services.timeline.store.redis.encoding import ListLimits, WarmMarker, decode_home, encode_ids, list_key, marker_key
from services.timeline.store.redis.store import BuildMarker, RedisHomeTimelines
from tests import redis_servers
from tests.home_interleavings import KEEP, READERS, TRIM_ABOVE, Schedule, Step

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SIZES = ListLimits(keep=KEEP, reserve=4, trim_above=TRIM_ABOVE, drop_above=40, soon=2)
SCHEDULES = 200
# Every fault is found within far fewer runs.
SCHEDULES_FOR_FAULTS = 250


class RawConnection:
    """One blocking connection: the schedule is the only thread."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._reader = hiredis.Reader(notEnoughData=self)

    def call(self, raw: bytes) -> Any:
        self._socket.sendall(raw)
        while (reply := self._reader.gets()) is self:
            self._reader.feed(self._socket.recv(65_536))
        return reply

    def close(self) -> None:
        self._socket.close()


class StepReplies:
    """Commands in flight: sending each is a step, and so is receiving each reply."""

    def __init__(self, connection: StepConnection, commands: Sequence[bytes]) -> None:
        self._pipe = connection
        self._commands = commands

    def __await__(self) -> Generator[None, None, list[Any]]:
        raw_connection = self._pipe.raw_connection or self._pipe.process.borrow()
        replies = []
        ended = False
        try:
            for raw in self._commands:
                yield
                self._pipe.check()
                replies.append(raw_connection.call(raw))
            yield
            self._pipe.check()
            ended = True
        finally:
            if self._pipe.raw_connection is None:
                self._pipe.process.return_connection(raw_connection, ended)
        return replies


class StepConnection:
    """A connection to the current server; it is lost after a restart or when its process dies."""

    def __init__(self, process: StepRedis, raw_connection: RawConnection | None) -> None:
        self.process = process
        # None: shared. What is sent over such a one stays together, so each row of commands gets one of its own here.
        self.raw_connection = raw_connection
        self.run_id = process.server.run_id
        self._life = process.life

    def execute(self, payload: bytes, replies: int) -> StepReplies:
        commands = _split(payload)
        assert len(commands) == replies
        return StepReplies(self, commands)

    def check(self) -> None:
        if self.run_id != self.process.server.run_id or self._life != self.process.life:
            raise unreachable()


class StepRedis:
    """The part of the Redis client that the store uses; one node for all keys."""

    clustered = False

    def __init__(self, server: RestartableServer) -> None:
        self.server = server
        self.life = 0
        self._free: list[RawConnection] = []

    def node(self, tag: str) -> StepRedis:
        return self

    async def reads(self) -> StepConnection:
        await Step()
        return StepConnection(self, None)

    writes = reads

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator[StepConnection]:
        await Step()
        raw_connection = self.borrow()
        whole = False
        try:
            yield StepConnection(self, raw_connection)
            whole = True
        finally:
            self.return_connection(raw_connection, whole)

    def refusal(self, reply: Exception) -> RoostError:
        return unreachable()

    def borrow(self) -> RawConnection:
        return self._free.pop() if self._free else RawConnection(self.server.path)

    def return_connection(self, raw_connection: RawConnection, whole: bool) -> None:
        """Returns a connection to the pool. One with replies outstanding is closed, as after a crash."""
        if whole:
            self._free.append(raw_connection)
        else:
            raw_connection.close()

    def crash(self) -> None:
        """Ends everything that the process was doing, without cleanup."""
        self.life += 1

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


class RestartableServer:
    """The server. A restart restores keys and TTLs from a snapshot, like an RDB file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.raw_connection = RawConnection(path)
        self.starts = 0
        self.run_id = "run0"
        self._snapshot: dict[bytes, tuple[bytes, int]] = {}

    def call(self, *parts: str | bytes | int) -> Any:
        return self.raw_connection.call(command(*parts))

    def snapshot(self) -> None:
        keys = self.call("KEYS", "*")
        self._snapshot = {key: (self.call("DUMP", key), self.call("PTTL", key)) for key in keys}

    def restart(self) -> None:
        self.starts += 1
        self.run_id = f"run{self.starts}"
        self.call("FLUSHALL")
        for key, (value, ttl) in self._snapshot.items():
            self.call("RESTORE", key, max(ttl, 0), value)


class RedisSchedule(Schedule):
    """A schedule on the stores of two processes, with a server that loses data."""

    length = 2_500

    def __init__(
        self, seed: int, server: RestartableServer, stores: Sequence[tuple[StepRedis, RedisHomeTimelines]]
    ) -> None:
        super().__init__(seed, stores[0][1], FanoutRules(HYBRID, 0))
        self._server = server
        self._stores = stores

    def commands(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            *super().commands(),
            # Deliveries and builds take several commands here and one in memory.
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
        """Later operations begin in the other process."""
        self.store = self.builds._store = self.random.choice(self._stores)[1]

    def flush(self) -> None:
        self._server.call("FLUSHALL")
        self.seen["flushed"] += 1

    def evict(self) -> None:
        of = self.random.choice((list_key, marker_key))
        self.seen["evicted"] += self._server.call("DEL", of(self.random.choice(READERS)))

    def snapshot(self) -> None:
        self._server.snapshot()

    def restart(self) -> None:
        self._server.restart()
        self.seen["restarted"] += 1

    def crash(self) -> None:
        self.random.choice(self._stores)[0].crash()


class LosesAppendsDuringBuild(RedisHomeTimelines):
    """Faulty: reads the list, writes it back and marks it warm."""

    async def open_build(self, user_id: int, opened_ms: int, mode: str) -> OpenBuild | None:
        connection = await self._node(user_id).reads()
        return BuildMarker(user_id, "any", connection.run_id, opened_ms, mode)

    async def close_build(self, build: OpenBuild, ids: Sequence[int], floor: int) -> HomeList | None:
        assert isinstance(build, BuildMarker)
        try:
            connection = await self._node(build.user_id).reads()
            rows = (redis_store.ZERO_ID, *encode_ids(sorted(ids)))
            writing = command("DEL", list_key(build.user_id)) + command("LPUSH", list_key(build.user_id), *rows)
            await self._execute(connection, writing, 2)
            warm = WarmMarker(connection.run_id, build.opened_ms, build.mode, floor)
            await self._execute(connection, command("SET", marker_key(build.user_id), warm.text()), 1)
        except RoostError:
            return None
        return None


class ClosesAnyBuild(RedisHomeTimelines):
    """Faulty: does not check whose build it closes."""

    async def _still_open(self, connection: RedisConnection, build: BuildMarker) -> bool:
        homes = list_key(build.user_id)
        _, last = await self._execute(connection, command("WATCH", homes) + command("LINDEX", homes, -1), 2)
        return bool(last == redis_store.ZERO_ID)


class IgnoresTrims(RedisHomeTimelines):
    """Faulty: does not check that nothing was trimmed."""

    async def _still_open(self, connection: RedisConnection, build: BuildMarker) -> bool:
        marker, homes = marker_key(build.user_id), list_key(build.user_id)
        _, held = await self._execute(connection, command("WATCH", marker, homes) + command("GET", marker), 2)
        return bool(held == build.text().encode())


class WatchesNothing(RedisHomeTimelines):
    """Faulty: checks that its build is current, then closes it without WATCH."""

    async def _still_open(self, connection: RedisConnection, build: BuildMarker) -> bool:
        found = await super()._still_open(connection, build)
        await self._execute(connection, command("UNWATCH"), 1)
        return found


class TrustsEveryServer(RedisHomeTimelines):
    """Faulty: accepts the data of a restarted server."""

    async def read(self, user_id: int) -> HomeList | None:
        try:
            connection = await self._node(user_id).reads()
            reading = command("GET", marker_key(user_id)) + command("LRANGE", list_key(user_id), 0, -1)
            # Sent together, as in a transaction.
            marker, stored = await self._execute_transaction(
                connection, command("MULTI") + reading + command("EXEC"), 4
            )
        except RoostError:
            return None
        warm = WarmMarker.parse(marker)
        return decode_home(warm, stored, self._limits) if warm is not None and stored else None


class ReadsEvictedListAsEmpty(RedisHomeTimelines):
    """Faulty: accepts the marker of an evicted list."""

    async def read(self, user_id: int) -> HomeList | None:
        try:
            connection = await self._node(user_id).reads()
            reading = command("GET", marker_key(user_id)) + command("LRANGE", list_key(user_id), 0, -1)
            marker, stored = await self._execute_transaction(
                connection, command("MULTI") + reading + command("EXEC"), 4
            )
        except RoostError:
            return None
        warm = WarmMarker.parse(marker)
        return (
            decode_home(warm, stored, self._limits) if warm is not None and warm.run_id == connection.run_id else None
        )


class ReadsInTwoSteps(RedisHomeTimelines):
    """Faulty: reads marker and list at two moments."""

    async def read(self, user_id: int) -> HomeList | None:
        try:
            connection = await self._node(user_id).reads()
            (marker,) = await self._execute(connection, command("GET", marker_key(user_id)), 1)
            (stored,) = await self._execute(connection, command("LRANGE", list_key(user_id), 0, -1), 1)
        except RoostError:
            return None
        warm = WarmMarker.parse(marker)
        return decode_home(warm, stored, self._limits) if warm and warm.run_id == connection.run_id and stored else None


class HasNoFloor(RedisHomeTimelines):
    """Faulty: treats a full list as the whole history."""

    async def read(self, user_id: int) -> HomeList | None:
        home = await super().read(user_id)
        return home and HomeList(home.ids, 0, home.opened_ms, home.mode)


class TrimsByArrival(RedisHomeTimelines):
    """Faulty: removes the first arrivals whatever their ids."""


def _trims_any_id(user_id: int, tail: Sequence[bytes], limits: ListLimits) -> bytes:
    return command("LTRIM", list_key(user_id), 0, limits.keep - 1) if len(tail) > limits.reserve else b""


class TrimsWithoutWatching(RedisHomeTimelines):
    """Faulty: trims a list that changed since it was examined."""


async def _trims_unwatched(of: Any, node: Any, user_ids: Sequence[int], limits: ListLimits) -> None:
    connection = await node.reads()
    for user_id in user_ids:
        start = limits.keep - limits.reserve
        try:
            (tail,) = await connection.execute(command("LRANGE", list_key(user_id), start, -1), 1)
            if step := trimming._trim_command(user_id, tail, limits):
                await connection.execute(step, 1)
        except RoostError:
            return


def run(seed: int, path: str, store: type[RedisHomeTimelines] = RedisHomeTimelines) -> tuple[list[str], Counter[str]]:
    server = RestartableServer(path)
    server.call("FLUSHALL")
    chance = random.Random(seed)
    # No time passes here: other processes' builds are either never or always left alone.
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
        server.raw_connection.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of a server used by this module only, because it is flushed."""
    # Socket paths have a maximum length.
    folder = Path(tmp_path_factory.mktemp("r"))
    where = folder / "s"
    with redis_servers.server(folder, "--unixsocket", str(where)):
        yield str(where)


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    # Few ids per author and round, so that builds take several rounds.
    monkeypatch.setattr(pull, "MIN_BUILD_DEPTH", 2)
    # Restored after runs that change it.
    monkeypatch.setattr(redis_store, "OTHERS_BUILD_MS", redis_store.OTHERS_BUILD_MS)


def test_redis_store_warm_homes_match_model(path: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        faults, happened = run(seed, path)
        assert not faults, f"seed {seed}: {faults}"
        seen += happened
    # The schedules reach the cases they exist for.
    assert seen["warm"] > SCHEDULES / 3, seen
    for what in ("installed", "overtaken", "failed", "replayed", "with a floor", "restarted", "evicted", "read"):
        assert seen[what] > SCHEDULES / 5, seen
    assert seen["refused"], seen


@pytest.mark.parametrize(
    "store",
    [
        LosesAppendsDuringBuild,
        ClosesAnyBuild,
        IgnoresTrims,
        WatchesNothing,
        TrustsEveryServer,
        ReadsEvictedListAsEmpty,
        ReadsInTwoSteps,
        HasNoFloor,
        TrimsByArrival,
        TrimsWithoutWatching,
    ],
    ids=lambda s: s.__name__,
)
def test_faulty_redis_store_is_detected(
    store: type[RedisHomeTimelines], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store is TrimsByArrival:
        monkeypatch.setattr(trimming, "_trim_command", _trims_any_id)
    if store is TrimsWithoutWatching:
        monkeypatch.setattr(pushes, "trim", _trims_unwatched)
    assert any(run(seed, path, store)[0] for seed in range(SCHEDULES_FOR_FAULTS))


def _split(payload: bytes) -> list[bytes]:
    """Splits a payload into its commands."""
    reader = hiredis.Reader()
    reader.feed(payload)
    commands = []
    while (parts := reader.gets()) is not False:
        commands.append(command(*parts))
    return commands
