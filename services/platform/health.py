"""The health of a process: its state, its services and its connections to other processes."""

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
    """One look at a process. `state` and the values of `services` are STARTING, SERVING or NOT_SERVING; `peers` maps the services that
    it calls in other processes to gRPC's state of the connection: IDLE, CONNECTING, READY, TRANSIENT_FAILURE or SHUTDOWN."""

    state: str
    services: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)
    # What the process cannot do for now, by a short name, each with a sentence that says why.
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """True if the process should get requests. False if it has neither services nor peers.

        A peer that is down does not count: otherwise every process that calls it would leave the load balancer at once, and requests
        that do not need the peer would fail too.
        """
        if self.state != SERVING or not (self.services or self.peers):
            return False
        return all(state == SERVING for state in self.services.values())

    @property
    def status(self) -> str:
        """`ready`, `degraded` (ready, but some peer is not reached or something cannot be done for now) or `not_ready`."""
        if not self.ready:
            return "not_ready"
        return "ready" if not self.faults and all(state == PEER_READY for state in self.peers.values()) else "degraded"
