"""Errors as HTTP says them: problem+json (RFC 9457). The only place where an error gets an HTTP status."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import grpc
import orjson
import structlog

from services.platform.rpc import errors
from services.platform.rpc.errors import RoostError, Violation

log = structlog.get_logger()

Headers = Sequence[tuple[bytes, bytes]]

CONTENT_TYPE = b"application/problem+json"
# What a problem repeats of the path; no route is longer than this.
MAX_INSTANCE = 256
# nginx's number for a caller that went away; HTTP has none.
CLIENT_CLOSED_REQUEST = 499

STATUS_OF: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: CLIENT_CLOSED_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.DATA_LOSS: 500,
}

# Statuses that say when to come back.
_WITH_RETRY_AFTER = frozenset({429, 503})
# What `errors.internal` writes. Any other text of an INTERNAL is a library's and stays in the log.
_OWN_INTERNAL = "internal error "


@dataclass(slots=True)
class Refusal(Exception):
    """A refusal for which gRPC has no code: 405, 408, 413, 415, 431."""

    status: int
    code: str
    detail: str
    headers: Headers = ()
    violations: Sequence[Violation] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        Exception.__init__(self, self.detail)


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal ready to be written."""

    status: int
    headers: Headers
    body: bytes


def as_refusal(error: BaseException, request_id: str = "") -> tuple[Refusal, float | None]:
    """The error as HTTP says it, and the seconds after which to come back, where there is something to wait for."""
    if isinstance(error, Refusal):
        return error, None
    error = to_public_error(error, request_id)
    status = STATUS_OF[error.code]
    retry_after = error.retry_after_s
    if retry_after is None and status in _WITH_RETRY_AFTER:
        retry_after = errors.DEFAULT_RETRY_AFTER_S
    return Refusal(status, error.reason.lower(), error.message, violations=error.violations), retry_after


def to_public_error(error: BaseException, request_id: str = "") -> RoostError:
    """The error as a caller may know it: an exception that nobody foresaw is logged in full under an id, and only the id is told."""
    if isinstance(error, grpc.aio.AioRpcError):
        error = errors.from_rpc(error)
    if isinstance(error, RoostError) and not _hides_text(error):
        return error
    error_id = secrets.token_hex(8)
    log.error("http.failed", error_id=error_id, request_id=request_id, exc_info=error)
    return errors.internal(error_id)


def _hides_text(error: RoostError) -> bool:
    return STATUS_OF.get(error.code, 500) == 500 and not error.message.startswith(_OWN_INTERNAL)


def problem(error: BaseException, *, instance: str, request_id: str = "", trace_id: str = "") -> Problem:
    """The error as status, headers (without content-length) and problem+json body. `instance` is the path asked for."""
    refusal, retry_after = as_refusal(error, request_id)
    headers = [(b"content-type", CONTENT_TYPE), *headers_of(refusal, retry_after)]
    body = {
        "type": f"urn:roost:problem:{refusal.code}",
        "title": _title(refusal.status),
        "status": refusal.status,
        "detail": refusal.detail,
        "instance": instance[:MAX_INSTANCE],
        "code": refusal.code,
        "trace_id": trace_id,
        "violations": [{"field": one.field, "message": one.message} for one in refusal.violations],
    }
    return Problem(refusal.status, headers, _dumps(body))


def headers_of(refusal: Refusal, retry_after: float | None) -> list[tuple[bytes, bytes]]:
    """What every refusal says beside its body, in whatever dialect."""
    headers = [(b"cache-control", b"no-store"), *refusal.headers]
    if retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after))).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", _challenge(refusal.code)))
    return headers


def _dumps(body: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        # A text with a lone surrogate: what the caller sent may come back in a message.
        texts = {
            key: value.encode("utf-8", "replace").decode() for key, value in body.items() if isinstance(value, str)
        }
        return orjson.dumps(body | texts | {"violations": []})


def _title(status: int) -> str:
    if status == CLIENT_CLOSED_REQUEST:
        return "Client Closed Request"
    return HTTPStatus(status).phrase


def _challenge(code: str) -> bytes:
    # RFC 6750: no error word where no token was sent.
    return b'Bearer error="invalid_token"' if "token" in code else b"Bearer"
