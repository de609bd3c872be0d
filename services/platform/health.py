"""Defines the health of a process: its state, its services and its connections to other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STARTING = "STARTING"
SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"

# gRPC's name for the state of an established connection.
PEER_READY = "READY"


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a process at one moment.

    `state` and the values of `services` are STARTING, SERVING or NOT_SERVING. `peers` maps each service that the
    process calls in another process to gRPC's state of the connection: IDLE, CONNECTING, READY, TRANSIENT_FAILURE or
    SHUTDOWN.
    """

    state: str
    services: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)
    # The faults of the process: capabilities that are unavailable for now, by a short name such as `ids`, each with a
    # sentence that states the cause.
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """True if the process should get requests: it is SERVING, and so is each of its services. False if it has
        neither services nor peers.

        An unavailable peer does not make a process unready. Otherwise the load balancer would drop all processes that
        call this peer at once, and requests that do not need the peer would fail too.
        """
        if self.state != SERVING or not (self.services or self.peers):
            return False
        return all(state == SERVING for state in self.services.values())

    @property
    def status(self) -> str:
        """`ready`, `degraded` (ready, but a peer is not connected or there are `faults`), or `not_ready`."""
        if not self.ready:
            return "not_ready"
        return "ready" if not self.faults and all(state == PEER_READY for state in self.peers.values()) else "degraded"
