"""One debug line for each call that a process serves for others: over a socket of its own, or within an envelope."""

from __future__ import annotations

from time import monotonic

import grpc
import structlog

from services.platform.logs import trace_id

_log = structlog.get_logger(__name__)


def log_call(method: str, code: grpc.StatusCode, began: float, user_id: int, request_id: str, traceparent: str) -> None:
    """Logs a call that has ended: its path, its status, how long it took since `began` (monotonic seconds), and in whose name it was."""
    _log.debug(
        "grpc_call.served",
        method=method,
        status=code.name,
        ms=round((monotonic() - began) * 1000, 3),
        user=user_id,
        request_id=request_id,
        trace_id=trace_id(traceparent),
    )
