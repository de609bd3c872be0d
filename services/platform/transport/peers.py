"""Monitors the connections from a process to the services that it calls, for its health, metrics and log."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic

import grpc
import structlog
from prometheus_client import Gauge

from services.platform.background import BackgroundWorker
from services.platform.health import PEER_READY
from services.platform.log_events import LogEvent

# Seconds between two checks of all connections. A check takes microseconds for each peer.
LOOK_EVERY_S = 1.0
# If a peer is not connected for this many seconds, it is logged as unreachable. A restart takes a second or two, and at
# start the processes of a mesh wait for one another.
PATIENCE_S = 5.0

_ready = Gauge("roost_peer_ready", "1 if the connection to the service is ready for calls, 0 if it is not.", ("peer",))
_log = structlog.get_logger(__name__)


class Peers(BackgroundWorker):
    """A worker that keeps the connections of `channels` (by service) established, and checks them every LOOK_EVERY_S
    seconds. The connections stay open after `stop`.

    It logs connections that are lost and established again, and sets the metric `roost_peer_ready`.
    """

    def __init__(self, channels: Mapping[str, grpc.aio.Channel]) -> None:
        super().__init__("peers")
        self._channels = channels
        self._away_since: dict[str, float] = {}
        self._missed: set[str] = set()

    def states(self) -> dict[str, str]:
        """Returns the gRPC state of each connection by service, such as "READY". An idle connection starts to
        connect."""
        return {name: channel.get_state(try_to_connect=True).name for name, channel in self._channels.items()}

    async def unreached(self, within_s: float = PATIENCE_S) -> list[str]:
        """Waits up to `within_s` seconds until all connections are READY.

        Returns the services whose connection is not READY at the end, an empty list if all are.
        """
        with_deadline = monotonic() + within_s
        while missing := [name for name, state in self.states().items() if state != PEER_READY]:
            if monotonic() >= with_deadline:
                return missing
            await asyncio.sleep(LOOK_EVERY_S / 10)
        return []

    def look(self, now: float) -> None:
        """Checks all connections once: sets the metric and logs changes. `now` is in monotonic seconds.

        Logs a peer once when its connection has not been READY for PATIENCE_S seconds, and again when it is READY.
        """
        for name, state in self.states().items():
            _ready.labels(name).set(state == PEER_READY)
            if state == PEER_READY:
                self._away_since.pop(name, None)
                if name in self._missed:
                    self._missed.discard(name)
                    _log.info(LogEvent.PEER_REACHED, peer=name)
            elif now - self._away_since.setdefault(name, now) >= PATIENCE_S and name not in self._missed:
                self._missed.add(name)
                _log.warning(LogEvent.PEER_LOST, peer=name, state=state)

    async def _run(self) -> None:
        while True:
            self.look(monotonic())
            await asyncio.sleep(LOOK_EVERY_S)
