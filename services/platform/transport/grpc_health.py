"""Implements gRPC's health service (grpc.health.v1): Check, List and Watch for the services of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2 as pb

from services.platform.rpc import errors

SERVICE = "grpc.health.v1.Health"

# The type stubs do not declare List, and they declare statuses as int.
_messages: Any = pb
Status = int


class Health:
    """The health statuses of the services of one process, and the streams that watch them.

    The servicer of grpcio-health-checking writes to its watchers one after the other under a lock, so one client that
    does not read blocks all others and the drain of the process. Here each watcher has its own generator.
    """

    def __init__(self) -> None:
        self._states: dict[str, Status] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._ended = False

    def set(self, service: str, status: Status) -> None:
        """Sets the status of one service; "" is the whole process. Has no effect after `drain`."""
        if not self._draining:
            self._states[service] = status
            self._tell()

    def drain(self) -> None:
        """Sets the status of every service to NOT_SERVING, finally: later calls of `set` have no effect."""
        self._draining = True
        self._states = dict.fromkeys(self._states, pb.HealthCheckResponse.NOT_SERVING)
        self._tell()

    def end(self) -> None:
        """Ends every watch. Otherwise a stopping server would wait for the watches until its grace period is over."""
        self._ended = True
        self._tell()

    async def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Returns the status of one service; "" is the whole process. Raises NOT_FOUND if no status was set for it."""
        status = self._states.get(request.service)
        if status is None:
            raise errors.not_found("no service of this name is served here")
        return pb.HealthCheckResponse(status=status)

    async def list(self, request: Any) -> Any:
        """Returns the statuses of all services by name."""
        found = {name: _messages.HealthCheckResponse(status=status) for name, status in self._states.items()}
        return _messages.HealthListResponse(statuses=found)

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckResponse]:
        """Yields the status of one service now and at each change, until the method `end` of this object is called.

        Yields SERVICE_UNKNOWN if no status was set for the service. A slow reader gets the latest status only.
        """
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
