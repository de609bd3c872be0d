"""Runs an ASGI application on a socket, inside an event loop that is already running."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

from gateway_http.connections import Connections
from gateway_http.http_protocol import BoundedProtocol
from services.platform.listen_errors import cannot_listen
from services.platform.rpc import errors

# Seconds after which an idle connection is closed. It is longer than a user reads a page, and shorter than the 60 s
# after which load balancers close idle connections.
KEEP_ALIVE_S = 30
# Maximum number of seconds that `stop` waits for active requests. It is the longest deadline of a unary call.
GRACE_S = 10
# Maximum number of connections that the operating system has established and this process has not accepted yet.
BACKLOG = 1_024
# Seconds between two checks whether uvicorn has started, which takes about a millisecond.
START_POLL_S = 0.002


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Installs no signal handlers, because the process that contains the server handles signals."""
        yield


class HttpServer:
    """Serves an ASGI application on `host`:`port`. With port 0, the operating system chooses a free port.

    `grace_s` is the maximum number of seconds that `stop` waits for active requests. `connections` bounds the number of
    open connections; the default derives the bounds from this process's limit on open files. `option` is the
    command-line option for the address, which error messages name. If `listener_fd` is not negative, the server accepts
    connections from the inherited listening socket with this file descriptor instead; other processes may accept from
    it too.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        *,
        grace_s: int = GRACE_S,
        connections: Connections | None = None,
        option: str = "--http",
        listener_fd: int = -1,
    ) -> None:
        self._app = app
        self._host = host
        self._wanted_port = port
        self._grace_s = grace_s
        self._option = option
        self._listener_fd = listener_fd
        self._connections = connections or Connections.within_limits()
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Returns the base URL, such as `http://127.0.0.1:8080`. The port is 0 before `start`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def start(self) -> int:
        """Starts to serve, and returns the port. Raises UNAVAILABLE (ADDRESS_TAKEN) if the server cannot listen on the
        address, INVALID_ARGUMENT if `listener_fd` is not a listening socket."""
        listener = self._listen() if self._listener_fd < 0 else _inherited(self._listener_fd)
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

    @property
    def protocols(self) -> list[BoundedProtocol]:
        """The open connections; empty before `start`."""
        return list(self._server.server_state.connections) if self._server is not None else []  # type: ignore[arg-type]

    def stop_accepting(self) -> None:
        """Stops accepting connections; open ones are still served. Connections that are not accepted yet stay in the
        queue of an inherited listening socket, from which other processes accept them."""
        if self._server is not None:
            for server in self._server.servers:
                server.close()

    async def stop(self) -> None:
        """Stops accepting connections, waits up to `grace_s` seconds for active requests, and closes all connections.
        Idempotent."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        serving, self._serving = self._serving, None
        await serving

    def _listen(self) -> socket.socket:
        address_family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(address_family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._host, self._wanted_port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise cannot_listen("HTTP", f"{self._host}:{self._wanted_port}", self._option, error) from error
        return listener


def _inherited(fd: int) -> socket.socket:
    """Returns the inherited socket with the file descriptor `fd`. Raises INVALID_ARGUMENT if it does not listen."""
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise _not_listening(fd) from error
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        # The descriptor may be in use for something else, so it stays open.
        listener.detach()
        raise _not_listening(fd)
    listener.setblocking(False)
    return listener


def _not_listening(fd: int) -> errors.RoostError:
    return errors.invalid_argument(
        f"inherited_listener_fd {fd} is not a listening socket: leave the setting out, since only `roost up` sets it"
    )
