"""The crash drill: sends SIGKILL to a mesh under load, repeatedly, and checks after each restart that every
acknowledged write exists exactly once and that the mesh recovers by itself. The drill reports each violation as a
fault.

Each boolean fact that writes decide, such as "user A follows user B", is called a register (see `history`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from roost_cli import connection
from roost_cli.drill.history import Faults, History, Kind, Outcome, Register
from roost_cli.drill.observe import observe, without_receipt
from roost_cli.drill.single_process_mesh import ChildMesh, MeshLauncher
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.load.loader import Loader, NewUser, Operator
from roost_cli.progress import Progress, Silent
from roost_cli.rate_control import with_retries
from roost_cli.tokens import TokenCache
from roost_cli.verify import command
from services.platform.rpc import contract, errors

# Concurrent clients, one user each: enough that commits are grouped and every kill hits writes in progress.
CLIENTS = 24
CHANNELS = 4
# Bounds in seconds of the load before each kill, whose length is chosen at random. The first posts of a round are part
# of the load.
SHORTEST_LOAD_S, LONGEST_LOAD_S = 0.3, 1.5
# Share of restarts during which the mesh is killed a second time, because a crash during recovery must not lose a write
# either.
KILLED_RESTARTS = 0.25
SHORTEST_RESTART_S, LONGEST_RESTART_S = 0.2, 2.0
# Home timelines checked after each restart; the rest are checked at the end.
SAMPLED_HOMES = 3
# Share of each kind of write, in percent.
SHARES = {Kind.POST: 50, Kind.FOLLOW: 15, Kind.LIKE: 15, Kind.RETWEET: 10, Kind.DELETE: 10}

_TWEETS = "/roost.tweet.v1.TweetService/"
_GRAPH = "/roost.graph.v1.GraphService/"
_ENGAGEMENT = "/roost.engagement.v1.EngagementService/"
# For each kind of register (a boolean such as "A follows B"): the RPC that sets it to true, the RPC that sets it to false
# (empty if none does), and the request field that names the tweet, user or key that the register is about.
WRITES: dict[Kind, tuple[str, str, str]] = {
    Kind.POST: (_TWEETS + "CreateTweet", "", "idempotency_key"),
    Kind.DELETE: (_TWEETS + "DeleteTweet", "", "tweet_id"),
    Kind.RETWEET: (_TWEETS + "Retweet", _TWEETS + "Unretweet", "tweet_id"),
    Kind.LIKE: (_ENGAGEMENT + "LikeTweet", _ENGAGEMENT + "UnlikeTweet", "tweet_id"),
    Kind.FOLLOW: (_GRAPH + "Follow", _GRAPH + "Unfollow", "user_id"),
}
# Status codes that a call may get while its server is being killed. After one of them the outcome of the write is
# unknown.
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
    """The result of a drill. `startups_s` are the start-up times in seconds, without start-ups that were killed."""

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
        """Returns whether no acknowledged write was lost or duplicated, no data exists that nobody wrote, and every
        home timeline is exact."""
        return self.homes_exact and not (self.lost or self.duplicated or self.strange)

    def add(self, faults: Faults) -> None:
        """Adds the faults of one round."""
        self.lost.extend(faults.lost)
        self.duplicated.extend(faults.duplicated)
        self.strange.extend(faults.strange)


class CrashDrill:
    """Runs rounds of load, each ended by SIGKILL. Each round has a new mesh on the same data directory."""

    def __init__(self, launcher: MeshLauncher, seed: int, shown: Progress) -> None:
        self.history = History()
        self.result = Result()
        self._nursery = launcher
        self._chance = random.Random(seed)  # noqa: S311 (chooses moments and writes; not used for security)
        self._seed = seed
        self._shown = shown
        self._posts = 0

    async def run(self, rounds: int) -> Result:
        """Runs `rounds` rounds of load and kill, checks all data and all home timelines, stops the mesh cleanly, and
        returns the result. Raises CommandError if a write fails in a way that no kill explains."""
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
            try:
                await asyncio.sleep(self._chance.uniform(SHORTEST_LOAD_S, LONGEST_LOAD_S))
            finally:
                for client in clients:
                    client.stop()
                await child.kill()
                # Each client stops after its current call; the call fails at once when the server dies.
                ended = await asyncio.gather(*loads, return_exceptions=True)
        if found := [error for error in ended if error is not None]:
            raise found[0]

    async def _settle(self, child: ChildMesh, *, every_home: bool) -> None:
        """Compares the data of the mesh with the history, sends each write of unknown outcome again, and compares once
        more. Adds all violations to the result. Checks all home timelines if `every_home` is true, otherwise those of
        SAMPLED_HOMES users."""
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

    async def _clients(self, child: ChildMesh, channels: Sequence[grpc.aio.Channel]) -> list[Client]:
        operator = Operator(channels[0], child.target.operator())
        actors = TokenCache(channels[0], operator.metadata)
        loader = Loader(channels, operator, actors, Silent())
        ids = await loader.import_users([NewUser(f"client_{number:02d}", "") for number in range(CLIENTS)])
        users = sorted(ids.values())
        return [Client(self, channels[user % len(channels)], actors, user, users) for user in users]

    def next_key(self) -> str:
        """Returns a new idempotency key for a post."""
        self._posts += 1
        return f"crash:{self._seed}:{self._posts}"

    def draw(self) -> random.Random:
        """Returns the random generator of the drill."""
        return self._chance


class Client:
    """One user of the load, with at most one write in progress at a time. A register belongs to one user, so the writes
    of each register are sequential."""

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
        """Makes `load` return after the write in progress."""
        self._running = False

    async def load(self) -> None:
        """Sends random writes until `stop`, or until the server does not answer."""
        while self._running:
            register, value = self._deed()
            if not await self._write(register, value, self._once):
                return

    async def repeat(self, register: Register, value: bool) -> None:
        """Sends a write whose outcome is unknown again, with retries, so that its outcome becomes known: acknowledged,
        or refused because its tweet was deleted or may not be changed.

        `register` is the fact that the write sets to `value`. Raises CommandError, which ends the drill, if the server
        does not answer or refuses the write with any other status code than NOT_FOUND or PERMISSION_DENIED.
        """
        if not await self._write(register, value, with_retries):
            raise CommandError(f"the server did not answer the repeated write to {register}", FAULTS)

    def _deed(self) -> tuple[Register, bool]:
        chance = self._drill.draw()
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        tweets, own = self._history.tweets, self._history.own[self.user_id]
        if kind is Kind.DELETE and own:
            # Some of these tweets are already deleted; deleting one again returns OK.
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
        """Sends the write that sets `register` to `value`, by `send`, and records its outcome in the history. Returns
        False if the outcome is unknown. Raises CommandError if the server refuses the write with any other status code
        than NOT_FOUND or PERMISSION_DENIED."""
        make, undo, subject = WRITES[register.kind]
        method = contract.methods()[make if value else undo]
        request = method.request(**{subject: register.subject})
        if register.kind is Kind.POST:
            # The text equals the idempotency key, so a duplicate shows as a second tweet with the same text.
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
