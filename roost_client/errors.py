"""Defines ApiError, which the client raises if a call fails."""

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

    `code` is the gRPC status, `reason` a stable code that refines the status ("" if there is none). `violations` are
    pairs of a field path and a message. `retry_after_s` is the number of seconds to wait before a retry, None if the
    mesh sent none.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    violations: Sequence[tuple[str, str]] = field(default_factory=tuple)
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        # The dataclass does not call Exception.__init__, and pickle loses the message without this call.
        Exception.__init__(self, self.message)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def from_rpc(error: grpc.RpcError) -> ApiError:
    """Returns the exception of a failed gRPC call as an ApiError, with its error details."""
    # gRPC raises the object of the call, which has the methods code() and details(). Its declared type RpcError lacks
    # them.
    call: Any = error
    found = ApiError(call.code(), call.details() or "")
    try:
        status = rpc_status.from_call(call)
    except ValueError:
        # The error details contain another status than the call, so they are ignored.
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
