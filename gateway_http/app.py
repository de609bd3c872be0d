"""The gateway as an ASGI application: serves all routes that the protos declare, the probes and the Connect
protocol."""

from __future__ import annotations

import asyncio
from time import perf_counter

import grpc
import structlog
from prometheus_client import Counter, Histogram
from roost.options.v1 import options_pb2 as options

from gateway_http.codec.binding import Codec
from gateway_http.compat import connect
from gateway_http.compression import MIN_BYTES, accepts_gzip
from gateway_http.cors import Cors
from gateway_http.health_routes import Health, Livez, Readyz
from gateway_http.load import Load
from gateway_http.problem import CLIENT_CLOSED_REQUEST, problem
from gateway_http.request import (
    SECURITY_HEADERS,
    SEND_WHOLE,
    ClientGoneError,
    Receive,
    Request,
    Response,
    Route,
    Scope,
    Send,
)
from gateway_http.router import Binding, Router, bindings
from gateway_http.rpc_route import RouteDeps, RpcRoute
from services.platform.auth.tokens import Verifier
from services.platform.config import Settings
from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.client_address import TrustedProxies, networks
from services.platform.rpc.context import Call, current_call
from services.platform.rpc.contract import methods
from services.platform.rpc.rate_limits import RateLimits
from services.platform.rpc.reasons import Reason

# After a response with status 413, the rest of the request body is read and discarded: at most this many bytes, for at
# most this many seconds. Closing a socket that has unread bytes sends a TCP reset, and a reset makes the client lose
# the response.
MAX_DISCARDED_BYTES = 1 << 20
DISCARD_TIMEOUT_S = 2.0

# Statuses of responses without a body. They get no header content-length.
BODILESS_STATUSES = frozenset({204, 304})

log = structlog.get_logger()

REQUESTS = Counter("roost_http_requests", "HTTP responses sent.", ("route", "status"))
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_SECONDS = Histogram(
    "roost_http_request_seconds",
    "Seconds from the end of the request's headers to its response.",
    ("route",),
    buckets=BUCKETS,
)

NO_ROUTE = "none"
PREFLIGHT = "preflight"


class Gateway:
    """ASGI application that calls services over `channel`, with the rights of a client outside the mesh.

    `health` returns the health of this process. `rate_limits` are shared with the gRPC server of the same process. The
    constructor raises TypeError or ValueError if the protos declare two methods on one route, or a field whose type the
    gateway cannot convert from or to JSON.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        verifier: Verifier,
        settings: Settings,
        health: Health,
        rate_limits: RateLimits,
    ) -> None:
        deps = RouteDeps(channel, verifier, rate_limits, Codec())
        self._proxies = TrustedProxies(networks(settings.trusted_proxies))
        entries: list[tuple[Binding, Route]] = [
            (Binding("GET", "/livez"), Livez()),
            (Binding("GET", "/readyz"), Readyz(health)),
            *connect.routes(deps),
        ]
        for method in methods().values():
            if method.policy.access != options.ACCESS_MESH:
                entries.extend((binding, RpcRoute(method, binding, deps)) for binding in bindings(method))
        self._router: Router[Route] = Router(entries)
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._load = Load()
        self._logs_requests = settings.log_level == "debug"
        self._request_counters: dict[tuple[str, int], Counter] = {}
        self._latency_histograms: dict[str, Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one HTTP request; acknowledges lifespan events; closes a WebSocket with code 1008."""
        if scope["type"] != "http":
            await _serve_other_scope(scope, receive, send)
            return
        started_at = perf_counter()
        request = Request(scope, receive, self._load, self._proxies)
        if self._cors is not None:
            request.response_headers.extend(self._cors.headers(request.headers.get(b"origin")))
        # Each log line of this asyncio task takes the request id and the trace id from `current_call`.
        current_call.set(Call(request_id=request.request_id, traceparent=request.traceparent))
        try:
            with self._load:
                route, response = await self._answer(request)
        except ClientGoneError:
            self._observe(NO_ROUTE, CLIENT_CLOSED_REQUEST, started_at, request)
            return
        self._observe(route, response.status, started_at, request)
        await _send(request, response, send)

    async def _answer(self, request: Request) -> tuple[str, Response]:
        """Returns the name of the matched route and the response. The name is NO_ROUTE if no route matched, PREFLIGHT
        for a CORS preflight.

        Renders every exception as problem+json, except ClientGoneError, which it raises.
        """
        route = NO_ROUTE
        try:
            request.check_headers()
            if self._cors is not None and self._cors.is_preflight(request.scope["method"], request.headers):
                return PREFLIGHT, self._cors.preflight(
                    request.headers[b"origin"], self._router.allowed(request.raw_path)
                )
            found, request.path_values = self._router.match(request.scope["method"], request.raw_path)
            route = found.name
            if not found.is_probe:
                # If a liveness probe were rejected, the orchestrator would restart the busy process, and the other
                # processes would get its load.
                self._load.check()
            return route, await found.serve(request)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            # The process is stopping, and its time limit for active requests has passed. This task serves only this
            # request, so no other code waits for the cancellation.
            error: Exception = errors.unavailable("the server is stopping: retry the request", reason=Reason.STOPPING)
        except Exception as caught:
            error = caught
        rendered = problem(error, instance=request.path, trace_id=request.trace_id)
        return route, Response(rendered.status, (*rendered.headers, *SECURITY_HEADERS), rendered.body)

    def _observe(self, route: str, status: int, started_at: float, request: Request) -> None:
        took = perf_counter() - started_at
        # `labels()` takes longer than `inc()`, so its results are cached.
        counter = self._request_counters.get((route, status))
        if counter is None:
            counter = self._request_counters[route, status] = REQUESTS.labels(route, str(status))
        timer = self._latency_histograms.get(route)
        if timer is None:
            timer = self._latency_histograms[route] = REQUEST_SECONDS.labels(route)
        counter.inc()
        timer.observe(took)
        if self._logs_requests:
            method, ms = request.scope["method"], round(took * 1000, 3)
            log.debug(
                LogEvent.HTTP_REQUEST_SERVED, method=method, route=route, status=status, ms=ms, user=request.user_id
            )


async def _send(request: Request, response: Response, send: Send) -> None:
    headers = [*response.headers, *request.response_headers]
    payload = response.body
    if response.gzip is not None and len(payload) > MIN_BYTES:
        accepted = request.headers.get(b"accept-encoding")
        if accepted is not None and accepts_gzip(accepted):
            payload = response.gzip()
            headers.append((b"content-encoding", b"gzip"))
    if response.status not in BODILESS_STATUSES:
        headers.append((b"content-length", str(len(payload)).encode()))
    body = b"" if request.scope["method"] == "HEAD" else payload
    is_in_parts = response.status == 413 and b"expect" not in request.headers
    send_whole = request.scope.pop(SEND_WHOLE, None)
    if send_whole is not None and not is_in_parts:
        await send_whole(response.status, headers, body)
        return
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if is_in_parts:
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await _discard_body(request.receive)
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.body", "body": body})


async def _discard_body(receive: Receive) -> None:
    left = MAX_DISCARDED_BYTES
    try:
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            while left > 0:
                event = await receive()
                left -= len(event.get("body", b""))
                if event["type"] == "http.disconnect" or not event.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _serve_other_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """Acknowledges the ASGI lifespan events without further work. Closes a WebSocket with code 1008, because the
    gateway serves no WebSockets."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    await receive()
    await send({"type": "websocket.close", "code": 1008})
