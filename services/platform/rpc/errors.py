"""Defines RoostError, the only exception that passes from one service to another.

Services raise the errors that these functions return. The interceptors convert them to `google.rpc.Status` with
ErrorInfo, BadRequest and RetryInfo details; the gateway converts this status to problem+json (RFC 9457). Any other
exception becomes INTERNAL with an error id: its text is logged and never sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from services.platform.rpc.reasons import Reason

DOMAIN = "roost"
STATUS_KEY = "grpc-status-details-bin"

# Seconds after which a client should retry, for RESOURCE_EXHAUSTED and UNAVAILABLE errors that state no other delay.
DEFAULT_RETRY_AFTER_S = 1.0
# Maximum number of violations in one error; further ones are left out, because a client corrects the first ones before
# it calls again.
MAX_VIOLATIONS = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that breaks a rule. `field` is its path in the request, such as `profile.bio`; `message` says what the
    rule demands."""

    field: str
    message: str


# eq=False: exceptions compare by identity and stay hashable.
@dataclass(slots=True, eq=False)
class RoostError(Exception):
    """An error with a gRPC status code, a machine-readable reason and a message that may be shown to the caller.

    `reason` is a Reason, or the name of the status code if the error has none; if a process of a newer release sent the
    error, it may be a reason that this release does not know. `violations` are the request's fields that break a rule.
    `retry_after_s` is the number of seconds after which clients should retry, None if the error states no delay.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    violations: Sequence[Violation] = field(default_factory=tuple)
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        # Dataclasses do not call Exception.__init__; without it pickling and str() lose the message.
        Exception.__init__(self, self.message)
        if not self.reason:
            self.reason = self.code.name

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    def status(self) -> status_pb2.Status:
        """Returns the error as google.rpc.Status with its details."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN))
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for violation in self.violations:
                bad.field_violations.add(field=violation.field, description=violation.message)
            status.details.add().Pack(bad)
        if self.retry_after_s is not None:
            delay = Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status


def invalid_argument(message: str, field: str | None = None, *, violations: Iterable[Violation] = ()) -> RoostError:
    """Returns INVALID_ARGUMENT: the request breaks a rule, whatever the state of the data. `field` is the path of the
    wrong field; it becomes the only violation if `violations` is empty."""
    found = tuple(violations) or ((Violation(field, message),) if field else ())
    return RoostError(grpc.StatusCode.INVALID_ARGUMENT, message, violations=found)


def broken_rules(violations: Sequence[Violation]) -> RoostError:
    """Returns INVALID_ARGUMENT with these violations (at least one). The message of the error consists of the field and
    the message of the first violation."""
    first = violations[0]
    message = f"{first.field}: {first.message}" if first.field else first.message
    return invalid_argument(message, violations=violations)


def unauthenticated(message: str = "sign in first", reason: Reason | None = None) -> RoostError:
    """Returns UNAUTHENTICATED: the call carries no valid credentials."""
    return RoostError(grpc.StatusCode.UNAUTHENTICATED, message, reason or "")


def permission_denied(message: str, reason: Reason | None = None) -> RoostError:
    """Returns PERMISSION_DENIED: the caller is known but not allowed to do this."""
    return RoostError(grpc.StatusCode.PERMISSION_DENIED, message, reason or "")


def not_found(message: str) -> RoostError:
    """Returns NOT_FOUND: the item does not exist, or it is hidden from the caller, who must not learn that it
    exists."""
    return RoostError(grpc.StatusCode.NOT_FOUND, message)


def already_exists(message: str, reason: Reason | None = None) -> RoostError:
    """Returns ALREADY_EXISTS: a unique name or key is taken."""
    return RoostError(grpc.StatusCode.ALREADY_EXISTS, message, reason or "")


def failed_precondition(message: str, reason: Reason | None = None) -> RoostError:
    """Returns FAILED_PRECONDITION: the state of the data does not allow the request, and a retry will not help."""
    return RoostError(grpc.StatusCode.FAILED_PRECONDITION, message, reason or "")


