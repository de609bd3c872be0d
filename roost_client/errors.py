"""The exception that the client raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status


@dataclass(slots=True)
class ApiError(Exception):
    """A call failed.

    `code` is the gRPC status, `reason` a stable code that refines it, `violations` are pairs of a field path and a
    message, and `retry_after_s` is the number of seconds to wait before a retry, if the service sent one.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    violations: Sequence[tuple[str, str]] = field(default_factory=tuple)
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        # The dataclass does not call Exception.__init__; without it pickle and str() lose the message.
        Exception.__init__(self, self.message)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def from_rpc(error: grpc.RpcError) -> ApiError:
    """Converts the exception of a gRPC call, including its error details, into an ApiError."""
    # gRPC raises the call object, which has code() and details(), but the declared type RpcError has neither.
    call: Any = error
    found = ApiError(call.code(), call.details() or "")
    try:
        status = rpc_status.from_call(call)
    except ValueError:
        # The details contradict the status, so they are ignored.
        return found
    for detail in status.details if status is not None else ():
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            found.reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            found.violations = tuple((violation.field, violation.description) for violation in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            found.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return found
