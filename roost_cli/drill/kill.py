"""Kills the processes of a running mesh one after another, under a load of a hundred reads per write.

The mesh has two replicas of each service. The drill checks that every request that may be repeated (reads, posts with
an idempotency key) succeeds, that each acknowledged write exists exactly once, and that each killed process is
restarted. It reports a violation as a fault.
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
from roost_cli.drill.history import Faults, History, Kind, Outcome, Register
from roost_cli.drill.http_client import HttpClient, HttpResponse
from roost_cli.drill.multi_process_mesh import MultiProcessMesh
from roost_cli.drill.observe import observe
from roost_cli.exit_codes import FAULTS, CommandError
from roost_cli.load.loader import Loader, NewUser, Operator
from roost_cli.progress import Progress, Silent
from roost_cli.supervisor import control
from roost_cli.tokens import TokenCache
from roost_cli.verify import command

# Concurrent clients with one user and connection each, and the pause of each between requests: enough that every kill
# hits requests in progress, and few enough that a small machine is not the bottleneck.
CLIENTS = 16
PAUSE_S = 0.02
READS_A_WRITE = 100
# Posts of each client before the load, so that the timelines are not empty.
FIRST_POSTS = 3
# Pause between a recovery and the next kill.
MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 2.0
# Seconds within which a killed process must be ready again. It usually takes a few; the limit is far higher, because
# the drill reports slow restarts and fails only if a process hangs.
BACK_WITHIN_S = 120.0
# Timeout of a request in seconds. It is larger than the longest deadline of the requests, so the mesh responds with an
# error before the client gives up.
ANSWER_WITHIN_S = 15.0
# Repeats of a write with unknown outcome after the last kill, and of a request that the store answered too late, and the
# pause between them.
REPEATS, REPEAT_PAUSE_S = 20, 0.5
# Share of each kind of write, in percent.
SHARES = {Kind.POST: 60, Kind.FOLLOW: 20, Kind.LIKE: 20}
# Failures recorded for the report: in total, and of those that differ only in numbers. The counts include all.
KEPT_FAILURES, KEPT_ALIKE = 200, 2
# Seconds for which the drill waits until every path is readable, and seconds between two attempts. A new mesh on empty
# servers first creates its search indexes.
WHOLE_WITHIN_S, LOOK_AGAIN_S = 120.0, 0.5
SERVER_ERRORS = 500
_REFUSALS = frozenset({403, 404})
# Codes of 503 if the store did not answer a statement in time. 504 is the same with a deadline that passed first.
_STORE_TOO_SLOW = frozenset({"store_unavailable", "outcome_unknown"})
# Failures are grouped by method, path without ids, status and code.
_NUMBERS, LETTERS_ALIKE = re.compile(r"\d{6,}"), 90

Disturb = Callable[[MultiProcessMesh, str], Awaitable[float]]


@dataclass(slots=True)
class Result:
    """The result of a drill. Times are in seconds; `failures` describes the first requests that may be repeated and
    failed. `slow` counts requests that the store answered too late, and that succeeded when repeated."""

    rounds: int = 0
    reads: int = 0
    writes: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
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
        """Returns whether every request succeeded at once, nothing was lost or duplicated, and every home timeline is exact."""
        return self.homes_exact and not (self.failed or self.slow or self.lost or self.duplicated or self.strange)

    def add(self, faults: Faults) -> None:
        """Adds the violations that the history check found."""
        self.lost.extend(faults.lost)
        self.duplicated.extend(faults.duplicated)
        self.strange.extend(faults.strange)


async def kill_process(mesh_processes: MultiProcessMesh, label: str) -> float:
    """Sends SIGKILL to one process and returns the seconds until its replacement is ready."""
    return await mesh_processes.kill(label, BACK_WITHIN_S)


async def restart_service(mesh_processes: MultiProcessMesh, label: str) -> float:
    """Restarts all processes of the service to which the process `label` belongs, one after another. Returns the
    seconds that this took."""
    return await control.ask_restart(mesh_processes.control, label.rpartition("-")[0])


class KillDrill:
    """Sends load to one mesh while its processes are killed or restarted."""

    def __init__(
        self,
        mesh_processes: MultiProcessMesh,
        seed: int,
        shown: Progress,
        *,
        reads_a_write: int = READS_A_WRITE,
        clients: int = CLIENTS,
    ) -> None:
        self.history = History()
        self.result = Result()
        self.mesh_processes = mesh_processes
        self.reads_a_write = reads_a_write
        self.chance = random.Random(seed)  # noqa: S311 (chooses processes and requests; not used for security)
        self.victim = ""
        self._seed = seed
        self._shown = shown
        self._clients = clients
        self._posts = 0
        self._alike: Counter[str] = Counter()

    async def run(self, services: Sequence[str], rounds: int, disturb: Disturb = kill_process) -> Result:
        """Calls `disturb`, which kills or restarts one process, `rounds` times while the load runs, then checks the
        data and returns the result. Each of `services` is disturbed once before one is disturbed again. Raises
        CommandError if a process does not become ready again, or a write fails in a way that no kill explains."""
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
        """Resets the longest response time, because the requests so far met cold caches. Does not reset the failures,
        because a failed request is a fault even before the first kill."""
        self.result.longest_s = 0.0

    async def _under_load(
        self, clients: Sequence[Client], services: Sequence[str], rounds: int, disturb: Disturb
    ) -> None:
        loads = asyncio.gather(*(client.load() for client in clients))
        kills = asyncio.create_task(self._disturbances(services, rounds, disturb))
        try:
            # A client returns by itself only if it found a violation.
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
                self.victim = self.chance.choice(self.mesh_processes.labels(waiting.pop()))
                seconds = await disturb(self.mesh_processes, self.victim)
                self._shown.say(f"{self.victim}: back in {seconds:.1f} s; {self.result.failed:,} failed so far")
                self.result.recoveries_s.append(seconds)
                self.result.rounds += 1
                phase.advance()
            await asyncio.sleep(MAX_PAUSE_S)

    async def _settle(
        self, clients: Sequence[Client], operator: Operator, actors: TokenCache, mesh: connection.MeshTarget
    ) -> None:
        """Compares the data of the mesh with the history, sends each write of unknown outcome again, compares once
        more, and checks every home timeline. Adds all violations to the result."""
        users = [client.user_id for client in clients]
        by_user = {client.user_id: client for client in clients}
        self.result.add(self.history.check(await observe(operator.channel, operator, actors, users, self.history)))
        for register, value in self.history.open():
            await by_user[register.user_id].repeat(register, value)
        self.result.add(self.history.check(await observe(operator.channel, operator, actors, users, self.history)))
        self.result.homes_exact = await command.audit(mesh, Silent())

    def next_key(self) -> str:
        """Returns a new idempotency key for a post."""
        self._posts += 1
        return f"kill:{self._seed}:{self._posts}"

    def failed(self, what: str) -> None:
        """Counts a request that should have succeeded."""
        self.result.failed += 1
        self.result.by_service[self.victim.rpartition("-")[0] or "nobody yet"] += 1
        kind = _NUMBERS.sub("…", what)[:LETTERS_ALIKE]
        self._alike[kind] += 1
        if len(self.result.failures) < KEPT_FAILURES and self._alike[kind] <= KEPT_ALIKE:
            self.result.failures.append(f"after {self.victim or 'nothing'}: {what}")


class Client:
    """One user of the load, with at most one request in progress at a time. A register (a boolean fact that writes
    decide, such as "user A follows user B") belongs to one user, so the writes of each register are sequential."""

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
        """Makes `load` return after the request in progress."""
        self._running = False

    async def begin(self) -> None:
        """Follows a user and posts, so that home and user timelines are not empty."""
        await self._write(Register(Kind.FOLLOW, self.user_id, self._others[0]), True)
        for _ in range(FIRST_POSTS):
            await self._write(Register(Kind.POST, self.user_id, self._drill.next_key()), True)

    async def wait_until_readable(self) -> None:
        """Waits until each path that the load reads has returned status 200 once. Raises CommandError if that does not
        happen within WHOLE_WITHIN_S seconds."""
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
        """Sends reads and occasional writes until `stop`."""
        chance = self._drill.chance
        while self._running:
            if chance.random() * (self._drill.reads_a_write + 1) < 1:
                await self._write(*self._deed())
            else:
                await self._read()
            await asyncio.sleep(PAUSE_S * chance.uniform(0.5, 1.5))

    async def repeat(self, register: Register, value: bool) -> None:
        """Sends the write that sets `register` to `value`, whose outcome is unknown, again until the server
        acknowledges or refuses the write.

        Raises CommandError, which ends the drill, if the server does neither in REPEATS attempts.
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
        """Returns the paths that the next read is chosen from."""
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
        outcome is unknown. Raises CommandError if the server refuses the write with any other status than 403 or
        404."""
        kind, _, subject = register
        body, key = b"{}", ""
        if kind is Kind.POST:
            # The text equals the idempotency key, so a duplicate shows as a second tweet with the same text.
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
        """Sends a request and returns the response. If none arrives, counts a failure and returns None.

        If the response says that the store answered too late, sends the request again, at most REPEATS times, as the
        header Retry-After tells clients to. A store can be late while killed processes start again on a busy machine.
        If the last repeat fails too, the caller counts a failure.
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
            return await self.http.ask(method, path, token, body, key=key, within_s=ANSWER_WITHIN_S)
        except (OSError, EOFError, TimeoutError) as error:
            self._drill.failed(f"{method} {path}: {error!r}")
            return None
        finally:
            took = asyncio.get_running_loop().time() - began
            self._drill.result.longest_s = max(self._drill.result.longest_s, took)


def is_store_too_slow(answer: HttpResponse) -> bool:
    """Returns whether the response reports a store that answered too late, rather than a service that is gone."""
    if answer.status == HTTPStatus.GATEWAY_TIMEOUT:
        return True
    return answer.status == HTTPStatus.SERVICE_UNAVAILABLE and orjson.loads(answer.body)["code"] in _STORE_TOO_SLOW
