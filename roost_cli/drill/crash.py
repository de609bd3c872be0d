"""The crash drill: repeatedly kills a mesh under load with SIGKILL, and starts it again.

After each start it checks that every acknowledged write had its effect exactly once, and that the home timelines of
some users are exact, that is, equal to those that `roost verify` computes from the data of the other services. It
reports each violation. A register is a boolean fact that writes set, such as "user A follows user B" (see `history`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from roost_cli import connection
from roost_cli.drill.history import History, Kind, Outcome, Register, Violations
from roost_cli.drill.observe import observe, without_receipt
from roost_cli.drill.single_process_mesh import ChildMesh, MeshLauncher
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.load.loader import Loader, NewUser, Operator
from roost_cli.progress import Progress, Silent
from roost_cli.rate_control import with_retries
from roost_cli.tokens import TokenCache
from roost_cli.verify import command
from services.platform.rpc import contract, errors

# Number of concurrent clients, each with a user of its own. With this number, SQLite commits several writes together,
# and writes are in progress at every kill.
CLIENTS = 24
CHANNELS = 4
# Minimum and maximum length in seconds of the load before a kill. The length is chosen at random.
SHORTEST_LOAD_S, LONGEST_LOAD_S = 0.3, 1.5
# The load continues until this many writes of the round are acknowledged, because on a busy machine there may be few
# after that time; but for at most LOAD_WITHIN_S seconds more. LOOK_EVERY_S is the time in seconds between two counts.
LEAST_ACKNOWLEDGED = 120
LOAD_WITHIN_S = 30.0
LOOK_EVERY_S = 0.05
# Probability that a restart after a kill is killed too, because a crash during recovery must also lose no acknowledged
# write; and the minimum and maximum number of seconds from the start to this second kill.
KILLED_RESTARTS = 0.25
SHORTEST_RESTART_S, LONGEST_RESTART_S = 0.2, 2.0
# Number of users whose home timelines are checked after each restart. At the end of the drill, all home timelines are
# checked.
SAMPLED_HOMES = 3
# Relative frequency of each kind of write, in percent.
SHARES = {Kind.POST: 50, Kind.FOLLOW: 15, Kind.LIKE: 15, Kind.RETWEET: 10, Kind.DELETE: 10}

_TWEETS = "/roost.tweet.v1.TweetService/"
_GRAPH = "/roost.graph.v1.GraphService/"
_ENGAGEMENT = "/roost.engagement.v1.EngagementService/"
# For each kind of register: the RPC that sets the register to true, the RPC that sets it to false ("" if there is
# none), and the request field with the register's subject (a tweet id, user id or idempotency key).
WRITES: dict[Kind, tuple[str, str, str]] = {
    Kind.POST: (_TWEETS + "CreateTweet", "", "idempotency_key"),
    Kind.DELETE: (_TWEETS + "DeleteTweet", "", "tweet_id"),
    Kind.RETWEET: (_TWEETS + "Retweet", _TWEETS + "Unretweet", "tweet_id"),
    Kind.LIKE: (_ENGAGEMENT + "LikeTweet", _ENGAGEMENT + "UnlikeTweet", "tweet_id"),
    Kind.FOLLOW: (_GRAPH + "Follow", _GRAPH + "Unfollow", "user_id"),
}
# Status codes of calls during which the server was killed. The outcome of such a write is unknown.
_NO_ANSWER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
    }
)
_REFUSALS = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED})


@dataclass(slots=True)
class Result:
    """The result of a crash drill.

    `acknowledged` and `unknown` count writes by outcome. `killed_restarts` counts the restarts that were killed;
    `startups_s` has one duration in seconds for each of the other starts. `lost`, `duplicated` and `strange` describe
    violations, one text each (see `history.Violations`). `homes_exact` is true if at the end every home timeline was
    exact, that is, equal to the one that `roost verify` computes from the data of the other services.
    """

    rounds: int = 0
    acknowledged: int = 0
    unknown: int = 0
    killed_restarts: int = 0
    startups_s: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    homes_exact: bool = False

    @property
    def clean(self) -> bool:
        """Returns whether there are no violations and every home timeline is exact."""
        return self.homes_exact and not (self.lost or self.duplicated or self.strange)

    def add(self, violations: Violations) -> None:
        """Adds the violations that one check of the history found."""
        self.lost.extend(violations.lost)
        self.duplicated.extend(violations.duplicated)
        self.strange.extend(violations.strange)


class CrashDrill:
    """Runs rounds of load on a mesh. SIGKILL ends each round; the next round starts the mesh again on the same data
    directory.

    `launcher` starts the mesh. `seed` determines the writes and the lengths of the rounds.
    """

    def __init__(self, launcher: MeshLauncher, seed: int, shown: Progress) -> None:
        self.history = History()
        self.result = Result()
        self._nursery = launcher
        self._chance = random.Random(seed)  # noqa: S311 (chooses moments and writes; not used for security)
        self._seed = seed
        self._shown = shown
        self._posts = 0

    async def run(self, rounds: int) -> Result:
        """Runs `rounds` rounds, checks all data and all home timelines, stops the mesh cleanly, and returns the result.

        Raises CommandError if the mesh does not start or stop, or if a write fails with a status code that a kill does
        not cause.
        """
        child = await self._start()
        try:
            with self._shown.phase("rounds", rounds) as phase:
                for _ in range(rounds):
                    await self._round(child)
                    await self._maybe_kill_a_restart()
                    child = await self._start()
                    await self._settle(child, every_home=False)
                    self.result.rounds += 1
                    phase.advance()
            await self._settle(child, every_home=True)
            await child.stop()
        finally:
            await child.kill()
        counts = self.history.counts()
        self.result.acknowledged, self.result.unknown = counts[Outcome.OK], counts[Outcome.UNKNOWN]
        return self.result

    async def _start(self) -> ChildMesh:
        child = await self._nursery.start()
        self.result.startups_s.append(child.started_s)
        return child

    async def _maybe_kill_a_restart(self) -> None:
        if self._chance.random() < KILLED_RESTARTS:
            self.result.killed_restarts += 1
            await self._nursery.start_and_kill(self._chance.uniform(SHORTEST_RESTART_S, LONGEST_RESTART_S))

    async def _round(self, child: ChildMesh) -> None:
        """Runs the load of all clients for a random time, then kills the mesh while writes are in progress."""
        async with connection.connect(child.target, CHANNELS) as channels:
            clients = await self._clients(child, channels)
            loads = [asyncio.create_task(client.load()) for client in clients]
            before = self.history.counts()[Outcome.OK]
            try:
                await asyncio.sleep(self._chance.uniform(SHORTEST_LOAD_S, LONGEST_LOAD_S))
                await self._acknowledged(before + LEAST_ACKNOWLEDGED, loads)
            finally:
                for client in clients:
                    client.stop()
                await child.kill()
                # Each client stops after its call in progress, which fails as soon as the server is killed.
                ended = await asyncio.gather(*loads, return_exceptions=True)
        if found := [error for error in ended if error is not None]:
            raise found[0]

    async def _settle(self, child: ChildMesh, *, every_home: bool) -> None:
        """Compares the data of the mesh with the history, repeats each write whose outcome is unknown, and compares
        again. Adds all violations to the result.

        Then checks all home timelines, and that the event of each tweet is in the event log, if `every_home` is true.
        Otherwise checks the home timelines of SAMPLED_HOMES users.
        """
        async with connection.connect(child.target, CHANNELS) as channels:
            clients = await self._clients(child, channels)
            operator = Operator(channels[0], child.target.operator())
            users = [client.user_id for client in clients]
            before = await observe(channels[0], operator, clients[0].actors, users, self.history)
            self.result.add(self.history.check(before))
            by_user = {client.user_id: client for client in clients}
            for register, value in self.history.open():
                await by_user[register.user_id].repeat(register, value)
            after = await observe(channels[0], operator, clients[0].actors, users, self.history)
            self.result.add(self.history.check(after))
            if every_home:
                self.result.homes_exact = await command.audit(child.target, Silent(), replay=True)
                for tweet_id in await without_receipt(channels[0], operator, after.tweets):
                    self.result.lost.append(f"the event of tweet {tweet_id}")
            else:
                sample = self._chance.sample(users, SAMPLED_HOMES)
                self.result.strange.extend(await command.faults_of(channels, operator.metadata, sample))

    async def _acknowledged(self, writes: int, loads: list[asyncio.Task[None]]) -> None:
        """Waits until the history has this many acknowledged writes, until a load ends, or for LOAD_WITHIN_S
        seconds."""
        for _ in range(int(LOAD_WITHIN_S / LOOK_EVERY_S)):
            if self.history.counts()[Outcome.OK] >= writes or any(load.done() for load in loads):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _clients(self, child: ChildMesh, channels: Sequence[grpc.aio.Channel]) -> list[Client]:
        operator = Operator(channels[0], child.target.operator())
        actors = TokenCache(channels[0], operator.metadata)
        loader = Loader(channels, operator, actors, Silent())
        ids = await loader.import_users([NewUser(f"client_{number:02d}", "") for number in range(CLIENTS)])
        users = sorted(ids.values())
        return [Client(self, channels[user % len(channels)], actors, user, users) for user in users]

    def next_key(self) -> str:
        """Returns an idempotency key for a new tweet."""
        self._posts += 1
        return f"crash:{self._seed}:{self._posts}"

    def draw(self) -> random.Random:
        """Returns the random generator of the drill."""
        return self._chance


class Client:
    """Sends the writes of one user, one at a time. Only this client writes to the registers of the user, so the writes
    to a register are sequential."""

    def __init__(
        self, drill: CrashDrill, channel: grpc.aio.Channel, actors: TokenCache, user_id: int, users: Sequence[int]
    ) -> None:
        self.user_id = user_id
        self.actors = actors
        self._drill = drill
        self._history = drill.history
        self._channel = channel
        self._others = [user for user in users if user != user_id]
        self._running = True

    def stop(self) -> None:
        """Makes `load` return after the write that is in progress."""
        self._running = False

    async def load(self) -> None:
        """Sends random writes until `stop` is called or the outcome of a write is unknown."""
        while self._running:
            register, value = self._deed()
            if not await self._write(register, value, self._once):
                return

    async def repeat(self, register: Register, value: bool) -> None:
        """Sends the write that sets `register` to `value` again, because its outcome is unknown, and records the
        outcome.

        The server may acknowledge the write, or refuse it with NOT_FOUND or PERMISSION_DENIED. Raises CommandError,
        which ends the drill, if the server refuses the write with another status code, or does not respond to any
        retry.
        """
        if not await self._write(register, value, with_retries):
            raise CommandError(f"the server did not answer the repeated write to {register}", FAULTS)

    def _deed(self) -> tuple[Register, bool]:
        chance = self._drill.draw()
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        tweets, own = self._history.tweets, self._history.own[self.user_id]
        if kind is Kind.DELETE and own:
            # The chosen tweet may be deleted already. DeleteTweet then returns OK too.
            return Register(kind, self.user_id, chance.choice(own)), True
        if kind is Kind.FOLLOW:
            return Register(kind, self.user_id, chance.choice(self._others)), chance.random() < 0.7
        if kind in (Kind.LIKE, Kind.RETWEET) and tweets:
            return Register(kind, self.user_id, chance.choice(tweets)), chance.random() < 0.7
        return Register(Kind.POST, self.user_id, self._drill.next_key()), True

    async def _write(
        self,
        register: Register,
        value: bool,
        send: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    ) -> bool:
        """Sends the write that sets `register` to `value` and records its outcome in the history. Returns False if the
        outcome is unknown.

        `send` awaits the call that is passed to it, with or without retries. Raises CommandError if the server refuses
        the write with a status code other than NOT_FOUND and PERMISSION_DENIED.
        """
        make, undo, subject = WRITES[register.kind]
        method = contract.methods()[make if value else undo]
        request = method.request(**{subject: register.subject})
        if register.kind is Kind.POST:
            # The text is the idempotency key, so the check of the history recognises a duplicate: a second tweet with
            # this text.
            request = method.request(text=str(register.subject), idempotency_key=str(register.subject))
        metadata = await self.actors.act_as(self.user_id)
        call = self._channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
        self._history.invoke(register, value)
        try:
            answer = await send(lambda: call(request, metadata=metadata, timeout=method.policy.deadline_ms / 1000))
        except grpc.aio.AioRpcError as error:
            found = errors.from_rpc(error)
            if found.code in _NO_ANSWER or not self._running:
                self._history.unknown(register, found.code.name)
                return False
            self._history.fail(register, found.code.name)
            if found.code not in _REFUSALS:
                raise CommandError(f"{register}: {found.code.name}: {found.message}", FAULTS) from error
            return True
        self._history.ok(register, answer.tweet.id if register.kind is Kind.POST else 0)
        return True

    async def _once(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()
