"""Serves unary calls of the Connect protocol: `POST /roost.<service>.v1.<Service>/<Rpc>` with a message as JSON or as
binary Protobuf.

Token, rate limit, access and deadline apply as on every other route. Responses are in Protobuf's own JSON (camelCase
names, full enum names), errors in Connect's JSON with `code`, `message` and `details`. Requests may use snake_case or
camelCase names, and every form of integers and enums that Protobuf's JSON allows. Streaming methods, and methods that
only services of the mesh may call, have no route: they are NOT_FOUND.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import re
from collections.abc import Sequence
from functools import partial

import grpc
import orjson
from roost.options.v1 import options_pb2 as options

from gateway_http import etag
from gateway_http.codec.binding import Codec, DecodedRequest
from gateway_http.codec.encoder import PROTOBUF
from gateway_http.compression import gzipped
from gateway_http.problem import HttpError, error_headers, to_public_error, with_http_status
from gateway_http.request import JSON_CONTENT_TYPE, MAX_BODY_BYTES, SECURITY_HEADERS, ClientGoneError, Request, Response
from gateway_http.router import Binding, bindings
from gateway_http.rpc_route import RouteDeps, RpcRoute
from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, Actor
from services.platform.rpc.contract import Method, methods
from services.platform.rpc.errors import RoostError
from services.platform.rpc.reasons import Reason

# Maximum size of a binary message in bytes; a larger one is rejected with status 413. A JSON body has a smaller
# maximum, because parsing JSON takes a hundred times as long as parsing Protobuf.
MAX_BINARY_BYTES = 1 << 20

PROTOCOL_VERSION = b"1"
# The syntax of the header connect-timeout-ms. The protocol allows at most ten digits of milliseconds (115 days).
_TIMEOUT_MS = re.compile(rb"[0-9]{1,10}").fullmatch

_PROTO = (b"content-type", b"application/proto")
_NO_STORE = (b"cache-control", etag.NO_STORE)
_JSON_HEADERS = (JSON_CONTENT_TYPE, *SECURITY_HEADERS, _NO_STORE)
_PROTO_HEADERS = (_PROTO, *SECURITY_HEADERS, _NO_STORE)
_ACCEPTED = (b"accept-post", b"application/json, application/proto")

# The gRPC status that a Connect error names if the error has only an HTTP status. It is UNKNOWN for HTTP statuses that
# are not listed.
_CODE_OF_HTTP_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def routes(deps: RouteDeps) -> list[tuple[Binding, ConnectCall]]:
    """Returns a route for each unary method that clients outside the mesh may call."""
    connect_deps = dataclasses.replace(deps, codec=Codec(PROTOBUF))
    found: list[tuple[Binding, ConnectCall]] = []
    for method in methods().values():
        if method.policy.access == options.ACCESS_MESH or method.server_streaming or method.client_streaming:
            continue
        binding = Binding("POST", method.path, body="*")
        found.append((binding, ConnectCall(method, binding, connect_deps)))
    return found


class ConnectCall(RpcRoute):
    """Serves one method by the Connect protocol."""

    def __init__(self, method: Method, binding: Binding, deps: RouteDeps) -> None:
        super().__init__(method, binding, deps)
        self.name = f"connect/{self.name}"
        # Only responses to reads are compressed, because they contain no secret (see `compression`). Reads have a GET
        # binding.
        self._compressible = any(one.http_method == "GET" for one in bindings(method))

    async def serve(self, request: Request) -> Response:
        """Serves one call. Renders every error as Connect's JSON. Raises only ClientGoneError, if the client
        disconnected."""
        try:
            return await self._serve(request)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            # The process is stopping, and its time limit for active requests has passed. This task serves only this
            # request, so no other code waits for the cancellation.
            stopping = errors.unavailable("the server is stopping: retry the request", reason=Reason.STOPPING)
            return _error_response(stopping, request)
        except Exception as error:
            return _error_response(error, request)

    async def _serve(self, request: Request) -> Response:
        until = _deadline(request)
        actor = await self._identify_and_limit(request)
        is_json = _reads_json(request)
        decoded = await self._read(request, actor, is_json)
        answer = await self._call_service(decoded, actor, request, until)
        if is_json:
            return self._response(_JSON_HEADERS, self._writer.body(answer))
        # `answer` may be of a wire type, which holds tweets as bytes. The declared response type has the same bytes on
        # the wire, so the gateway sends the tweets without parsing them.
        payload = answer.SerializeToString()
        return self._response(_PROTO_HEADERS, payload)

    def _response(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Response:
        return Response(200, headers, body, gzip=partial(gzipped, body) if self._compressible else None)

    async def _read(self, request: Request, actor: Actor, is_json: bool) -> DecodedRequest:
        if request.scope["query_string"]:
            raise errors.invalid_argument("the URL must have no query: put the fields of the request into the body")
        body = b""
        if request.has_body():
            body = await request.read_body(MAX_BODY_BYTES if is_json else MAX_BINARY_BYTES)
        key = request.headers.get(b"idempotency-key", b"").decode("latin-1")
        if is_json:
            return self._reader.read((), b"", body, actor.user_id, key)
        return self._reader.read_binary(body, key)


def _deadline(request: Request) -> float:
    """Returns the deadline that the client requests, in seconds of the event loop's clock; NEVER if it requests none.

    Raises INVALID_ARGUMENT if the header connect-timeout-ms is malformed, or if the header connect-protocol-version is
    not 1.
    """
    version = request.headers.get(b"connect-protocol-version", PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION:
        raise errors.invalid_argument("connect-protocol-version must be 1")
    timeout = request.headers.get(b"connect-timeout-ms")
    if timeout is None:
        return NEVER
    if _TIMEOUT_MS(timeout) is None:
        raise errors.invalid_argument("connect-timeout-ms must be milliseconds of at most ten digits")
    return asyncio.get_running_loop().time() + int(timeout) / 1000


def _reads_json(request: Request) -> bool:
    """Returns true if the body is JSON, false if it is binary Protobuf.

    Raises HttpError with status 415 for any other content type, UNIMPLEMENTED if the body is compressed.
    """
    media = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media not in (b"application/json", b"application/proto"):
        text = "the content-type of the body must be application/json or application/proto"
        raise HttpError(415, "unsupported_media_type", text, (_ACCEPTED,))
    if request.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise errors.unimplemented("the body must not be compressed: send it with content-encoding identity")
    return media == b"application/json"


def _error_response(error: BaseException, request: Request) -> Response:
    if isinstance(error, HttpError):
        code = _CODE_OF_HTTP_STATUS.get(error.status, grpc.StatusCode.UNKNOWN)
        public_error = RoostError(code, error.detail, error.code.upper(), error.violations)
        http_error, retry_after = error, None
    else:
        public_error = to_public_error(error)
        http_error, retry_after = with_http_status(public_error)
    body = {"code": code_name(public_error.code), "message": public_error.message, "details": _details(public_error)}
    headers = (JSON_CONTENT_TYPE, *error_headers(http_error, retry_after), *SECURITY_HEADERS)
    return Response(http_error.status, headers, orjson.dumps(body))


def code_name(code: grpc.StatusCode) -> str:
    """Returns the name of a gRPC status in Connect's JSON, such as `not_found`."""
    return "canceled" if code is grpc.StatusCode.CANCELLED else code.name.lower()


def _details(error: RoostError) -> list[dict[str, str]]:
    """Returns the details of the error in Connect's format: the type's name without URL prefix, the bytes as base64
    without padding."""
    return [
        {
            "type": detail.type_url.rpartition("/")[2],
            "value": base64.b64encode(detail.value).decode("ascii").rstrip("="),
        }
        for detail in error.status().details
    ]
