"""Logs each call that a process serves for another process, over a socket or in a batch, at level debug."""

from __future__ import annotations

from time import monotonic

import grpc
import structlog

from services.platform.log_events import LogEvent
from services.platform.logs import trace_id

_log = structlog.get_logger(__name__)


def log_call(method: str, code: grpc.StatusCode, began: float, user_id: int, request_id: str, traceparent: str) -> None:
    """Logs a call that has ended.

    `method` is its path, `began` its start in monotonic seconds, `user_id` its actor (0 if anonymous). `traceparent` is
    a W3C traceparent, of which the trace id is logged.
    """
    _log.debug(
        LogEvent.GRPC_CALL_SERVED,
        method=method,
        status=code.name,
        ms=round((monotonic() - began) * 1000, 3),
        user=user_id,
        request_id=request_id,
        trace_id=trace_id(traceparent),
    )
