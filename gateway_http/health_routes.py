"""The liveness and readiness routes, which the gateway and the ops port of every process serve."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from gateway_http.request import JSON_CONTENT_TYPE, SECURITY_HEADERS, Request, Response
from services.platform import health

Health = Callable[[], health.Health]

# Paths of the orchestrator's probes. They are served even under overload, because a failed probe gets the process restarted.
PROBE_PATHS = frozenset({b"/livez", b"/readyz"})

NO_STORE = (b"cache-control", b"no-store")


class Livez:
    """The liveness route. It responds as long as the event loop runs."""

    name = "livez"
    is_probe = True

    async def serve(self, request: Request) -> Response:
        """Returns status 200."""
        return Response(200, (JSON_CONTENT_TYPE, *SECURITY_HEADERS, NO_STORE), b'{"status":"ok"}')


class Readyz:
    """The readiness route: the process is ready if each of its services serves. An unreachable peer or a fault makes
    the process degraded, which is still ready."""

    name = "readyz"
    is_probe = True

    def __init__(self, read_health: Health) -> None:
        self._read_health = read_health

    async def serve(self, request: Request) -> Response:
        """Returns 200 or 503, with the overall status, the state of each service and of the connection to each peer, and current faults."""
        found = self._read_health()
        body = {"status": found.status, "services": dict(found.services), "peers": dict(found.peers)}
        body["faults"] = dict(found.faults)
        return Response(
            200 if found.ready else 503, (JSON_CONTENT_TYPE, *SECURITY_HEADERS, NO_STORE), orjson.dumps(body)
        )
