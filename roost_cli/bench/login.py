"""Measures log-ins over HTTP, and the check of a password alone: bcrypt is nearly all of a log-in, on purpose."""

from __future__ import annotations

import asyncio
import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import bcrypt
import grpc as grpc_lib
import orjson
from roost.identity.v1 import user_service_pb2, user_service_pb2_grpc

from roost_cli import connection, progress
from roost_cli.bench import cpu, http_load, local_mesh, table
from roost_cli.bench.percentiles import percentile
from roost_cli.exit_codes import call_error

TABLE = "login"
LOGIN, USERS = "/v1/auth/login", "/v1/users"
MESH, BARE = "Roost", "bcrypt alone"
# Number of accounts that log in. They are created for the measurement and deactivated after it.
ACCOUNTS = 8
# The default of the setting `bcrypt_cost`.
COST = 12
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class LoginRound:
    """The result of one round: the latencies of the log-ins, its length and the server's CPU time, in seconds."""

    latencies_s: Sequence[float]
    seconds: float
    cpu_s: float

    @property
    def cpu_ms(self) -> float:
        """Returns the CPU time per log-in in milliseconds."""
        return self.cpu_s * 1e3 / len(self.latencies_s)


CPU_TITLE = "CPU ms a log-in"
MEASURES = (
    table.Measure[LoginRound]("log-ins/s", lambda one: len(one.latencies_s) / one.seconds, ",.1f"),
    table.Measure[LoginRound]("p50 ms", lambda one: percentile(one.latencies_s, 50) * 1e3, ",.0f"),
    table.Measure[LoginRound]("p99 ms", lambda one: percentile(one.latencies_s, 99) * 1e3, ",.0f"),
    table.Measure[LoginRound](CPU_TITLE, lambda one: one.cpu_ms, ",.1f", ratio=True),
)
# Everything beside bcrypt should stay within the noise of a measurement of bcrypt.
LIMITS = (table.Limit(MESH, CPU_TITLE, 1.2),)


def run(rounds: int, seconds: int, callers: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    """Measures log-ins to the mesh by `callers` concurrent callers, and prints a table of the results. Creates accounts
    for it, and deactivates them afterwards.

    Raises CommandError if the mesh cannot be reached or limits rates, if a log-in fails, or if `output` refuses the
    table.
    """
    asyncio.run(_run(rounds, seconds, callers, mesh, output))


async def _run(rounds: int, seconds: int, callers: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    shown = progress.for_stream()
    password = secrets.token_hex(8)
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(COST))
    names = [f"b{secrets.token_hex(6)}" for _ in range(ACCOUNTS)]
    ids = await _import(mesh, names, hashed)
    bodies = [orjson.dumps({"username": name, "password": password}) for name in names]
    requests = [http_load.request("POST", LOGIN, mesh.http, body=body) for body in bodies]
    cases: dict[str, list[LoginRound]] = {MESH: [], BARE: []}
    with cpu.Bystanders(mesh.pids) as bystanders:
        async with http_load.connections(mesh.http, callers) as opened:
            for number in range(1, rounds + 1):
                cases[MESH].append(await _mesh_round(mesh, opened, requests, seconds))
                cases[BARE].append(_bcrypt_round(password.encode(), hashed, seconds))
                shown.say(f"round {number}: {', '.join(f'{n} {r[-1].cpu_ms:,.1f} ms' for n, r in cases.items())}")
    local = await local_mesh.tokens_of(mesh, ids)
    async with http_load.connections(mesh.http, 1) as (one,):
        for user_id, token in local.items():
            await one.ask(http_load.request("DELETE", f"{USERS}/{user_id}", mesh.http, token))
    note = (
        f"{ACCOUNTS} accounts with bcrypt cost {COST}; {rounds} × {seconds} s for each in turn, {callers} callers in a "
        f"closed loop; {cpu.processor()}; Python {platform.python_version()}.{bystanders.warning()}"
    )
    output.publish(TABLE, note, table.compare(cases, MEASURES, BARE), LIMITS)


async def _import(mesh: local_mesh.LocalMesh, names: Sequence[str], hashed: bytes) -> list[int]:
    request = user_service_pb2.ImportUsersRequest()
    for name in names:
        request.users.add(username=name, email=f"{name}@people.invalid", password_hash=hashed.decode())
    async with connection.connect(mesh.target) as channels:
        stub = user_service_pb2_grpc.UserServiceStub(channels[0])
        try:
            answer = await stub.ImportUsers(request, metadata=mesh.target.operator(), timeout=TIMEOUT_S)
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error, "importing accounts") from error
    return list(answer.user_ids)


async def _mesh_round(
    mesh: local_mesh.LocalMesh, opened: Sequence[http_load.Connection], requests: Sequence[bytes], seconds: int
) -> LoginRound:
    loop = asyncio.get_running_loop()
    cpu_begun, begun = cpu.seconds(mesh.pids), loop.time()
    samples = await http_load.run(opened, lambda number: requests[number % len(requests)], seconds)
    seconds_taken = loop.time() - begun
    return LoginRound([one.latency_s for one in samples], seconds_taken, cpu.seconds(mesh.pids) - cpu_begun)


def _bcrypt_round(password: bytes, hashed: bytes, seconds: int) -> LoginRound:
    latencies_s: list[float] = []
    cpu_begun, begun = time.process_time(), time.monotonic()
    while not latencies_s or time.monotonic() - begun < seconds:
        since = time.monotonic()
        bcrypt.checkpw(password, hashed)
        latencies_s.append(time.monotonic() - since)
    return LoginRound(latencies_s, time.monotonic() - begun, time.process_time() - cpu_begun)
