"""SIGKILL to one process of a running mesh after another, under the load of people who read a hundred times for each time they write.

A mesh with two of each service is to go on: what may be repeated (a read, a post with a key) is answered all the same, what was
acknowledged is there once, and the killed process comes back by itself.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc
import orjson

from roost_cli import connection
from roost_cli.drill.history import Faults, History, Kind, Outcome, Register
from roost_cli.drill.http_client import Answer, HttpClient
from roost_cli.drill.multi_process_mesh import Fleet
from roost_cli.drill.observe import observe
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.load.loader import Loader, Operator, Person
from roost_cli.progress import Progress, Silent
from roost_cli.supervisor import control
from roost_cli.tokens import TokenBook
from roost_cli.verify import command

# Readers at the same time, each one user with one connection, and the rest each takes between two requests: enough that every kill
# meets requests on their way, and little enough that a small machine is not what fails.
CLIENTS = 16
PAUSE_S = 0.02
READS_A_WRITE = 100
# Writes of each client before the load, so that there is something to read.
FIRST_POSTS = 3
# Between a recovery and the next kill.
SHORTEST_REST_S, LONGEST_REST_S = 0.5, 2.0
# A process takes seconds to come back; the limit is far above, since slowness is measured and only what hangs is given up.
BACK_WITHIN_S = 120.0
# Above the longest deadline of what is asked: the mesh is to answer first.
ANSWER_WITHIN_S = 15.0
# Repeats of a write without an answer, once the kills are over, and the pause between two.
REPEATS, REPEAT_PAUSE_S = 20, 0.5
# What each kind of write has of the writes, in percent.
SHARES = {Kind.POST: 60, Kind.FOLLOW: 20, Kind.LIKE: 20}
# Failures kept to be shown, and of those that differ in numbers only; the counts have all.
KEPT_FAILURES, KEPT_ALIKE = 200, 2
# A mesh that was just made on empty servers makes its search indexes first, which takes seconds.
WHOLE_WITHIN_S, LOOK_AGAIN_S = 120.0, 0.5
SERVER_ERRORS = 500
_REFUSALS = frozenset({403, 404})
# What tells failures apart: method, path without its ids, status and code.
_NUMBERS, LETTERS_ALIKE = re.compile(r"\d{6,}"), 90

Disturb = Callable[[Fleet, str], Awaitable[float]]


@dataclass(slots=True)
class Result:
    """What a drill came to. Times in seconds; `failures` tell of the first requests that may be repeated and were not answered."""

    rounds: int = 0
    reads: int = 0
    writes: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    by_service: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    longest_s: float = 0.0
    acknowledged: int = 0
    unknown: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    homes_exact: bool = False

    @property
    def clean(self) -> bool:
        """Whether every request was answered, nothing was lost or doubled, and every home is exact."""
        return self.homes_exact and not (self.failed or self.lost or self.duplicated or self.strange)

    def add(self, faults: Faults) -> None:
        """Takes what the history found."""
        self.lost.extend(faults.lost)
        self.duplicated.extend(faults.duplicated)
        self.strange.extend(faults.strange)


async def killing(fleet: Fleet, label: str) -> float:
    """SIGKILL to one process, and its way back."""
    return await fleet.kill(label, BACK_WITHIN_S)


async def restarting(fleet: Fleet, label: str) -> float:
    """A rolling restart of the service that this process belongs to."""
    return await control.ask_restart(fleet.control, label.rpartition("-")[0])


class KillDrill:
    """Load on one mesh, and something done to its processes meanwhile."""

    def __init__(
        self, fleet: Fleet, seed: int, shown: Progress, *, reads_a_write: int = READS_A_WRITE, clients: int = CLIENTS
    ) -> None:
        self.history = History()
        self.result = Result()
        self.fleet = fleet
        self.reads_a_write = reads_a_write
        self.chance = random.Random(seed)  # noqa: S311 (chooses victims and requests; nothing is guarded by it)
        self.victim = ""
        self._seed = seed
        self._shown = shown
        self._clients = clients
        self._posts = 0
        self._alike: Counter[str] = Counter()

    async def run(self, services: Sequence[str], rounds: int, disturb: Disturb = killing) -> Result:
        """Disturbs `rounds` processes, each service before any comes again; then compares what is there."""
        async with AsyncExitStack() as stack:
            mesh = self.fleet.target
            channel = (await stack.enter_async_context(connection.connect(mesh)))[0]
            operator = Operator(channel, mesh.operator())
            actors = TokenBook(channel, operator.metadata)
            clients = await self._people(channel, operator, actors)
            for client in clients:
                stack.callback(client.http.close)
            await asyncio.gather(*(client.begin() for client in clients))
            await clients[0].until_all_is_there()
            self._forget_the_beginning()
            await self._under_load(clients, services, rounds, disturb)
            await self._settle(clients, operator, actors, mesh)
        counts = self.history.counts()
        self.result.acknowledged, self.result.unknown = counts[Outcome.OK], counts[Outcome.UNKNOWN]
        return self.result

    async def _people(self, channel: grpc.aio.Channel, operator: Operator, actors: TokenBook) -> list[Client]:
        loader = Loader([channel], operator, actors, Silent())
        ids = await loader.import_people([Person(f"client_{number:02d}", "") for number in range(self._clients)])
        users = sorted(ids.values())
        return [Client(self, actors, user, users) for user in users]

    def _forget_the_beginning(self) -> None:
        """What fails before anything was killed is a fault of the mesh, but what is slow then is its start."""
        self.result.longest_s = 0.0

    async def _under_load(
        self, clients: Sequence[Client], services: Sequence[str], rounds: int, disturb: Disturb
    ) -> None:
        loads = asyncio.gather(*(client.load() for client in clients))
        kills = asyncio.create_task(self._disturbances(services, rounds, disturb))
        try:
            # A client ends by itself only where it found what must not be.
            await asyncio.wait((loads, kills), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for client in clients:
                client.stop()
            kills_done = kills.done()
            if not kills_done:
                kills.cancel()
            await asyncio.gather(kills, return_exceptions=True)
        await loads
        if kills_done:
            kills.result()

    async def _disturbances(self, services: Sequence[str], rounds: int, disturb: Disturb) -> None:
        waiting: list[str] = []
        with self._shown.phase("rounds", rounds) as phase:
            for _ in range(rounds):
                if not waiting:
                    waiting = self.chance.sample(list(services), len(services))
                await asyncio.sleep(self.chance.uniform(SHORTEST_REST_S, LONGEST_REST_S))
                self.victim = self.chance.choice(self.fleet.labels(waiting.pop()))
                seconds = await disturb(self.fleet, self.victim)
                self._shown.say(f"{self.victim}: back in {seconds:.1f} s; {self.result.failed:,} failed so far")
                self.result.recoveries_s.append(seconds)
                self.result.rounds += 1
                phase.advance()
            await asyncio.sleep(LONGEST_REST_S)

    async def _settle(
        self, clients: Sequence[Client], operator: Operator, actors: TokenBook, mesh: connection.Target
    ) -> None:
        """Compares, repeats what had no answer, and compares again; then every home."""
        users = [client.user_id for client in clients]
        by_user = {client.user_id: client for client in clients}
        self.result.add(self.history.check(await observe(operator.channel, operator, actors, users, self.history)))
        for register, value in self.history.open():
            await by_user[register.user_id].repeat(register, value)
        self.result.add(self.history.check(await observe(operator.channel, operator, actors, users, self.history)))
        self.result.homes_exact = await command.audit(mesh, Silent())

    def next_key(self) -> str:
        """The idempotency key of one more post."""
        self._posts += 1
        return f"kill:{self._seed}:{self._posts}"

    def failed(self, what: str) -> None:
        """Counts a request that was to be answered."""
        self.result.failed += 1
        self.result.by_service[self.victim.rpartition("-")[0] or "nobody yet"] += 1
        kind = _NUMBERS.sub("…", what)[:LETTERS_ALIKE]
        self._alike[kind] += 1
        if len(self.result.failures) < KEPT_FAILURES and self._alike[kind] <= KEPT_ALIKE:
            self.result.failures.append(f"after {self.victim or 'nothing'}: {what}")


class Client:
    """One user, one request at a time: so that every register's history is a line."""

    def __init__(self, drill: KillDrill, actors: TokenBook, user_id: int, users: Sequence[int]) -> None:
        self.user_id = user_id
        self.http = HttpClient(*drill.fleet.http)
        self._drill = drill
        self._history = drill.history
        self._actors = actors
        self._users = users
        self._others = [user for user in users if user != user_id]
        self._running = True

    def stop(self) -> None:
        """No request after the one at hand."""
        self._running = False

    async def begin(self) -> None:
        """Follows somebody and posts, so that there is something to read."""
        await self._write(Register(Kind.FOLLOW, self.user_id, self._others[0]), True)
        for _ in range(FIRST_POSTS):
            await self._write(Register(Kind.POST, self.user_id, self._drill.next_key()), True)

    async def until_all_is_there(self) -> None:
        """Waits until everything that will be read is answered; CommandError where something never is."""
        (_, bearer), *_ = await self._actors.act_as(self.user_id)
        token = bearer.removeprefix("Bearer ")
        missing = self._wishes()
        try:
            async with asyncio.timeout(WHOLE_WITHIN_S):
                while missing:
                    answer = await self.http.ask("GET", missing[0], token, within_s=ANSWER_WITHIN_S)
                    if answer.status == 200:
                        missing.pop(0)
                    else:
                        await asyncio.sleep(LOOK_AGAIN_S)
        except (OSError, EOFError, TimeoutError) as error:
            raise CommandError(
                f"the mesh does not answer {missing[0]}, before anything was done to it", FAULTS
            ) from error

    async def load(self) -> None:
        """Reads and now and then writes, until it is stopped."""
        chance = self._drill.chance
        while self._running:
            if chance.random() * (self._drill.reads_a_write + 1) < 1:
                await self._write(*self._deed())
            else:
                await self._read()
            await asyncio.sleep(PAUSE_S * chance.uniform(0.5, 1.5))

    async def repeat(self, register: Register, value: bool) -> None:
        """The same write again, with patience: now it must be acknowledged, or refused."""
        for _ in range(REPEATS):
            if await self._write(register, value):
                return
            await asyncio.sleep(REPEAT_PAUSE_S)
        raise CommandError(f"no answer to the repeat of {register}", FAULTS)

    async def _read(self) -> None:
        path = self._drill.chance.choice(self._wishes())
        answer = await self._ask("GET", path)
        self._drill.result.reads += 1
        if answer is not None and answer.status != 200:
            self._drill.failed(f"GET {path}: {answer.status} {answer.body[:300].decode(errors='replace')}")

    def _wishes(self) -> list[str]:
        """Paths, of which any may be read next."""
        chance, tweets = self._drill.chance, self._history.tweets
        user = chance.choice(self._users)
        wishes = [
            "/v1/timelines/home",
            "/v1/timelines/home",
            f"/v1/users/{user}",
            f"/v1/users/{user}/tweets",
            f"/v1/users/{user}/followers",
            "/v1/search/tweets?q=kill",
        ]
        if tweets:
            tweet = chance.choice(tweets)
            wishes += [f"/v1/tweets/{tweet}", f"/v1/tweets/{tweet}/likes"]
        return wishes

    def _deed(self) -> tuple[Register, bool]:
        chance, tweets = self._drill.chance, self._history.tweets
        kind = chance.choices(list(SHARES), list(SHARES.values()))[0]
        if kind is Kind.FOLLOW:
            return Register(kind, self.user_id, chance.choice(self._others)), chance.random() < 0.7
        if kind is Kind.LIKE and tweets:
            return Register(kind, self.user_id, chance.choice(tweets)), chance.random() < 0.7
        return Register(Kind.POST, self.user_id, self._drill.next_key()), True

    async def _write(self, register: Register, value: bool) -> bool:
        """Sends one write and logs its end; False where there was no answer."""
        kind, _, subject = register
        body, key = b"{}", ""
        if kind is Kind.POST:
            # The text is the key: what is there once under one shows once under the other.
            path, key, body = "/v1/tweets", str(subject), orjson.dumps({"text": str(subject)})
        else:
            path = f"/v1/tweets/{subject}/likes" if kind is Kind.LIKE else f"/v1/users/{subject}/follow"
        self._history.invoke(register, value)
        answer = await self._ask("POST" if value else "DELETE", path, body if value else b"", key)
        self._drill.result.writes += 1
        if answer is None or answer.status >= SERVER_ERRORS:
            said = "no answer" if answer is None else str(answer.status)
            self._history.unknown(register, said)
            if answer is not None:
                self._drill.failed(f"{kind}: {said} {answer.body[:300].decode(errors='replace')}")
            return False
        if answer.status >= 400:
            self._history.fail(register, str(answer.status))
            if answer.status not in _REFUSALS:
                raise CommandError(f"{register}: {answer.status} {answer.body.decode(errors='replace')}", FAULTS)
            return True
        self._history.ok(register, int(orjson.loads(answer.body)["id"]) if kind is Kind.POST else 0)
        return True

    async def _ask(self, method: str, path: str, body: bytes = b"", key: str = "") -> Answer | None:
        """The answer, or None, counted as failed, where none came."""
        (_, bearer), *_ = await self._actors.act_as(self.user_id)
        token, began = bearer.removeprefix("Bearer "), asyncio.get_running_loop().time()
        try:
            return await self.http.ask(method, path, token, body, key=key, within_s=ANSWER_WITHIN_S)
        except (OSError, EOFError, TimeoutError) as error:
            self._drill.failed(f"{method} {path}: {error!r}")
            return None
        finally:
            took = asyncio.get_running_loop().time() - began
            self._drill.result.longest_s = max(self._drill.result.longest_s, took)
