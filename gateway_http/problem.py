"""Maps errors to HTTP statuses, and renders them as problem+json (RFC 9457)."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import grpc
import orjson
import structlog

from services.platform.log_events import LogEvent
from services.platform.rpc import errors
from services.platform.rpc.errors import RoostError, Violation

log = structlog.get_logger()

Headers = Sequence[tuple[bytes, bytes]]

CONTENT_TYPE = b"application/problem+json"
# Maximum number of characters of the requested path that an error response repeats; a longer path is truncated. No
# route is longer.
MAX_INSTANCE = 256
# nginx's status for a client that disconnected; HTTP defines none.
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

# Statuses of responses that have the header Retry-After.
_WITH_RETRY_AFTER = frozenset({429, 503})
# Prefix of the messages that `errors.internal` writes. Any other message of an INTERNAL error may come from a library
# and reveal details, so it is logged and not sent to the client.
_OWN_INTERNAL = "internal error "


@dataclass(slots=True)
class HttpError(Exception):
    """An error with an HTTP status, for errors that no gRPC status describes, such as 405, 408, 413 and 415.

    `code` is the machine-readable code in the response body, `detail` a sentence for people. `headers` are added to the
    response.
    """

    status: int
    code: str
    detail: str
    headers: Headers = ()
    violations: Sequence[Violation] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        Exception.__init__(self, self.detail)


@dataclass(frozen=True, slots=True)
class Problem:
    """An error rendered as status, headers (without content-length) and problem+json body."""

    status: int
    headers: Headers
    body: bytes


def to_http_error(error: BaseException) -> tuple[HttpError, float | None]:
    """Returns the error as an HttpError, and the seconds for the header Retry-After, or None if a retry would not help.

    Any exception is accepted. An unexpected one is logged and becomes status 500.
    """
    if isinstance(error, HttpError):
        return error, None
    return with_http_status(to_public_error(error))


def with_http_status(error: RoostError) -> tuple[HttpError, float | None]:
    """Returns the error as an HttpError, and the seconds for the header Retry-After, or None if a retry would not help.

    The client receives the message of `error`, so pass a result of `to_public_error`.
    """
    status = STATUS_OF[error.code]
    retry_after = error.retry_after_s
    if retry_after is None and status in _WITH_RETRY_AFTER:
        retry_after = errors.DEFAULT_RETRY_AFTER_S
    return HttpError(status, error.reason.lower(), error.message, violations=error.violations), retry_after


def to_public_error(error: BaseException) -> RoostError:
    """Returns the error whose code and message a client may receive.

    A RoostError, or the error of a gRPC call, is returned; its notes (details for operators) are only logged. Any other
    exception, and an INTERNAL error with a message of a library, is logged with a random id; the returned INTERNAL
    error contains only this id.
    """
    if isinstance(error, grpc.aio.AioRpcError):
        error = errors.from_rpc(error)
    if isinstance(error, RoostError) and not _hides_text(error):
        if notes := errors.notes_of(error):
            log.warning(LogEvent.HTTP_REQUEST_REFUSED, code=error.code.name, notes=notes)
        return error
    error_id = secrets.token_hex(8)
    log.error(LogEvent.HTTP_REQUEST_FAILED, error_id=error_id, exc_info=error)
    return errors.internal(error_id)


def _hides_text(error: RoostError) -> bool:
    return STATUS_OF.get(error.code, 500) == 500 and not error.message.startswith(_OWN_INTERNAL)


def problem(error: BaseException, *, instance: str, trace_id: str = "") -> Problem:
    """Renders the error as problem+json. `instance` is the requested path; it is truncated to MAX_INSTANCE
    characters."""
    http_error, retry_after = to_http_error(error)
    headers = [(b"content-type", CONTENT_TYPE), *error_headers(http_error, retry_after)]
    body = {
        "type": f"urn:roost:problem:{http_error.code}",
        "title": _title(http_error.status),
        "status": http_error.status,
        "detail": http_error.detail,
        "instance": instance[:MAX_INSTANCE],
        "code": http_error.code,
        "trace_id": trace_id,
        "violations": [{"field": one.field, "message": one.message} for one in http_error.violations],
    }
    return Problem(http_error.status, headers, _dumps(body))


def error_headers(http_error: HttpError, retry_after: float | None) -> list[tuple[bytes, bytes]]:
    """Returns the headers of an error response, except content-type and content-length.

    `retry_after` is in seconds and is rounded up; None leaves the header Retry-After out.
    """
    headers = [(b"cache-control", b"no-store"), *http_error.headers]
    if retry_after is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after))).encode()))
    if http_error.status == 401:
        headers.append((b"www-authenticate", _challenge(http_error.code)))
    return headers


def _dumps(body: dict[str, object]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:
        # A message may quote input of the client that contains a lone surrogate, which orjson rejects.
        texts = {
            key: value.encode("utf-8", "replace").decode() for key, value in body.items() if isinstance(value, str)
        }
        return orjson.dumps(body | texts | {"violations": []})


def _title(status: int) -> str:
    if status == CLIENT_CLOSED_REQUEST:
        return "Client Closed Request"
    return HTTPStatus(status).phrase


def _challenge(code: str) -> bytes:
    # RFC 6750, 3.1: no `error` attribute if the request had no token.
    return b'Bearer error="invalid_token"' if "token" in code else b"Bearer"
