"""The Connect protocol, unary: `POST /roost.<service>.v1.<Service>/<Rpc>` with a message as JSON or in Protobuf's binary form.

The same front as every other route: token, rate limit, access, deadline. What differs is spelling: responses in Protobuf's own JSON
(camelCase, enums in full), errors as Connect's JSON with `code`, `message` and `details`. Requests are read in either spelling, as
strictly as elsewhere, but that integers and enums may be written in every way of Protobuf's JSON. Internal methods and streams have no
route here: they look like any path that does not exist.
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
from gateway_http.problem import Refusal, as_refusal, headers_of, to_public_error
from gateway_http.request import JSON, MAX_BODY_BYTES, SECURITY, ClientGoneError, Request, Response
from gateway_http.router import Binding, bindings
from gateway_http.rpc_route import RouteDeps, RpcRoute
from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, Actor
from services.platform.rpc.contract import Method, methods
from services.platform.rpc.errors import RoostError
from services.platform.rpc.reasons import Reason

# Binary messages are read by a bounded parser in C, at a hundredth of JSON's cost: they may be larger.
MAX_BINARY_BYTES = 1 << 20

PROTOCOL_VERSION = b"1"
# At most ten digits of milliseconds, by the protocol: 115 days.
_TIMEOUT_MS = re.compile(rb"[0-9]{1,10}").fullmatch

_PROTO = (b"content-type", b"application/proto")
_NO_STORE = (b"cache-control", etag.NO_STORE)
_JSON_HEADERS = (JSON, *SECURITY, _NO_STORE)
_PROTO_HEADERS = (_PROTO, *SECURITY, _NO_STORE)
_ACCEPTED = (b"accept-post", b"application/json, application/proto")

# Refusals that gRPC has no code for, by their HTTP status, which stays as it is; anything else is `unknown`.
_CODE_OF_REFUSAL = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def routes(front: RouteDeps) -> list[tuple[Binding, ConnectCall]]:
    """A route for each unary method that clients outside may call."""
    spelt = dataclasses.replace(front, codec=Codec(PROTOBUF))
    found: list[tuple[Binding, ConnectCall]] = []
    for method in methods().values():
        if method.policy.access == options.ACCESS_MESH or method.server_streaming or method.client_streaming:
            continue
        binding = Binding("POST", method.path, body="*")
        found.append((binding, ConnectCall(method, binding, spelt)))
    return found


class ConnectCall(RpcRoute):
    """Serves one method."""

    def __init__(self, method: Method, binding: Binding, front: RouteDeps) -> None:
        super().__init__(method, binding, front)
        self.name = f"connect/{self.name}"
        # As elsewhere reads alone: what has a GET of its own.
        self._compressible = any(one.http_method == "GET" for one in bindings(method))

    async def serve(self, request: Request) -> Response:
        """Answers one call; every refusal is an answer too. Raises ClientGoneError alone."""
        try:
            return await self._serve(request)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            # As for every route: the server's grace is over, and nobody above waits for the exception.
            return _refused(errors.unavailable("the server is stopping", reason=Reason.STOPPING), request)
        except Exception as error:
            return _refused(error, request)

    async def _serve(self, request: Request) -> Response:
        until = _deadline(request)
        actor = await self._admit(request)
        is_json = _reads_json(request)
        asked = await self._read(request, actor, is_json)
        answer = await self._ask(asked, actor, request, until)
        if is_json:
            return Response(200, _JSON_HEADERS, self._write(answer), compressible=self._compressible)
        # A twin's bytes are the message's: joined tweets leave as they came.
        payload = answer.SerializeToString()
        return Response(200, _PROTO_HEADERS, payload, compressible=self._compressible)

    async def _read(self, request: Request, actor: Actor, is_json: bool) -> DecodedRequest:
        if request.scope["query_string"]:
            raise errors.invalid_argument("a call by POST takes no query: its fields stand in the body")
        body = b""
        if request.has_body():
            body = await request.read_body(MAX_BODY_BYTES if is_json else MAX_BINARY_BYTES)
        key = request.headers.get(b"idempotency-key", b"").decode("latin-1")
        if is_json:
            return self._reader.read((), b"", body, actor.user_id, key)
        return self._reader.read_binary(body, key)


def _deadline(request: Request) -> float:
    """The client's deadline in the loop's seconds, NEVER where it sent none."""
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
    """Whether the call is in JSON, not in binary; refuses any other type, and compression."""
    media = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media not in (b"application/json", b"application/proto"):
        text = "a call's body is application/json or application/proto"
        raise Refusal(415, "unsupported_media_type", text, (_ACCEPTED,))
    if request.headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise errors.unimplemented("a body may not be compressed: identity is the only encoding")
    return media == b"application/json"


def _refused(error: BaseException, request: Request) -> Response:
    if isinstance(error, Refusal):
        code = _CODE_OF_REFUSAL.get(error.status, grpc.StatusCode.UNKNOWN)
        told = RoostError(code, error.detail, error.code.upper(), error.violations)
        refusal, retry_after = error, None
    else:
        told = to_public_error(error, request.request_id)
        refusal, retry_after = as_refusal(told)
    body = {"code": code_name(told.code), "message": told.message, "details": _details(told)}
    headers = (JSON, *headers_of(refusal, retry_after), *SECURITY)
    return Response(refusal.status, headers, orjson.dumps(body))


def code_name(code: grpc.StatusCode) -> str:
    """The code as Connect spells it."""
    return "canceled" if code is grpc.StatusCode.CANCELLED else code.name.lower()


def _details(error: RoostError) -> list[dict[str, str]]:
    """The error's details as Connect carries them: type without its prefix, bytes in base64 without padding."""
    return [
        {
            "type": detail.type_url.rpartition("/")[2],
            "value": base64.b64encode(detail.value).decode("ascii").rstrip("="),
        }
        for detail in error.status().details
    ]
