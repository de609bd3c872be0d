"""A mesh with its gateway on a loopback port, and people who are signed in to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from gateway_http.app import Gateway
from gateway_http.server import HttpServer
from services.common.config import Settings
from tests.conftest import Mesh, MeshFactory

PASSWORD = "correct horse battery"


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

    def __init__(self, mesh: Mesh, client: httpx.AsyncClient) -> None:
        self.mesh = mesh
        self.client = client

    async def call(self, method: str, path: str, person: Person | None = None, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if person is not None:
            headers |= person.headers
        return await self.client.request(method, path, headers=headers, **options)

    async def sign_up(self, username: str) -> Person:
        body = {"username": username, "email": f"{username}@example.com", "password": PASSWORD}
        answer = await self.client.post("/v1/auth/signup", json=body)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        return Person(found["user"]["id"], username, found["access_token"], found["refresh_token"])

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
    app = Gateway(process.channel("gateway"), process.verifier, settings, process.health)
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
    mesh = await start_mesh(admins=("root_admin",))
    server, client = await open_web(mesh, mesh.process.settings)
    async with client:
        yield Web(mesh, client)
    await server.stop()
