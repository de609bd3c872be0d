"""The one error that crosses services.

A service raises what these functions make; the interceptors turn it into a `google.rpc.Status` with ErrorInfo, BadRequest and
RetryInfo; the gateway turns that into problem+json (RFC 9457). Any other exception becomes INTERNAL with an error id, and its text
stays in the log.
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

# When a caller should come back after an UNAVAILABLE that knows no better.
DEFAULT_RETRY_AFTER_S = 1.0
# Violations in one error: more tell a caller nothing new, and cost bytes.
MAX_VIOLATIONS = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that breaks a rule; `field` is its path in the request, such as `profile.bio`."""

    field: str
    message: str


# eq=False: exceptions are told apart by identity, and stay hashable.
@dataclass(slots=True, eq=False)
class RoostError(Exception):
    """A refusal with a gRPC status code, a machine-readable reason and a text that may be shown to the caller.

    `reason` is a Reason, the name of the code, or what a peer of another version gave.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    violations: Sequence[Violation] = field(default_factory=tuple)
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        # Dataclasses skip Exception.__init__; without it pickling and str() lose the text.
        Exception.__init__(self, self.message)
        if not self.reason:
            self.reason = self.code.name

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"

    def status(self) -> status_pb2.Status:
        """The error as google.rpc.Status, details included."""
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
    """The request breaks a rule, whatever the state; `field` names the field at fault."""
    found = tuple(violations) or ((Violation(field, message),) if field else ())
    return RoostError(grpc.StatusCode.INVALID_ARGUMENT, message, violations=found)


def broken_rules(violations: Sequence[Violation]) -> RoostError:
    """INVALID_ARGUMENT out of what was found wrong, at least one violation; the first is the message too."""
    first = violations[0]
    message = f"{first.field}: {first.message}" if first.field else first.message
    return invalid_argument(message, violations=violations)


def unauthenticated(message: str = "sign in first", reason: Reason | None = None) -> RoostError:
    """No valid credentials."""
    return RoostError(grpc.StatusCode.UNAUTHENTICATED, message, reason or "")


def permission_denied(message: str, reason: Reason | None = None) -> RoostError:
    """Valid credentials that do not allow this."""
    return RoostError(grpc.StatusCode.PERMISSION_DENIED, message, reason or "")


def not_found(message: str) -> RoostError:
    """It never was, was deleted, or is hidden from the caller: not told apart."""
    return RoostError(grpc.StatusCode.NOT_FOUND, message)


def already_exists(message: str, reason: Reason | None = None) -> RoostError:
    """Something unique is taken."""
    return RoostError(grpc.StatusCode.ALREADY_EXISTS, message, reason or "")


def failed_precondition(message: str, reason: Reason | None = None) -> RoostError:
    """The state does not allow it, and a repeat will not help."""
    return RoostError(grpc.StatusCode.FAILED_PRECONDITION, message, reason or "")


def resource_exhausted(
    message: str, retry_after_s: float = DEFAULT_RETRY_AFTER_S, reason: Reason | None = None
) -> RoostError:
    """A queue or a quota is full; come back after `retry_after_s` seconds."""
    return RoostError(grpc.StatusCode.RESOURCE_EXHAUSTED, message, reason or "", retry_after_s=retry_after_s)


def unavailable(message: str, retry_after_s: float = DEFAULT_RETRY_AFTER_S, reason: Reason | None = None) -> RoostError:
    """It cannot be done now; come back after `retry_after_s` seconds."""
    return RoostError(grpc.StatusCode.UNAVAILABLE, message, reason or "", retry_after_s=retry_after_s)


def deadline_exceeded(message: str = "the deadline passed") -> RoostError:
    """The time given was not enough; whether the call had an effect is unknown."""
    return RoostError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def unimplemented(message: str) -> RoostError:
    """Part of the contract, not served yet."""
    return RoostError(grpc.StatusCode.UNIMPLEMENTED, message)


def internal(error_id: str) -> RoostError:
    """An unknown exception: the log holds its text under `error_id`, the caller gets the id."""
    return RoostError(grpc.StatusCode.INTERNAL, f"internal error {error_id}")


def code_of(number: int) -> grpc.StatusCode:
    """The status code of a number on the wire; UNKNOWN for one that gRPC does not know."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def from_status(status: status_pb2.Status) -> RoostError:
    """The error that `RoostError.status` made this Status of."""
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


# What a caller is told instead of gRPC's own text, which names addresses and libraries, by the codes that gRPC itself gives a call.
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
    """Returns the error's notes: what the log and whoever runs the mesh may know (addresses, files, a driver's own text), and callers
    may not. Empty if there are none."""
    return "; ".join(getattr(error, "__notes__", ()))


def from_rpc(error: grpc.aio.AioRpcError) -> RoostError:
    """Returns what a stub raised as a RoostError; details travel in the trailing metadata. Without them gRPC made the error, and its
    text becomes a note."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_KEY and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            # A peer's status that contradicts its details is not trusted for them.
            if status.code == error.code().value[0]:
                return from_status(status)
    details = error.details() or ""
    if error.code() not in _OF_GRPC:
        # Only servicers give these.
        return RoostError(error.code(), details)
    found = RoostError(error.code(), _OF_GRPC[error.code()])
    if details:
        found.add_note(details)
    return found


_CODES = {code.value[0]: code for code in grpc.StatusCode if code.name in code_pb2.Code.keys()}  # noqa: SIM118 (an enum wrapper, not a dict)
