"""The kill drill: kills or restarts the processes of a running mesh one after another, under a load of a hundred reads
per write.

The mesh has two processes of each service that is killed. The drill checks that every request succeeds (all of them can
be repeated safely), that each acknowledged write exists exactly once, and that each killed process is restarted. It
reports each violation. A register is a boolean fact that writes set, such as "user A follows user B" (see `history`).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus

import grpc
import orjson

from roost_cli import connection
from roost_cli.drill.history import History, Kind, Outcome, Register, Violations
from roost_cli.drill.http_client import HttpClient, HttpResponse
from roost_cli.drill.multi_process_mesh import MultiProcessMesh
from roost_cli.drill.observe import observe
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.load.loader import Loader, NewUser, Operator
from roost_cli.progress import Progress, Silent
from roost_cli.supervisor import control
from roost_cli.tokens import TokenCache
from roost_cli.verify import command

# Number of concurrent clients, each with a user and a connection of its own, and the mean number of seconds between two
# requests of a client. With these numbers, requests are in progress at every kill, and a small machine is not
# overloaded.
CLIENTS = 16
PAUSE_S = 0.02
READS_A_WRITE = 100
# Number of tweets that each client posts before the load, so that the timelines are not empty.
FIRST_POSTS = 3
# Minimum and maximum number of seconds between a recovery and the next kill.
MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 2.0
# Maximum number of seconds until a killed process is ready again, else the drill ends with an error. It usually takes a
# few seconds, which the drill reports; only a process that hangs takes longer than the maximum.
BACK_WITHIN_S = 120.0
# Timeout of a request in seconds. It is longer than every deadline of the requests, so that the mesh responds with an
# error before the client gives up.
ANSWER_WITHIN_S = 15.0
# Maximum number of repeats of a write whose outcome is unknown, and of a request that failed because the store was too
# slow; and the number of seconds between them.
REPEATS, REPEAT_PAUSE_S = 20, 0.5
# How often a client sends a request if the processes to which it connects are killed. One process is killed at a time,
# so the second connection is to another one.
ATTEMPTS_AT_KILLED_GATEWAY = 2
# Relative frequency of each kind of write, in percent.
SHARES = {Kind.POST: 60, Kind.FOLLOW: 20, Kind.LIKE: 20}
# Maximum number of failures that the report describes: in total, and of those that are alike. All failures are counted.
KEPT_FAILURES, KEPT_ALIKE = 200, 2
# Maximum number of seconds until every path is readable before the load, and the number of seconds between two
# attempts. A new mesh first creates its search indexes.
WHOLE_WITHIN_S, LOOK_AGAIN_S = 120.0, 0.5
SERVER_ERRORS = 500
_REFUSALS = frozenset({403, 404})
# Codes in the body of a response with status 503 if a store did not execute a statement in time; the last one is of
# OpenSearch. If the deadline of the request passed first, the status is 504. A service whose process is gone has
# another code. Such requests succeed when they are repeated, but the drill is not clean.
_STORE_TOO_SLOW = frozenset({"store_unavailable", "outcome_unknown", "search_unavailable"})
# Two failures are alike if the first LETTERS_ALIKE characters of their descriptions are the same except for ids. These
# characters contain the method, path, status and code.
_NUMBERS, LETTERS_ALIKE = re.compile(r"\d{6,}"), 90

Disturb = Callable[[MultiProcessMesh, str], Awaitable[float]]


@dataclass(slots=True)
class Result:
    """The result of a kill drill.

    `failed` counts the requests that failed, `by_service` those by the service that was killed last, and `failures`
    describes the first of them. `reconnected` counts the requests that were repeated on another connection, because the
    process that had the first one was killed or stopped. `slow` counts the requests that failed because the store was
    too slow, and succeeded when they were repeated. `recoveries_s` and `longest_s` (the longest response time) are in
    seconds. `acknowledged` and `unknown` count writes by outcome. `lost`, `duplicated` and `strange` describe
    violations, one text each (see `history.Violations`). `homes_exact` is true if at the end every home timeline was
    exact, that is, equal to the one that `roost verify` computes from the data of the other services.
    """

    rounds: int = 0
    reads: int = 0
    writes: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    reconnected: int = 0
    slow: int = 0
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
        """Returns whether every request succeeded without waiting for a slow store, there are no violations, and every home
        timeline is exact."""
        return self.homes_exact and not (self.failed or self.slow or self.lost or self.duplicated or self.strange)

    def add(self, violations: Violations) -> None:
        """Adds the violations that a check of the history found."""
        self.lost.extend(violations.lost)
        self.duplicated.extend(violations.duplicated)
        self.strange.extend(violations.strange)


async def kill_process(mesh_processes: MultiProcessMesh, label: str) -> float:
    """Sends SIGKILL to the process `label`, such as `tweet-1`, and returns the number of seconds until its replacement
    is ready. Raises CommandError if that takes longer than BACK_WITHIN_S seconds."""
    return await mesh_processes.kill(label, BACK_WITHIN_S)


async def restart_service(mesh_processes: MultiProcessMesh, label: str) -> float:
    """Restarts all processes of the group to which the process `label` belongs, one after another. Returns the number of
    seconds that this took. Raises CommandError if the restart fails."""
    return (await control.ask_restart(mesh_processes.control, label.rpartition("-")[0])).seconds


class KillDrill:
    """Sends load to a mesh while its processes are killed or restarted.

    `seed` determines the load and the order of the kills. `victim` is the process that was killed or restarted last.
    `attempts` is how often a client sends a request whose connection breaks before the response: 1 if no process to
    which clients connect is killed, otherwise ATTEMPTS_AT_KILLED_GATEWAY.
    """

    def __init__(
        self,
        mesh_processes: MultiProcessMesh,
        seed: int,
        shown: Progress,
        *,
        reads_a_write: int = READS_A_WRITE,
        clients: int = CLIENTS,
        attempts: int = 1,
    ) -> None:
        self.history = History()
        self.result = Result()
        self.mesh_processes = mesh_processes
        self.reads_a_write = reads_a_write
        self.attempts = attempts
        self.chance = random.Random(seed)  # noqa: S311 (chooses processes and requests; not used for security)
        self.victim = ""
        self._seed = seed
        self._shown = shown
        self._clients = clients
        self._posts = 0
        self._alike: Counter[str] = Counter()

    async def run(self, services: Sequence[str], rounds: int, disturb: Disturb = kill_process) -> Result:
        """Calls `disturb` `rounds` times under load, then checks the data of the mesh and returns the result.

        Each call kills or restarts one process. The calls go through `services` in random order, and begin again after
        the last service. Raises CommandError if a process does not become ready again, or if the mesh refuses a write
        with a status other than 403 and 404.
        """
        async with AsyncExitStack() as stack:
            mesh = self.mesh_processes.target
            channel = (await stack.enter_async_context(connection.connect(mesh)))[0]
            operator = Operator(channel, mesh.operator())
            actors = TokenCache(channel, operator.metadata)
            clients = await self._people(channel, operator, actors)
            for client in clients:
                stack.callback(client.http.close)
            await asyncio.gather(*(client.begin() for client in clients))
            await clients[0].wait_until_readable()
            self._reset_timings()
            await self._under_load(clients, services, rounds, disturb)
            await self._settle(clients, operator, actors, mesh)
        counts = self.history.counts()
        self.result.acknowledged, self.result.unknown = counts[Outcome.OK], counts[Outcome.UNKNOWN]
        return self.result

    async def _people(self, channel: grpc.aio.Channel, operator: Operator, actors: TokenCache) -> list[Client]:
        loader = Loader([channel], operator, actors, Silent())
        ids = await loader.import_users([NewUser(f"client_{number:02d}", "") for number in range(self._clients)])
        users = sorted(ids.values())
        return [Client(self, actors, user, users) for user in users]

    def _reset_timings(self) -> None:
        """Resets the longest response time, because the first requests found empty caches. Keeps the counts of
        failures, because no request should fail, even before the first kill."""
        self.result.longest_s = 0.0

    async def _under_load(
        self, clients: Sequence[Client], services: Sequence[str], rounds: int, disturb: Disturb
    ) -> None:
        loads = asyncio.gather(*(client.load() for client in clients))
        kills = asyncio.create_task(self._disturbances(services, rounds, disturb))
        try:
            # `load` returns before `stop` only if it raises an error, which ends the drill.
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
                await asyncio.sleep(self.chance.uniform(MIN_PAUSE_S, MAX_PAUSE_S))
                labels = self.mesh_processes.labels(waiting.pop())
                # Not the same process again if the group has another one.
                self.victim = self.chance.choice([label for label in labels if label != self.victim] or labels)
                seconds = await disturb(self.mesh_processes, self.victim)
                self._shown.say(f"{self.victim}: back in {seconds:.1f} s; {self.result.failed:,} failed so far")
                self.result.recoveries_s.append(seconds)
                self.result.rounds += 1
                phase.advance()
            await asyncio.sleep(MAX_PAUSE_S)

    async def _settle(
        self, clients: Sequence[Client], operator: Operator, actors: TokenCache, mesh: connection.MeshTarget
    ) -> None:
        """Compares the data of the mesh with the history, repeats each write whose outcome is unknown, compares again,
        and checks every home timeline. Adds all violations to the result."""
        users = [client.user_id for client in clients]
        by_user = {client.user_id: client for client in clients}
        self.result.add(self.history.check(await observe(operator.channel, operator, actors, users, self.history)))
        for register, value in self.history.open():
            await by_user[register.user_id].repeat(register, value)
        self.result.add(self.history.check(await observe(operator.channel, operator, actors, users, self.history)))
        self.result.homes_exact = await command.audit(mesh, Silent())

    def next_key(self) -> str:
        """Returns an idempotency key for a new tweet."""
        self._posts += 1
        return f"kill:{self._seed}:{self._posts}"

    def failed(self, what: str) -> None:
        """Counts a failed request. `what` describes the request and its response, for the report."""
        self.result.failed += 1
        self.result.by_service[self.victim.rpartition("-")[0] or "nobody yet"] += 1
        kind = _NUMBERS.sub("…", what)[:LETTERS_ALIKE]
        self._alike[kind] += 1
        if len(self.result.failures) < KEPT_FAILURES and self._alike[kind] <= KEPT_ALIKE:
            self.result.failures.append(f"after {self.victim or 'nothing'}: {what}")


class Client:
    """Sends the requests of one user, one at a time. Only this client writes to the registers of the user, so the
    writes to a register are sequential."""

    def __init__(self, drill: KillDrill, actors: TokenCache, user_id: int, users: Sequence[int]) -> None:
        self.user_id = user_id
        self.http = HttpClient(*drill.mesh_processes.http)
        self._drill = drill
        self._history = drill.history
        self._actors = actors
        self._users = users
        self._others = [user for user in users if user != user_id]
        self._running = True

    def stop(self) -> None:
        """Makes `load` return after the request that is in progress."""
        self._running = False

    async def begin(self) -> None:
        """Follows a user and posts tweets, so that home and user timelines are not empty."""
        await self._write(Register(Kind.FOLLOW, self.user_id, self._others[0]), True)
        for _ in range(FIRST_POSTS):
            await self._write(Register(Kind.POST, self.user_id, self._drill.next_key()), True)

    async def wait_until_readable(self) -> None:
        """Waits until each kind of path that the load reads has returned status 200. Raises CommandError if that takes
        longer than WHOLE_WITHIN_S seconds."""
        (_, bearer), *_ = await self._actors.act_as(self.user_id)
        token = bearer.removeprefix("Bearer ")
        missing = self._readable_paths()
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
                f"the mesh failed to answer {missing[0]} before the drill disturbed it", FAULTS
            ) from error

    async def load(self) -> None:
        """Sends reads, and a write after about every hundred reads, until `stop` is called."""
        chance = self._drill.chance
        while self._running:
            if chance.random() * (self._drill.reads_a_write + 1) < 1:
                await self._write(*self._deed())
            else:
                await self._read()
            await asyncio.sleep(PAUSE_S * chance.uniform(0.5, 1.5))

    async def repeat(self, register: Register, value: bool) -> None:
        """Repeats a write whose outcome is unknown, until the mesh acknowledges or refuses it. The write sets
        `register` to `value`.

        Raises CommandError, which ends the drill, if the outcome is still unknown after REPEATS attempts.
        """
        for _ in range(REPEATS):
            if await self._write(register, value):
                return
            await asyncio.sleep(REPEAT_PAUSE_S)
        raise CommandError(f"the server did not answer the repeated write to {register}", FAULTS)

    async def _read(self) -> None:
        path = self._drill.chance.choice(self._readable_paths())
        answer = await self._ask("GET", path)
        self._drill.result.reads += 1
        if answer is not None and answer.status != 200:
            self._drill.failed(f"GET {path}: {answer.status} {answer.body[:300].decode(errors='replace')}")

    def _readable_paths(self) -> list[str]:
        """Returns the paths from which the next read is chosen, for a random user and a random tweet. A path that is
        repeated is chosen more often."""
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
        """Sends the write that sets `register` to `value` and records its outcome in the history. Returns False if the
        outcome is unknown.

        Raises CommandError if the mesh refuses the write with a status other than 403 and 404.
        """
        kind, _, subject = register
        body, key = b"{}", ""
        if kind is Kind.POST:
            # The text is the idempotency key, so the check of the history recognises a duplicate: a second tweet with
            # this text.
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

    async def _ask(self, method: str, path: str, body: bytes = b"", key: str = "") -> HttpResponse | None:
        """Sends a request and returns the response. Counts a failure and returns None if no response arrives.

        If the response says that the store was too slow, repeats the request up to REPEATS times, REPEAT_PAUSE_S
        seconds after each response. A store can be too slow while killed processes start again on a busy machine. If
        the last repeat fails too, returns its response.
        """
        answer = await self._ask_once(method, path, body, key)
        for _ in range(REPEATS):
            if answer is None or not is_store_too_slow(answer):
                break
            await asyncio.sleep(REPEAT_PAUSE_S)
            answer = await self._ask_once(method, path, body, key)
            if answer is not None and answer.status < SERVER_ERRORS:
                self._drill.result.slow += 1
        return answer

    async def _ask_once(self, method: str, path: str, body: bytes, key: str) -> HttpResponse | None:
        (_, bearer), *_ = await self._actors.act_as(self.user_id)
        token, began = bearer.removeprefix("Bearer "), asyncio.get_running_loop().time()
        try:
            for left in reversed(range(self._drill.attempts)):
                try:
                    return await self.http.ask(method, path, token, body, key=key, within_s=ANSWER_WITHIN_S)
                except (OSError, EOFError) as error:
                    # TimeoutError is an OSError, but no broken connection: the mesh did not answer.
                    if isinstance(error, TimeoutError) or not left:
                        raise
                    self._drill.result.reconnected += 1
            raise AssertionError("there is at least one attempt")
        except (OSError, EOFError) as error:
            self._drill.failed(f"{method} {path}: {error!r}")
            return None
        finally:
            took = asyncio.get_running_loop().time() - began
            self._drill.result.longest_s = max(self._drill.result.longest_s, took)


def is_store_too_slow(answer: HttpResponse) -> bool:
    """Returns whether the request failed because a store was too slow, and not because a service was unavailable."""
    if answer.status == HTTPStatus.GATEWAY_TIMEOUT:
        return True
    return answer.status == HTTPStatus.SERVICE_UNAVAILABLE and orjson.loads(answer.body)["code"] in _STORE_TOO_SLOW
