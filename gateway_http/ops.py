"""The ops port of a process: liveness, readiness and metrics over plain HTTP, for the machines that watch it.

Every process has one, gateway or not. It takes no user's request, so it answers while the public port is full, and the metrics, which cost
much more to make than to read, are out of the reach of strangers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from gateway_http.health_routes import NO_STORE, Health, Livez, Readyz
from gateway_http.load import Load
from gateway_http.problem import Refusal, problem
from gateway_http.request import Receive, Request, Response, Route, Scope, Send
from services.platform.rpc.client_address import NO_PROXIES

# Scrapers come every 15 s or so; a page is made at most this often, however many ask.
METRICS_EVERY_S = 1.0


class Metrics:
    """Serves what Prometheus scrapes: a page of all metrics of the process that is at most METRICS_EVERY_S old."""

    name = "metrics"
    is_probe = True

    def __init__(self, registry: CollectorRegistry = REGISTRY, clock: Callable[[], float] = monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._page = b""
        self._made_at = float("-inf")
        self._making = asyncio.Lock()

    async def serve(self, request: Request) -> Response:
        """All metrics of the process, in Prometheus's text format."""
        async with self._making:
            if self._clock() - self._made_at >= METRICS_EVERY_S:
                # In a thread: tens of milliseconds, during which the loop goes on.
                self._page = await asyncio.to_thread(generate_latest, self._registry)
                self._made_at = self._clock()
        return Response(200, ((b"content-type", CONTENT_TYPE_LATEST.encode()), NO_STORE), self._page)


class Ops:
    """Serves the three routes as an ASGI application; 404 for any other path, 405 for any method but GET and HEAD."""

    def __init__(self, health: Health) -> None:
        self._load = Load()
        self._routes: dict[str, Route] = {"/livez": Livez(), "/readyz": Readyz(health), "/metrics": Metrics()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request. The body, if there is one, is not read: no route takes one."""
        if scope["type"] != "http":
            raise ValueError(f"the ops port serves HTTP, not {scope['type']}")
        request = Request(scope, receive, self._load, NO_PROXIES)
        try:
            response = await self._answer(request)
        except Exception as error:
            told = problem(error, instance=request.path, request_id=request.request_id, trace_id=request.trace_id)
            response = Response(told.status, told.headers, told.body)
        headers: list[Any] = [*response.headers, (b"content-length", str(len(response.body)).encode())]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})

    async def _answer(self, request: Request) -> Response:
        route = self._routes.get(request.scope["path"])
        if route is None:
            raise Refusal(404, "not_found", f"the ops port has {', '.join(self._routes)} and nothing else")
        if request.scope["method"] not in ("GET", "HEAD"):
            raise Refusal(405, "method_not_allowed", "ask by GET", ((b"allow", b"GET, HEAD"),))
        return await route.serve(request)
