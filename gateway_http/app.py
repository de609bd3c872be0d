"""The gateway as an ASGI application: every route compiled from the contract, one path for all of them."""

from __future__ import annotations

import asyncio
from time import perf_counter

import grpc
from prometheus_client import Counter, Histogram
from roost.options.v1 import options_pb2 as options

from gateway_http.codec.binding import Codec
from gateway_http.compat import connect
from gateway_http.compression import LEAST_BYTES, accepts_gzip
from gateway_http.cors import Cors
from gateway_http.health_routes import Health, Livez, Readyz
from gateway_http.load import Load
from gateway_http.problem import CLIENT_CLOSED_REQUEST, problem
from gateway_http.request import SECURITY, ClientGoneError, Receive, Request, Response, Route, Scope, Send
from gateway_http.response_cache import ResponseCache
from gateway_http.router import Binding, Router, bindings
from gateway_http.rpc_route import RouteDeps, RpcRoute
from services.platform.auth.tokens import Verifier
from services.platform.config import Settings
from services.platform.rpc import errors
from services.platform.rpc.client_address import TrustedProxies, networks
from services.platform.rpc.contract import methods
from services.platform.rpc.rate_limits import RateLimits
from services.platform.rpc.reasons import Reason

# After a 413 this much more is read and thrown away, for this long: a close with unread bytes would take the answer with it.
LINGER_BYTES = 1 << 20
LINGER_S = 2.0

# Answers that never have a body, and so no length of one.
WITHOUT_CONTENT = frozenset({204, 304})

REQUESTS = Counter("roost_http_requests", "HTTP requests answered.", ("route", "status"))
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SECONDS = Histogram(
    "roost_http_request_seconds", "Time from the request's headers to its answer.", ("route",), buckets=BUCKETS
)

NO_ROUTE = "none"
PREFLIGHT = "preflight"


class Gateway:
    """Serves HTTP by calling services over `channel`, whose caller is a client outside the mesh.

    `health` looks at the process; `rate_limits` are the process's own, which its gRPC server asks too. Contradictions in the contract
    (two methods on one route, a type that cannot be read) are exceptions here, not answers later.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        verifier: Verifier,
        settings: Settings,
        health: Health,
        rate_limits: RateLimits,
    ) -> None:
        front = RouteDeps(channel, verifier, rate_limits, Codec(), ResponseCache())
        self._proxies = TrustedProxies(networks(settings.trusted_proxies))
        entries: list[tuple[Binding, Route]] = [
            (Binding("GET", "/livez"), Livez()),
            (Binding("GET", "/readyz"), Readyz(health)),
            *connect.routes(front),
        ]
        for method in methods().values():
            if method.policy.access != options.ACCESS_MESH:
                entries.extend((binding, RpcRoute(method, binding, front)) for binding in bindings(method))
        self._router: Router[Route] = Router(entries)
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._load = Load()
        self._observed: dict[tuple[str, int], Counter] = {}
        self._timed: dict[str, Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http":
            await _refuse_other(scope, receive, send)
            return
        begun = perf_counter()
        request = Request(scope, receive, self._load, self._proxies)
        if self._cors is not None:
            request.response_headers.extend(self._cors.headers(request.headers.get(b"origin")))
        try:
            with self._load:
                route, response = await self._answer(request)
        except ClientGoneError:
            self._observe(NO_ROUTE, CLIENT_CLOSED_REQUEST, begun)
            return
        self._observe(route, response.status, begun)
        await _send(request, response, send)

    async def _answer(self, request: Request) -> tuple[str, Response]:
        """The route's name and its answer; an exception becomes a problem."""
        route = NO_ROUTE
        try:
            request.check_headers()
            if self._cors is not None and self._cors.is_preflight(request.scope["method"], request.headers):
                return PREFLIGHT, self._cors.preflight(
                    request.headers[b"origin"], self._router.allowed(request.raw_path)
                )
            found, request.values = self._router.match(request.scope["method"], request.raw_path)
            route = found.name
            if not found.is_probe:
                # A probe that is refused gets a busy process restarted, and its load moves to the next one.
                self._load.check()
            return route, await found.serve(request)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            # The server's grace is over, or the callee's: this task is the request's own, so nobody above waits for the exception.
            error: Exception = errors.unavailable("the server is stopping", reason=Reason.STOPPING)
        except Exception as caught:
            error = caught
        response_headers = problem(
            error, instance=request.path, request_id=request.request_id, trace_id=request.trace_id
        )
        return route, Response(response_headers.status, (*response_headers.headers, *SECURITY), response_headers.body)

    def _observe(self, route: str, status: int, begun: float) -> None:
        # The look-ups of labels would cost more than the counting.
        counter = self._observed.get((route, status))
        if counter is None:
            counter = self._observed[route, status] = REQUESTS.labels(route, str(status))
        timer = self._timed.get(route)
        if timer is None:
            timer = self._timed[route] = SECONDS.labels(route)
        counter.inc()
        timer.observe(perf_counter() - begun)


async def _send(request: Request, response: Response, send: Send) -> None:
    headers = [*response.headers, *request.response_headers]
    payload = response.body
    if response.compressible and len(payload) > LEAST_BYTES:
        accepted = request.headers.get(b"accept-encoding")
        if accepted is not None and accepts_gzip(accepted):
            payload = response.gzipped()
            headers.append((b"content-encoding", b"gzip"))
    if response.status not in WITHOUT_CONTENT:
        headers.append((b"content-length", str(len(payload)).encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if response.status == 413 and b"expect" not in request.headers:
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await _linger(request.receive)
        await send({"type": "http.response.body", "body": b""})
        return
    body = b"" if request.scope["method"] == "HEAD" else payload
    await send({"type": "http.response.body", "body": body})


async def _linger(receive: Receive) -> None:
    left = LINGER_BYTES
    try:
        async with asyncio.timeout(LINGER_S):
            while left > 0:
                event = await receive()
                left -= len(event.get("body", b""))
                if event["type"] == "http.disconnect" or not event.get("more_body", False):
                    return
    except TimeoutError:
        return


async def _refuse_other(scope: Scope, receive: Receive, send: Send) -> None:
    """Lifespan has nothing to do here; there is no WebSocket yet."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    await receive()
    await send({"type": "websocket.close", "code": 1008})
