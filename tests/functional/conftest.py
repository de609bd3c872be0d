"""Fixtures of the functional tests: meshes with a gateway on a loopback port, and users who are signed in.

`web` and `shared_mesh` run one mesh for all tests of a module, which saves its start: 0.3 s on embedded stores, seconds on the cluster
backend. A test that takes one must not depend on being alone in the mesh. Tests that change settings, restart, inject faults or read
global lists (trends, the newest tweets) start a mesh of their own by `own_web`, `mesh` or `start_mesh`; they come last in their module,
since the shared mesh does not run while they do.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
import pytest_asyncio
from roost.identity.v1 import user_service_pb2

from gateway_http.app import Gateway
from gateway_http.server import HttpServer
from services.platform.config import Settings
from services.platform.process import Process
from tests.cluster import backend
from tests.conftest import REPLICAS, SHAPES, Mesh, MeshFactory, mesh_settings, running_mesh
from tests.replicas import AlternatingTransport

PASSWORD = "correct horse battery"
ADMIN = "root_admin"
# Administrators cannot sign up: the operator imports one. The hash is always the same, so that a second import finds the account.
ADMIN_HASH = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()

on_module_loop = pytest.mark.asyncio(loop_scope="module")
_serial = itertools.count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs a test that takes `web` or a fixture named `shared_…` on the event loop of its module, on which these fixtures run."""
    for item in items:
        names = item.fixturenames if isinstance(item, pytest.Function) else ()
        if any(name == "web" or name.startswith("shared_") for name in names):
            item.add_marker(on_module_loop, append=False)


def unique(username: str) -> str:
    """Returns a username that begins with `username`, that no other test of this run has and that begins no other."""
    return f"{username}_{next(_serial):04}"


@dataclass
class Person:
    """A user who signed up over HTTP."""

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

    async def call(self, method: str, path: str, person: Person | None = None, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if person is not None:
            headers |= person.headers
        return await self.client.request(method, path, headers=headers, **options)

    def fresh(self, username: str) -> str:
        """Returns `username`; in a shared mesh one that no other test has and that begins with it."""
        return unique(username) if self._shared else username

    async def sign_up(self, username: str) -> Person:
        """Signs up a new user as `fresh(username)`."""
        username = self.fresh(username)
        body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
        answer = await self.client.post("/v1/auth/signup", json=body)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        return Person(found["user"]["id"], username, found["access_token"], found["refresh_token"])

    async def admin(self) -> Person:
        """Logs the administrator in; the same user for all tests of a shared mesh."""
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


def gateway(process: Process) -> HttpServer:
    """Returns an HTTP server with the gateway of a process, on any free port."""
    app = Gateway(process.channel("gateway"), process.verifier, process.settings, process.health, process.rate_limits)
    return HttpServer(app, "127.0.0.1", 0)


async def open_web(mesh: Mesh, settings: Settings) -> tuple[HttpServer, httpx.AsyncClient]:
    server = gateway(mesh.process)
    port = await server.start()
    return server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20)


@asynccontextmanager
async def web_client(mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    """Runs the gateway of each process, and yields a client that alternates between them."""
    async with AsyncExitStack() as stack:
        ports = []
        for process in mesh.processes:
            server = gateway(process)
            ports.append(await server.start())
            stack.push_async_callback(server.stop)
        url, transport = f"http://127.0.0.1:{ports[0]}", AlternatingTransport(ports)
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20, transport=transport))


@pytest.fixture
async def own_web(start_mesh: MeshFactory) -> AsyncIterator[Web]:
    """The gateway over a mesh of this test alone; `root_admin` is an administrator."""
    mesh = await start_mesh(admins=(ADMIN,))
    async with web_client(mesh) as client:
        yield Web(mesh, client)


@asynccontextmanager
async def module_mesh(folder: Path, wire: str = "inprocess", **changes: Any) -> AsyncIterator[Mesh]:
    """Runs a mesh for several tests, in a namespace that is released at its end and not at the end of a test.

    `changes` are fields of Settings.
    """
    async with AsyncExitStack() as stack:
        if backend.name == "cluster":
            namespace = backend.take()
            stack.callback(backend.give_back, namespace)
            changes = namespace.settings | changes
        yield await stack.enter_async_context(running_mesh(mesh_settings(folder, **changes), wire))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["inprocess", REPLICAS])
async def web(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Web]:
    """The gateway over a mesh that the tests of a module share; `root_admin` is an administrator. With `--all` also over two processes."""
    folder = tmp_path_factory.mktemp("shared")
    async with module_mesh(folder, request.param, admins=(ADMIN,)) as mesh, web_client(mesh) as client:
        yield Web(mesh, client, shared=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SHAPES)
async def shared_mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh that the tests of a module share, once over each of SHAPES.

    Name users by `unique`.
    """
    async with module_mesh(tmp_path_factory.mktemp("shared"), request.param) as mesh:
        yield mesh
