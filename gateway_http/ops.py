"""The ops port of a process: serves liveness, readiness and metrics over plain HTTP to orchestrators and monitoring.

Every process has an ops port. It is separate from the public port, so that probes succeed while the public port is
overloaded, and so that clients outside the mesh cannot request metrics, which take tens of milliseconds to render.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from gateway_http.health_routes import NO_STORE, Health, Livez, Readyz
from gateway_http.load import Load
from gateway_http.problem import HttpError, problem
from gateway_http.request import Receive, Request, Response, Route, Scope, Send
from services.platform.rpc.client_address import NO_PROXIES
from services.platform.rpc.context import Call, current_call

# Seconds for which rendered metrics are cached, so that several scrapers take as much CPU time as one. A scraper reads
# metrics about every 15 s.
METRICS_MAX_AGE_S = 1.0


class Metrics:
    """Serves all metrics of the process to Prometheus, cached for METRICS_MAX_AGE_S seconds."""

    name = "metrics"
    is_probe = True

    def __init__(self, registry: CollectorRegistry = REGISTRY, clock: Callable[[], float] = monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._page = b""
        self._rendered_at = float("-inf")
        self._render_lock = asyncio.Lock()

    async def serve(self, request: Request) -> Response:
        """Returns all metrics of the process in Prometheus's text format."""
        async with self._render_lock:
            if self._clock() - self._rendered_at >= METRICS_MAX_AGE_S:
                # Rendering takes tens of milliseconds, so it runs in a thread and does not block the event loop.
                self._page = await asyncio.to_thread(generate_latest, self._registry)
                self._rendered_at = self._clock()
        return Response(200, ((b"content-type", CONTENT_TYPE_LATEST.encode()), NO_STORE), self._page)


class Ops:
    """ASGI application with the routes /livez, /readyz and /metrics. Other paths are 404; methods other than GET and
    HEAD are 405."""

    def __init__(self, health: Health) -> None:
        self._load = Load()
        self._routes: dict[str, Route] = {"/livez": Livez(), "/readyz": Readyz(health), "/metrics": Metrics()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request, without reading its body. Raises ValueError for other ASGI scopes."""
        if scope["type"] != "http":
            raise ValueError(f"the ops port serves HTTP, not {scope['type']}")
        request = Request(scope, receive, self._load, NO_PROXIES)
        current_call.set(Call(request_id=request.request_id, traceparent=request.traceparent))
        try:
            response = await self._answer(request)
        except Exception as error:
            rendered = problem(error, instance=request.path, trace_id=request.trace_id)
            response = Response(rendered.status, rendered.headers, rendered.body)
        headers: list[Any] = [*response.headers, (b"content-length", str(len(response.body)).encode())]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})

    async def _answer(self, request: Request) -> Response:
        route = self._routes.get(request.scope["path"])
        if route is None:
            raise HttpError(404, "not_found", f"the ops port serves only {', '.join(self._routes)}")
        if request.scope["method"] not in ("GET", "HEAD"):
            raise HttpError(
                405, "method_not_allowed", "this route supports only GET and HEAD", ((b"allow", b"GET, HEAD"),)
            )
        return await route.serve(request)
