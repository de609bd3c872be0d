"""The error of the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status


@dataclass(slots=True)
class ApiError(Exception):
    """A call was refused or failed.

    `code` is gRPC's status, `reason` the machine-readable word beside it, `violations` pairs of a field's path and what is
    wrong with it, and `retry_after_s`, where the service named one, the seconds after which to come back.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    violations: Sequence[tuple[str, str]] = field(default_factory=tuple)
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        # Dataclasses skip Exception.__init__; without it pickling and str() lose the text.
        Exception.__init__(self, self.message)

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


def from_rpc(error: grpc.RpcError) -> ApiError:
    """What a call raised, with the details that came with it."""
    # What a call raises is the call itself; the types know it only as its base class.
    call: Any = error
    found = ApiError(call.code(), call.details() or "")
    try:
        status = rpc_status.from_call(call)
    except ValueError:
        # Details that contradict the status are not trusted.
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
