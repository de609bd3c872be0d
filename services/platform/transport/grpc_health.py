"""gRPC's health service (grpc.health.v1): Check, List and Watch over the states of this process's services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2 as pb

from services.platform.rpc import errors

SERVICE = "grpc.health.v1.Health"

# The type stubs know no List, and name states by their number.
_messages: Any = pb
Status = int


class Health:
    """The states, and who watches them.

    The servicer of grpcio-health-checking writes to its watchers one after the other under a lock, so one client that takes nothing
    stops all others and the drain of the process. Here each watcher waits for itself.
    """

    def __init__(self) -> None:
        self._states: dict[str, Status] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._ended = False

    def set(self, service: str, status: Status) -> None:
        """Sets the state of one service; "" is the process. Without effect once it drains."""
        if not self._draining:
            self._states[service] = status
            self._tell()

    def drain(self) -> None:
        """Says NOT_SERVING of all, for good."""
        self._draining = True
        self._states = dict.fromkeys(self._states, pb.HealthCheckResponse.NOT_SERVING)
        self._tell()

    def end(self) -> None:
        """Ends every watch: a server that stops would wait for them."""
        self._ended = True
        self._tell()

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Returns the state of one service. Raises NOT_FOUND if it is not served here."""
        status = self._states.get(request.service)
        if status is None:
            raise errors.not_found("no such service is served here")
        return pb.HealthCheckResponse(status=status)

    async def list(self, request: Any) -> Any:
        """Returns the states of all services."""
        found = {name: _messages.HealthCheckResponse(status=status) for name, status in self._states.items()}
        return _messages.HealthListResponse(statuses=found)

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckResponse]:
        """Yields the state of one service now and at each change, SERVICE_UNKNOWN if it is not served here, until `end`."""
        last: Status | None = None
        while not self._ended:
            changed = self._changed
            status = self._states.get(request.service, pb.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield _messages.HealthCheckResponse(status=status)
            else:
                await changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
