"""Ports for servers that tests start, stop and start again."""

from __future__ import annotations

import contextlib
import random
import socket

# Below the ports that the kernel assigns by itself (from 32768 on Linux): otherwise any connection of the machine could
# take a port between the probe and the start of its server, or while its server is stopped.
PORTS = range(12_000, 22_000)
# The bus of a Redis Cluster uses the server's port plus this.
CLUSTER_BUS = 10_000
# Not seeded: processes that test at the same time should choose different ports.
_chance = random.SystemRandom()


def free_port() -> int:
    """Returns a port of PORTS that nothing listens on at the moment, neither on the one CLUSTER_BUS above it."""
    while True:
        port = _chance.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe, socket.socket() as bus_probe:
            probe.bind(("127.0.0.1", port))
            bus_probe.bind(("127.0.0.1", port + CLUSTER_BUS))
            return port
