"""A mesh with its gateway on a loopback port, and people who are signed in to it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import bcrypt
import httpx
import pytest
import pytest_asyncio
from roost.identity.v1 import user_service_pb2

from gateway_http.app import Gateway
from gateway_http.server import HttpServer
from services.platform.config import Settings
from services.platform.transport.message_guard import MutationGuard
from tests.cluster import backend
from tests.conftest import Mesh, MeshFactory, mesh_settings, start_process

PASSWORD = "correct horse battery"
ADMIN = "root_admin"
# Nobody can sign up as an administrator: the operator imports one. The same for all, so that a repeat finds the account.
ADMIN_HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()

# For tests that share one mesh: `shared_web` lives on the loop of their module.
on_shared_web = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Person:
    """Somebody signed up over HTTP."""

    id: str
    username: str
    token: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


class Web:
    """An HTTP client of the gateway."""

    def __init__(self, mesh: Mesh, client: httpx.AsyncClient, shared: bool = False) -> None:
        self.mesh = mesh
        self.client = client
        self._shared = shared
        self._serial = itertools.count(1)

    async def call(self, method: str, path: str, person: Person | None = None, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if person is not None:
            headers |= person.headers
        return await self.client.request(method, path, headers=headers, **options)

    def fresh(self, username: str) -> str:
        """The name, and where tests share the mesh one that nobody there has."""
        return f"{username}_{next(self._serial)}" if self._shared else username

    async def sign_up(self, username: str) -> Person:
        """Signs up somebody new, whose name only begins so where tests share the mesh."""
        username = self.fresh(username)
        body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
        answer = await self.client.post("/v1/auth/signup", json=body)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        return Person(found["user"]["id"], username, found["access_token"], found["refresh_token"])

    async def admin(self) -> Person:
        """The administrator, who is the same for all who share the mesh."""
        imported = user_service_pb2.ImportUsersRequest()
        imported.users.add(username=ADMIN, email=f"{ADMIN}@example.com", password_hash=ADMIN_HASH)
        await self.mesh.operator_users.ImportUsers(imported)
        answer = await self.client.post("/v1/auth/login", json={"username": ADMIN, "password": PASSWORD})
        assert answer.is_success, answer.text
        found = answer.json()
        return Person(found["user"]["id"], ADMIN, found["access_token"], found["refresh_token"])

    async def post(self, person: Person, text: str) -> str:
        answer = await self.call("POST", "/v1/tweets", person, json={"text": text})
        assert answer.status_code == 201, answer.text
        tweet_id: str = answer.json()["id"]
        return tweet_id

    async def home(self, person: Person) -> list[str]:
        answer = await self.call("GET", "/v1/timelines/home?page_size=100", person)
        assert answer.status_code == 200, answer.text
        return [tweet["id"] for tweet in answer.json()["tweets"]]


async def open_web(mesh: Mesh, settings: Settings) -> tuple[HttpServer, httpx.AsyncClient]:
    process = mesh.process
    app = Gateway(process.channel("gateway"), process.verifier, settings, process.health, process.rate_limits)
    server = HttpServer(app, "127.0.0.1", 0)
    port = await server.start()
    return server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20)


@pytest.fixture
async def web(start_mesh: MeshFactory) -> AsyncIterator[Web]:
    """The gateway over a mesh in process."""
    mesh = await start_mesh()
    server, client = await open_web(mesh, mesh.process.settings)
    async with client:
        yield Web(mesh, client)
    await server.stop()


@pytest.fixture
async def admin_web(start_mesh: MeshFactory) -> AsyncIterator[Web]:
    """The same, where `root_admin` is an administrator."""
    mesh = await start_mesh(admins=(ADMIN,))
    server, client = await open_web(mesh, mesh.process.settings)
    async with client:
        yield Web(mesh, client)
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_web(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Web]:
    """The same, one for all tests of a module that take it `on_shared_web`: none may count on being alone there."""
    async with AsyncExitStack() as stack:
        changes: dict[str, Any] = {"admins": (ADMIN,)}
        if backend.name == "cluster":
            namespace = backend.take()
            stack.callback(backend.give_back, namespace)
            changes |= namespace.settings
        settings = mesh_settings(tmp_path_factory.mktemp("shared"), **changes)
        process = await start_process(settings, checker=MutationGuard())
        mesh = Mesh(process, "inprocess")
        stack.push_async_callback(process.stop)
        server, client = await open_web(mesh, settings)
        stack.push_async_callback(server.stop)
        await stack.enter_async_context(client)
        yield Web(mesh, client, shared=True)
    assert process.checker is not None
    process.checker.verify()
