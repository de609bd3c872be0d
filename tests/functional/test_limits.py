"""Rate limits of clients that mix protocols, tokens, accounts and processes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from roost.identity.v1 import auth_service_pb2 as pb
from roost.identity.v1 import auth_service_pb2_grpc as pb_grpc

from services.platform.backends import cluster, embedded
from services.platform.redis.rate_limits import UNREPORTED_PART, RedisCounts
from services.platform.rpc import errors
from services.platform.rpc.rate_limit_counts import FAILURES, SLOWED_FAILURES, STRANGERS_FAILURES, MemoryCounts
from tests import redis_servers
from tests.cluster import backend
from tests.conftest import SETTLE_WITHIN_S, Mesh, MeshFactory
from tests.functional.conftest import PASSWORD, Web, open_web

PROXIED = "127.0.0.0/8"
OFFICE, CAFE, ATTACKER = "192.0.2.1", "198.51.100.1", "203.0.113.1"
# Guesses that wait at any time.
GUESSERS = 30


class Town:
    """The gateway and the gRPC port of one process; both trust the client's address in x-forwarded-for."""

    def __init__(self, mesh: Mesh, client: httpx.AsyncClient) -> None:
        self.mesh = mesh
        self.web = Web(mesh, client)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{mesh.process.grpc_port}")
        self.auth = pb_grpc.AuthServiceStub(self.channel)

    async def http(self, address: str, password: str, username: str = "ada", token: str = "") -> Any:
        headers = {"x-forwarded-for": address} | ({"authorization": f"Bearer {token}"} if token else {})
        body = {"username": username, "password": password}
        return await self.web.client.post("/v1/auth/login", json=body, headers=headers)

    async def grpc(self, address: str, password: str, username: str = "ada", token: str = "") -> str:
        metadata = [("x-forwarded-for", address)] + ([("authorization", f"Bearer {token}")] if token else [])
        try:
            await self.auth.Login(pb.LoginRequest(username=username, password=password), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return errors.from_rpc(error).reason
        return "OK"


@pytest.fixture
async def start_town(start_mesh: MeshFactory, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """Starts towns in which no allowance is refilled during the test, however long a busy machine takes."""
    monkeypatch.setattr(embedded, "MemoryCounts", lambda _: MemoryCounts(lambda: 0.0))
    monkeypatch.setattr(
        cluster, "RedisCounts", lambda redis, secret, _: RedisCounts(redis, secret, lambda: 0.0, lambda: 1)
    )

    async def start(**settings: Any) -> Town:
        mesh = await start_mesh(rate_limits=True, trusted_proxies=PROXIED, **settings)
        server, client = await open_web(mesh, mesh.process.settings)
        town = Town(mesh, client)
        ended.extend((town.channel.close, client.aclose, server.stop))
        return town

    ended: list[Any] = []
    yield start
    for end in ended:
        await end()


async def test_login_limit_is_shared_by_protocols_and_tokens(start_town: Any) -> None:
    town = await start_town(logins_per_minute=8)
    tokens = [(await town.web.sign_up(name)).token for name in ("ann", "bob", "cleo")]
    codes = []
    for number in range(6):
        codes.append((await town.http(ATTACKER, "wrong", f"user{number}", tokens[number % 3])).status_code)
        codes.append(await town.grpc(ATTACKER, "wrong", f"user{number}", tokens[number % 3]))
    assert codes == [401, "WRONG_CREDENTIALS"] * 4 + [429, "RATE_LIMITED"] * 2
    # Other addresses are not limited.
    assert (await town.http(OFFICE, PASSWORD, "ann")).status_code == 200


async def test_sign_up_limit_is_shared_by_protocols_and_tokens(start_town: Any) -> None:
    town = await start_town(sign_ups_per_hour=4)
    token, codes = "", []

    def body(name: str) -> dict[str, str]:
        return {"username": name, "email": f"{name}@example.com", "password": PASSWORD}

    for number in range(3):
        headers = {"x-forwarded-for": ATTACKER} | ({"authorization": f"Bearer {token}"} if token else {})
        answer = await town.web.client.post("/v1/auth/signup", json=body(f"http{number}"), headers=headers)
        codes.append(answer.status_code)
        token = token or answer.json()["access_token"]
        try:
            request = pb.SignUpRequest(**body(f"grpc{number}"))
            await town.auth.SignUp(request, metadata=[("x-forwarded-for", ATTACKER)])
            codes.append("OK")
        except grpc.aio.AioRpcError as error:
            codes.append(errors.from_rpc(error).reason)
    assert codes == [201, "OK", 201, "OK", 429, "RATE_LIMITED"]
    refused = await town.web.client.post("/v1/auth/signup", json=body("late"), headers={"x-forwarded-for": ATTACKER})
    assert "in 60 minutes" in refused.json()["detail"]
    assert refused.headers["retry-after"] == "900"
    # Other addresses may sign up, and this address may still log in.
    answer = await town.web.client.post("/v1/auth/signup", json=body("ada"), headers={"x-forwarded-for": OFFICE})
    assert answer.status_code == 201
    assert (await town.http(ATTACKER, PASSWORD)).status_code == 200


@pytest.mark.long("cluster")
async def test_login_guesses_at_one_account_are_limited_and_owner_logs_in(start_town: Any) -> None:
    town = await start_town(logins_per_minute=1_000)
    await town.web.sign_up("ada")
    assert (await town.http(OFFICE, PASSWORD)).status_code == 200
    checked = 0
    for guesser in range(30):
        address = f"203.0.113.{guesser}"
        codes = [(await town.http(address, f"guess {number}")).status_code for number in range(FAILURES.calls)]
        codes += [401 if await town.grpc(address, "guess") == "WRONG_CREDENTIALS" else 429]
        assert codes[-1] == 429
        checked += codes.count(401)
    # 100 failures of all addresses together, then three of each address.
    assert checked <= 100 + 3 * 21
    assert (await town.http(OFFICE, PASSWORD)).status_code == 200
    assert await town.grpc(CAFE, PASSWORD) == "OK"


# In memory and in Redis the limits of one process are the same, and these guesses take long.
@pytest.mark.long("cluster")
async def test_login_flood_of_guesses_does_not_delay_owner(start_town: Any) -> None:
    town = await start_town(logins_per_minute=10_000, bcrypt_cost=9)
    await town.web.sign_up("ada")
    numbers, hashed = itertools.count(), []

    async def guess_forever() -> None:
        while True:
            answer = await town.http(ATTACKER, "wrong", f"user{next(numbers)}")
            # 504: on a busy machine a guess waits longer for its turn than its deadline.
            assert answer.status_code in {401, 429, 504}
            if answer.status_code == 401:
                hashed.append(answer)

    flood = [asyncio.create_task(guess_forever()) for _ in range(GUESSERS)]
    overtaken = []
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while not hashed:
            await asyncio.sleep(0.01)
        for _ in range(3):
            before = len(hashed)
            assert (await town.http(OFFICE, PASSWORD)).status_code == 200
            overtaken.append(len(hashed) - before)
    for task in flood:
        task.cancel()
    ended = await asyncio.gather(*flood, return_exceptions=True)
    assert {type(error) for error in ended} == {asyncio.CancelledError}
    # In the order of arrival, each log-in would wait for the hash of every guess that waits already.
    assert min(overtaken) < GUESSERS / 2


@pytest.fixture
async def start_towns(start_town: Any, tmp_path: Path) -> Any:
    """Starts two processes of one mesh."""

    async def start(**settings: Any) -> list[Town]:
        shared = backend.of(tmp_path / "towns").settings | settings
        return [await start_town(**shared) for _ in range(2)]

    return start


async def sign_up(town: Town, name: str) -> str:
    request = pb.SignUpRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
    try:
        await town.auth.SignUp(request, metadata=[("x-forwarded-for", ATTACKER)])
    except grpc.aio.AioRpcError as error:
        return errors.from_rpc(error).reason
    return "OK"


async def read(town: Town, address: str) -> httpx.Response:
    """Reads a profile without a token."""
    return await town.web.client.get("/v1/users/by/username/ada", headers={"x-forwarded-for": address})


@pytest.mark.cluster
async def test_sign_up_limit_is_shared_by_processes(start_towns: Any) -> None:
    towns = await start_towns(sign_ups_per_hour=5)
    codes = [await sign_up(towns[number % 2], f"user{number}") for number in range(8)]
    assert codes == ["OK"] * 5 + ["RATE_LIMITED"] * 3


@pytest.mark.cluster
async def test_login_failures_at_one_account_are_shared_by_processes(start_towns: Any) -> None:
    towns = await start_towns(logins_per_minute=1_000)
    assert await sign_up(towns[0], "ada") == "OK"
    # Successful log-ins do not count.
    assert {await towns[number % 2].grpc(OFFICE, PASSWORD) for number in range(FAILURES.calls)} == {"OK"}
    codes = [await towns[number % 2].grpc(OFFICE, "wrong") for number in range(FAILURES.calls + 2)]
    assert codes == ["WRONG_CREDENTIALS"] * FAILURES.calls + ["RATE_LIMITED"] * 2
    assert await towns[0].grpc(CAFE, PASSWORD) == "OK"
    # The user logged in at this address through the other process, so strangers do not slow the user down here.
    for guesser in range(STRANGERS_FAILURES.calls // FAILURES.calls + 1):
        for number in range(FAILURES.calls):
            await towns[number % 2].grpc(f"203.0.113.{guesser}", "wrong")
    assert {await towns[1].grpc(CAFE, "wrong") for _ in range(SLOWED_FAILURES.calls + 1)} == {"WRONG_CREDENTIALS"}


@pytest.mark.cluster
async def test_read_limit_is_shared_by_processes_up_to_unreported_requests(start_towns: Any) -> None:
    limit = 2 * UNREPORTED_PART
    towns = await start_towns(reads_per_minute=limit)
    answers = [await read(towns[number % 2], OFFICE) for number in range(2 * limit)]
    allowed = [answer.status_code != 429 for answer in answers].count(True)
    assert limit <= allowed <= limit + 2 * 2 * limit // UNREPORTED_PART
    assert [(await read(town, OFFICE)).status_code for town in towns] == [429, 429]
    refused = await read(towns[0], OFFICE)
    # Requests above the limit are counted too, so the client waits longer than for one request.
    assert int(refused.headers["retry-after"]) >= 60 / limit
    assert refused.headers["ratelimit"].startswith('"read";r=0;t=')
    assert (await read(towns[0], CAFE)).status_code == 404


@pytest.mark.cluster
async def test_limits_without_redis_continue_in_each_process_and_are_shared_again(
    start_towns: Any, tmp_path: Path
) -> None:
    with redis_servers.server(tmp_path / "redis") as redis:
        towns = await start_towns(redis_url=redis.url, logins_per_minute=4, reads_per_minute=4)
        assert [await towns[number % 2].grpc(OFFICE, "wrong") for number in range(6)][3:] == [
            "WRONG_CREDENTIALS",
            "RATE_LIMITED",
            "RATE_LIMITED",
        ]
        redis.kill()
        for town in towns:
            codes = [await town.grpc(CAFE, "wrong") for _ in range(5)]
            assert codes == ["WRONG_CREDENTIALS"] * 4 + ["RATE_LIMITED"]
            statuses = [(await read(town, CAFE)).status_code for _ in range(5)]
            assert statuses == [404] * 4 + [429]
        redis.start()
        async with asyncio.timeout(SETTLE_WITHIN_S):
            for number in itertools.count():
                # Three attempts through each process: more in all than the limit of 4 allows.
                attempts = [(f"203.0.113.{number}", "wrong", f"user{number}")] * 3
                if "RATE_LIMITED" in [await town.grpc(*attempt) for town in towns for attempt in attempts]:
                    break
                await asyncio.sleep(0.05)