def resource_exhausted(
    message: str, retry_after_s: float = DEFAULT_RETRY_AFTER_S, reason: Reason | None = None
) -> RoostError:
    """Returns RESOURCE_EXHAUSTED: a queue is full or a limit is reached. Clients are told to retry after
    `retry_after_s` seconds."""
    return RoostError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, reason or "", retry_after_s=retry_after_s)


def unavailable(message: str, retry_after_s: float = DEFAULT_RETRY_AFTER_S, reason: Reason | None = None) -> RoostError:
    """Returns UNAVAILABLE: a service or server is down or overloaded. Clients are told to retry after `retry_after_s`
    seconds."""
    return RoostError(grpc.StatusCode.UNAVAILABLE, message, reason or "", retry_after_s=retry_after_s)


def deadline_exceeded(message: str = "the deadline passed") -> RoostError:
    """Returns DEADLINE_EXCEEDED; it is unknown whether the call had an effect."""
    return RoostError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def unimplemented(message: str) -> RoostError:
    """Returns UNIMPLEMENTED: the method is in the contract, but not served by this process."""
    return RoostError(grpc.StatusCode.UNIMPLEMENTED, message)


def internal(error_id: str) -> RoostError:
    """Returns INTERNAL for an unexpected exception. The message holds only `error_id`, under which the exception is
    logged."""
    return RoostError(grpc.StatusCode.INTERNAL, f"internal error {error_id}")


def code_of(number: int) -> grpc.StatusCode:
    """Returns the status code with this number, UNKNOWN if gRPC defines none."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def from_status(status: status_pb2.Status) -> RoostError:
    """Returns the RoostError of a Status; the inverse of `RoostError.status`."""
    error = RoostError(code_of(status.code), status.message)
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            error.reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            error.violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            error.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return error


# Messages in place of gRPC's own texts, which name addresses and libraries, by the status codes that gRPC itself
# produces.
_OF_GRPC = {
    grpc.StatusCode.UNAVAILABLE: "a service that this needs cannot be reached now",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the deadline passed",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "a message between services is too large",
    grpc.StatusCode.CANCELLED: "the call was cancelled",
    grpc.StatusCode.UNIMPLEMENTED: "this is not served",
    grpc.StatusCode.UNAUTHENTICATED: "the credentials are not accepted",
    grpc.StatusCode.PERMISSION_DENIED: "this is not allowed",
    grpc.StatusCode.INTERNAL: "the call failed",
    grpc.StatusCode.UNKNOWN: "the call failed",
}


def notes_of(error: BaseException) -> str:
    """Returns the notes of an exception, joined by "; ", or "" if it has none.

    Notes hold text for the log and the operator that must not reach callers: addresses, files, a driver's own message.
    """
    return "; ".join(getattr(error, "__notes__", ()))


def from_rpc(error: grpc.aio.AioRpcError) -> RoostError:
    """Returns the RoostError for an error that a stub raised, from the status details in its trailing metadata. If
    gRPC's text differs from the message in the status details, it becomes a note for the log.

    Without status details, the RoostError has the status code of the call. If gRPC itself produces this code, the
    message is a sentence of _OF_GRPC, and gRPC's text becomes a note for the log; otherwise the message is the one that
    the servicer sent.
    """
    details = error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            # Status details whose code differs from the status code of the call are ignored.
            if status.code == error.code().value[0]:
                found = from_status(status)
                if details not in ("", found.message):
                    found.add_note(details)
                return found
    if error.code() not in _OF_GRPC:
        # gRPC itself never produces these codes: the error comes from a servicer, whose message callers may read.
        return RoostError(error.code(), details)
    found = RoostError(error.code(), _OF_GRPC[error.code()])
    if details:
        found.add_note(details)
    return found


_CODES = {code.value[0]: code for code in grpc.StatusCode if code.name in code_pb2.Code.keys()}  # noqa: SIM118 (an enum wrapper, not a dict)
