"""The gateway on a socket, inside a loop that is already running."""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

from gateway_http.connections import Connections
from gateway_http.http_protocol import BoundedProtocol
from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason

# An idle connection is kept this long: longer than a page's reader thinks, shorter than a load balancer's own limit of 60 s.
KEEP_ALIVE_S = 30
# Requests under way get this long at `stop`: the longest deadline of an ordinary call.
GRACE_S = 10
BACKLOG = 1_024
# How often the start is looked for; it takes a millisecond.
START_POLL_S = 0.002


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals belong to the process that embeds the server."""
        yield


class HttpServer:
    """Serves an ASGI application on `host`:`port`; port 0 takes any that is free.

    `connections` bounds what is open; by default what this process's limit on open files allows.
    """

    def __init__(
        self, app: Any, host: str, port: int, *, grace_s: int = GRACE_S, connections: Connections | None = None
    ) -> None:
        self._app = app
        self._host = host
        self._wanted_port = port
        self._grace_s = grace_s
        self._connections = connections or Connections.within_limits()
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it is served, once it is started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> int:
        """Serves from now on, and returns the port. UNAVAILABLE, with the reason, where the address cannot be had."""
        listener = self._listen()
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http=functools.partial(BoundedProtocol, self._connections),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=self._grace_s,
        )
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="http-server")
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(START_POLL_S)
        return self.port

    async def stop(self) -> None:
        """Takes no more connections, gives requests under way `grace_s` seconds, and ends. Safe to call twice."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        serving, self._serving = self._serving, None
        await serving

    def _listen(self) -> socket.socket:
        backend = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(backend, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._wanted_port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
            message = f"cannot serve HTTP on {self._host}:{self._wanted_port}: {why}"
            raise errors.unavailable(message, reason=Reason.ADDRESS_TAKEN) from error
        return listener
