"""Serves unary calls of the Connect protocol: `POST /roost.<service>.v1.<Service>/<Rpc>` with a message as JSON or as binary Protobuf.

Token, rate limit, access and deadline are the same as for every other route. Responses are in Protobuf's own JSON (camelCase, full enum
names), errors in Connect's JSON with `code`, `message` and `details`. Requests may use snake_case or camelCase names, and every form
of integers and enums that Protobuf's JSON allows. Methods internal to the mesh and streams have no route here, so they are NOT_FOUND.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import re

import grpc
import orjson
from roost.options.v1 import options_pb2 as options

from gateway_http import etag
from gateway_http.codec.binding import Codec, DecodedRequest
from gateway_http.codec.encoder import PROTOBUF
from gateway_http.problem import HttpError, error_headers, to_public_error, with_http_status
from gateway_http.request import JSON_CONTENT_TYPE, MAX_BODY_BYTES, SECURITY_HEADERS, ClientGoneError, Request, Response
from gateway_http.router import Binding, bindings
from gateway_http.rpc_route import RouteDeps, RpcRoute
from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, Actor
from services.platform.rpc.contract import Method, methods
from services.platform.rpc.errors import RoostError
from services.platform.rpc.reasons import Reason

# Binary messages may be larger than JSON bodies: Protobuf's parser costs a hundredth of JSON's.
MAX_BINARY_BYTES = 1 << 20

PROTOCOL_VERSION = b"1"
# The protocol allows at most ten digits of milliseconds: 115 days.
_TIMEOUT_MS = re.compile(rb"[0-9]{1,10}").fullmatch

_PROTO = (b"content-type", b"application/proto")
_NO_STORE = (b"cache-control", etag.NO_STORE)
_JSON_HEADERS = (JSON_CONTENT_TYPE, *SECURITY_HEADERS, _NO_STORE)
_PROTO_HEADERS = (_PROTO, *SECURITY_HEADERS, _NO_STORE)
_ACCEPTED = (b"accept-post", b"application/json, application/proto")

# The gRPC status that Connect reports for an error that has only an HTTP status; UNKNOWN for any other HTTP status.
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
        # Only reads, the methods with a GET binding, are compressed (see `compression`).
        self._compressible = any(one.http_method == "GET" for one in bindings(method))

    async def serve(self, request: Request) -> Response:
        """Serves one call; renders every error as Connect's JSON. Raises only ClientGoneError, if the client
        disconnected."""
        try:
            return await self._serve(request)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            # The server's grace period is over. This task serves only this request, so no caller awaits the cancellation.
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
            return Response(200, _JSON_HEADERS, self._write(answer), compressible=self._compressible)
        # The response class may keep tweets as raw bytes. It serializes to the same bytes as the declared type, so the
        # gateway forwards the tweets without parsing them.
        payload = answer.SerializeToString()
        return Response(200, _PROTO_HEADERS, payload, compressible=self._compressible)

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
    """Returns the client's deadline in seconds of the loop's clock, NEVER if it sent none. Raises INVALID_ARGUMENT if malformed."""
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
    """Returns true for a JSON body, false for a binary one. Raises 415 for other types, UNIMPLEMENTED for a compressed body."""
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
    """Returns the name of a gRPC status in Connect's spelling."""
    return "canceled" if code is grpc.StatusCode.CANCELLED else code.name.lower()


def _details(error: RoostError) -> list[dict[str, str]]:
    """Returns the error's details in Connect's form: the type name without URL prefix, the bytes as base64 without padding."""
    return [
        {
            "type": detail.type_url.rpartition("/")[2],
            "value": base64.b64encode(detail.value).decode("ascii").rstrip("="),
        }
        for detail in error.status().details
    ]
