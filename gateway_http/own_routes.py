"""The routes that are the gateway's own: liveness, readiness, metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from gateway_http.operation import JSON, SECURITY
from gateway_http.request import Request, Response
from gateway_http.router import Binding

# Each service and its state: STARTING, SERVING or NOT_SERVING.
Health = Callable[[], Mapping[str, str]]

SERVING = "SERVING"
_NO_STORE = (b"cache-control", b"no-store")


class Livez:
    """Alive: the loop answers."""

    name = "livez"
    is_probe = True

    async def serve(self, request: Request) -> Response:
        """200, always."""
        return Response(200, (JSON, *SECURITY, _NO_STORE), b'{"status":"ok"}')


class Readyz:
    """Ready: every service serves."""

    name = "readyz"
    is_probe = True

    def __init__(self, health: Health) -> None:
        self._health = health

    async def serve(self, request: Request) -> Response:
        """200 or 503, naming each service and its state."""
        services = dict(self._health())
        ready = bool(services) and all(state == SERVING for state in services.values())
        body = orjson.dumps({"status": "ready" if ready else "not_ready", "services": services})
        return Response(200 if ready else 503, (JSON, *SECURITY, _NO_STORE), body)


class Metrics:
    """What Prometheus scrapes."""

    name = "metrics"
    is_probe = False

    async def serve(self, request: Request) -> Response:
        """All metrics of the process."""
        content_type = (b"content-type", CONTENT_TYPE_LATEST.encode())
        return Response(200, (content_type, *SECURITY, _NO_STORE), generate_latest(REGISTRY))


def own_routes(health: Health) -> list[tuple[Binding, Livez | Readyz | Metrics]]:
    """The gateway's own routes, for the router."""
    return [
        (Binding("GET", "/livez"), Livez()),
        (Binding("GET", "/readyz"), Readyz(health)),
        (Binding("GET", "/metrics"), Metrics()),
    ]
