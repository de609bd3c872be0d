"""Problems: the HTTP status of each error, and no internal text in the body."""

from __future__ import annotations

import grpc
import orjson
import pytest
import structlog

from gateway_http.problem import STATUS_OF, HttpError, problem
from services.platform.rpc import errors
from services.platform.rpc.errors import RoostError, Violation

TABLE = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "DATA_LOSS": 500,
}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_problem_of_each_code_has_status(code: grpc.StatusCode) -> None:
    found = problem(RoostError(code, "internal error 1"), instance="/x")
    assert found.status == TABLE[code.name] == STATUS_OF[code]
    assert orjson.loads(found.body)["status"] == found.status


def test_problem_has_all_declared_fields() -> None:
    error = errors.invalid_argument("text: too long", violations=[Violation("text", "too long")])
    found = problem(error, instance="/v1/tweets", trace_id="t")
    assert orjson.loads(found.body) == {
        "type": "urn:roost:problem:invalid_argument",
        "title": "Bad Request",
        "status": 400,
        "detail": "text: too long",
        "instance": "/v1/tweets",
        "code": "invalid_argument",
        "trace_id": "t",
        "violations": [{"field": "text", "message": "too long"}],
    }
    assert (b"content-type", b"application/problem+json") in found.headers


def header(error: BaseException, name: bytes) -> bytes | None:
    return dict(problem(error, instance="/x").headers).get(name)


def test_problem_of_retryable_error_has_retry_after() -> None:
    assert header(errors.unavailable("later", 2.5), b"retry-after") == b"3"
    assert header(RoostError(grpc.StatusCode.UNAVAILABLE, "later"), b"retry-after") == b"1"
    assert header(errors.resource_exhausted("full", 0.1), b"retry-after") == b"1"
    assert header(errors.not_found("gone"), b"retry-after") is None


def test_problem_401_has_www_authenticate() -> None:
    assert header(errors.unauthenticated(), b"www-authenticate") == b"Bearer"
    assert header(errors.unauthenticated("no", "TOKEN_EXPIRED"), b"www-authenticate") == b'Bearer error="invalid_token"'
    assert header(errors.unauthenticated("no", "WRONG_PASSWORD"), b"www-authenticate") == b"Bearer"


def rpc_error(error: RoostError) -> grpc.aio.AioRpcError:
    details = grpc.aio.Metadata((errors.STATUS_KEY, error.status().SerializeToString()))
    return grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), details, error.message)


def test_problem_of_rpc_error_keeps_reason_and_violations() -> None:
    found = problem(rpc_error(errors.invalid_argument("bad", "bio")), instance="/x")
    assert orjson.loads(found.body)["violations"] == [{"field": "bio", "message": "bad"}]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret text"),
        rpc_error(RoostError(grpc.StatusCode.UNKNOWN, "secret text")),
        rpc_error(RoostError(grpc.StatusCode.INTERNAL, "secret text")),
    ],
)
def test_problem_of_unexpected_error_hides_text(error: Exception) -> None:
    with structlog.testing.capture_logs() as logs:
        found = problem(error, instance="/x")
    problem_body = orjson.loads(found.body)
    assert found.status == 500
    assert b"secret" not in found.body
    assert logs[0]["error_id"] in problem_body["detail"]


def test_problem_of_internal_error_keeps_error_id() -> None:
    found = problem(rpc_error(errors.internal("abc123")), instance="/x")
    assert orjson.loads(found.body)["detail"] == "internal error abc123"


def test_problem_with_lone_surrogate_is_rendered() -> None:
    assert problem(errors.not_found("no \ud800"), instance="/\udcff").status == 404


def test_problem_of_http_error_keeps_headers() -> None:
    found = problem(HttpError(405, "method_not_allowed", "no", ((b"allow", b"GET"),)), instance="/x")
    assert (b"allow", b"GET") in found.headers
