"""Counts and times of RPCs, under the names that gRPC dashboards expect (go-grpc-prometheus)."""

from __future__ import annotations

from time import perf_counter

import grpc
from prometheus_client import Counter, Histogram

LABELS = ("grpc_service", "grpc_method")

STARTED = Counter("grpc_server_started", "RPCs begun.", LABELS)
HANDLED = Counter("grpc_server_handled", "RPCs ended, by status code.", (*LABELS, "grpc_code"))
# From the cost of an in-process call (tens of µs) to the longest deadline.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HANDLING = Histogram("grpc_server_handling_seconds", "Time from arrival to status.", LABELS, buckets=BUCKETS)


class Observer:
    """One method's metrics, its label lookups done once: they would cost more than the counting."""

    __slots__ = ("_handled", "_labels", "_ok", "_started", "_time")

    def __init__(self, service: str, method: str) -> None:
        self._labels = (service, method)
        self._started = STARTED.labels(service, method)
        self._time = HANDLING.labels(service, method)
        self._ok = HANDLED.labels(service, method, "OK")
        self._handled = {grpc.StatusCode.OK: self._ok}

    def begin(self) -> float:
        """Counts a start and returns its moment."""
        self._started.inc()
        return perf_counter()

    def end(self, begun: float, code: grpc.StatusCode) -> None:
        """Counts an end."""
        self._time.observe(perf_counter() - begun)
        child = self._handled.get(code)
        if child is None:
            name = "".join(part.title() for part in code.name.split("_"))
            child = self._handled[code] = HANDLED.labels(*self._labels, name)
        child.inc()
