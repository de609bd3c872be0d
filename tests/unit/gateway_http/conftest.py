"""Fixtures: a gateway over a fake channel with configured responses, and an ASGI client for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway_http.app import Gateway
from services.platform.config import Settings
from services.platform.health import SERVING, Health
from services.platform.rpc import errors
from services.platform.rpc.context import Actor, Call, current
from services.platform.rpc.rate_limit_counts import MemoryCounts
from services.platform.rpc.rate_limits import RateLimits
from services.platform.rpc.reasons import Reason

ALICE = Actor(user_id=7, session_id=1, token="alice-token")


class FakeChannel:
    """Fake channel. `answers` maps a method's name to a message, an exception, or a function of the request."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, Any, Call]] = []

    def unary_unary(self, path: str, serializer: Any, deserializer: Any) -> Callable[[Any], Any]:
        name = path.rpartition("/")[2]

        async def call(request: Any) -> Any:
            self.asked.append((name, request, current()))
            answer = self.answers.get(name, errors.unimplemented(f"{path} is not served yet"))
            if callable(answer):
                answer = answer(request)
            if asyncio.iscoroutine(answer):
                answer = await answer
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call

    @property
    def request(self) -> Any:
        """Returns the last request."""
        return self.asked[-1][1]


class FakeVerifier:
    """Fake verifier of one token; `cached` returns it only after `verify` did."""

    def __init__(self) -> None:
        self.known: dict[str, Actor] = {}

    def cached(self, token: str) -> Actor | None:
        return self.known.get(token)

    async def verify(self, token: str) -> Actor:
        if token != ALICE.token:
            raise errors.unauthenticated("the access token is not valid", Reason.TOKEN_INVALID)
        self.known[token] = ALICE
        return ALICE


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    raw_headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Sends requests to a gateway as an ASGI server does."""

    def __init__(self, gateway: Any, channel: FakeChannel) -> None:
        self.gateway = gateway
        self.channel = channel

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        signed_in: bool = False,
        headers: dict[str, str] | None = None,
        address: str = "192.0.2.1",
    ) -> Answer:
        path, _, query = target.partition("?")
        sent = {"host": "test"} | ({"authorization": f"Bearer {ALICE.token}"} if signed_in else {})
        if body is not None:
            sent |= {"content-type": "application/json", "content-length": str(len(body))}
        sent |= headers or {}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "client": (address, 1234),
        }
        pending = [{"type": "http.request", "body": body or b"", "more_body": False}]
        events: list[Any] = []

        async def receive() -> Any:
            return pending.pop(0) if pending else {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            events.append(event)

        await self.gateway(scope, receive, send)
        start, *rest = events
        raw = list(start["headers"])
        found = {name.decode(): value.decode("latin-1") for name, value in raw}
        return Answer(start["status"], found, b"".join(event.get("body", b"") for event in rest), raw)

    async def json(self, method: str, target: str, body: Any, **options: Any) -> Answer:
        return await self.ask(method, target, json.dumps(body).encode(), **options)


def make_client(**settings: Any) -> Client:
    channel = FakeChannel()
    given = Settings(**({"rate_limits": False} | settings))
    gateway = Gateway(
        channel,  # type: ignore[arg-type]
        FakeVerifier(),  # type: ignore[arg-type]
        given,
        lambda: Health(SERVING, {"tweet": SERVING, "graph": SERVING}),
        RateLimits(given, MemoryCounts(time.monotonic)),
    )
    return Client(gateway, channel)


@pytest.fixture
def client() -> Client:
    return make_client()


@pytest.fixture
def limited() -> Callable[..., Client]:
    """Returns a factory of clients whose gateway applies rate limits, with the given settings."""
    return lambda **settings: make_client(rate_limits=True, **settings)
