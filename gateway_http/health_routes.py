"""The liveness and readiness routes, which the gateway and the ops port of every process serve."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from gateway_http.request import JSON_CONTENT_TYPE, SECURITY_HEADERS, Request, Response
from services.platform import health

Health = Callable[[], health.Health]

# Paths of the orchestrator's probes. They are served even if the gateway is overloaded, because the orchestrator
# restarts a process whose liveness probe fails.
PROBE_PATHS = frozenset({b"/livez", b"/readyz"})

NO_STORE = (b"cache-control", b"no-store")


class Livez:
    """The liveness route. It always responds with 200: a process whose event loop is blocked does not respond at
    all."""

    name = "livez"
    is_probe = True

    async def serve(self, request: Request) -> Response:
        """Returns status 200."""
        return Response(200, (JSON_CONTENT_TYPE, *SECURITY_HEADERS, NO_STORE), b'{"status":"ok"}')


class Readyz:
    """The readiness route. The process is ready if each of its services is SERVING.

    The process is degraded, which is still ready, if a service in another process is not connected, or if a capability
    of this process is unavailable (a fault).
    """

    name = "readyz"
    is_probe = True

    def __init__(self, read_health: Health) -> None:
        self._read_health = read_health

    async def serve(self, request: Request) -> Response:
        """Returns 200 if the process is ready, otherwise 503.

        The body has `status` (ready, degraded or not_ready), `services` (state by name), `peers` (connection state by
        the name of a service in another process) and `faults` (sentence on the cause, by the name of the unavailable
        capability).
        """
        found = self._read_health()
        body = {"status": found.status, "services": dict(found.services), "peers": dict(found.peers)}
        body["faults"] = dict(found.faults)
        return Response(
            200 if found.ready else 503, (JSON_CONTENT_TYPE, *SECURITY_HEADERS, NO_STORE), orjson.dumps(body)
        )
