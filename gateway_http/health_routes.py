"""The routes that tell how a process is: liveness and readiness. The gateway has them, and the ops port of every process."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from gateway_http.request import JSON, SECURITY, Request, Response
from services.platform import health

Health = Callable[[], health.Health]

# Asked by orchestrators: answered however busy the process is, for a probe that is refused gets it restarted.
PROBES = frozenset({b"/livez", b"/readyz"})

NO_STORE = (b"cache-control", b"no-store")


class Livez:
    """Alive: the loop answers."""

    name = "livez"
    is_probe = True

    async def serve(self, request: Request) -> Response:
        """200, always."""
        return Response(200, (JSON, *SECURITY, NO_STORE), b'{"status":"ok"}')


class Readyz:
    """Ready: the process and every service in it serve. A peer that is not reached, or a fault, makes it degraded, which is still ready."""

    name = "readyz"
    is_probe = True

    def __init__(self, look: Health) -> None:
        self._look = look

    async def serve(self, request: Request) -> Response:
        """200 or 503, with the status, each service's state, the state of the connection to each peer, and what cannot be done now."""
        found = self._look()
        body = {"status": found.status, "services": dict(found.services), "peers": dict(found.peers)}
        body["faults"] = dict(found.faults)
        return Response(200 if found.ready else 503, (JSON, *SECURITY, NO_STORE), orjson.dumps(body))
