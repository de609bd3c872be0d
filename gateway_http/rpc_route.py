"""Serves one HTTP binding of one RPC: verifies the token, applies the rate limit, decodes the request, calls the
service, encodes the response.

RpcRoute serves every route that the protos declare.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import grpc
from roost.options.v1 import options_pb2 as options

from gateway_http import etag, rate_limits
from gateway_http.codec.binding import Codec, DecodedRequest
from gateway_http.page_numbers import DEPRECATION, NumberedPages
from gateway_http.problem import HttpError
from gateway_http.request import JSON_CONTENT_TYPE, SECURITY_HEADERS, Request, Response
from gateway_http.router import Binding
from services.platform.auth.tokens import Verifier
from services.platform.rpc import errors
from services.platform.rpc.context import ANONYMOUS, NEVER, Actor, Call, bounded_user_agent, current_call
from services.platform.rpc.contract import Method
from services.platform.rpc.interceptors import check_access
from services.platform.rpc.rate_limits import RateLimits
from services.platform.rpc.reasons import Reason

_VARY = (b"vary", b"authorization, accept-encoding")
_READ_PUBLIC = (JSON_CONTENT_TYPE, *SECURITY_HEADERS, (b"cache-control", etag.PUBLIC), _VARY)
_READ_PRIVATE = (JSON_CONTENT_TYPE, *SECURITY_HEADERS, (b"cache-control", etag.PRIVATE), _VARY)
_WRITE = (JSON_CONTENT_TYPE, *SECURITY_HEADERS, (b"cache-control", etag.NO_STORE))

_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class RouteDeps:
    """The objects that all routes share."""

    channel: grpc.aio.Channel
    verifier: Verifier
    rate_limits: RateLimits
    codec: Codec


class RpcRoute:
    """Serves one HTTP binding of one method."""

    is_probe = False

    def __init__(self, method: Method, binding: Binding, deps: RouteDeps) -> None:
        """Raises TypeError or ValueError if the gateway cannot decode the request type from JSON, or encode the
        response type as JSON."""
        self.name = f"{method.service.rpartition('.')[2]}/{method.name}"
        self._method = method
        self._path = method.path
        self._deps = deps
        self._needs_user = method.policy.access != options.ACCESS_PUBLIC
        self._limit = deps.rate_limits.limit_of(method)
        self._deadline_s = method.policy.deadline_ms / 1000 or NEVER
        self._is_read = binding.http_method == "GET"
        self._status = method.policy.success_status or 200
        self._streams = method.server_streaming or method.client_streaming
        if self._streams:
            return
        self._reader = deps.codec.reader(method, binding)
        self._writer = deps.codec.writer(method, binding)
        self._numbered_pages = NumberedPages(method) if method.policy.page_numbers else None
        # If the method has a wire type, the response is parsed as the wire type: it holds each tweet as bytes, which
        # the gateway does not parse.
        self._call: Any = deps.channel.unary_unary(
            method.path, method.request.SerializeToString, method.wire_response.FromString
        )

    async def serve(self, request: Request) -> Response:
        """Serves one request. Raises RoostError, grpc.aio.AioRpcError (the status of the called service) or HttpError.

        Raises UNIMPLEMENTED for a streaming RPC, after the token and the access of its caller are checked.
        """
        actor = await self._identify_and_limit(request)
        if self._streams:
            check_access(self._method, Call(actor=actor))
            raise errors.unimplemented(
                f"{self.name} is a stream, and streams are not served over HTTP: call it by gRPC"
            )
        body = await self._body(request) if request.has_body() else b""
        key = request.headers.get(b"idempotency-key", b"").decode("latin-1")
        decoded = self._reader.read(request.path_values, request.scope["query_string"], body, actor.user_id, key)
        answer = await self._call_service(decoded, actor, request)
        return self._respond(answer, actor, request, decoded)

    async def _verify_token(self, request: Request) -> Actor:
        authorization = request.headers.get(b"authorization")
        if authorization is None:
            if self._needs_user:
                raise errors.unauthenticated()
            return ANONYMOUS
        if authorization[:7].lower() != _BEARER:
            raise errors.unauthenticated("authorization must be `Bearer <token>`", Reason.TOKEN_INVALID)
        token = authorization[7:].strip().decode("latin-1")
        if not token:
            raise errors.unauthenticated("the token after `Bearer` is empty", Reason.TOKEN_INVALID)
        verifier = self._deps.verifier
        # Most tokens are in the verifier's cache, whose look-up needs no await.
        actor = verifier.cached(token) or await verifier.verify(token)
        request.user_id = actor.user_id
        return actor

    async def _identify_and_limit(self, request: Request) -> Actor:
        """Verifies the token, counts the request against the method's rate limit, and returns the actor (ANONYMOUS
        without a token).

        Counts by user, or by client address if the request has no valid token. Raises UNAUTHENTICATED if the token is
        invalid, or is missing and needed; RESOURCE_EXHAUSTED above the limit.
        """
        try:
            actor = await self._verify_token(request)
        except errors.RoostError:
            await self._count_request(0, request)
            raise
        await self._count_request(actor.user_id, request)
        return actor

    async def _count_request(self, user_id: int, request: Request) -> None:
        if self._limit is not None:
            verdict = await self._limit.take(user_id, request.address)
            request.response_headers.extend(rate_limits.headers(verdict, time.time()))
            verdict.enforce()

    async def _body(self, request: Request) -> bytes:
        headers = request.headers
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise HttpError(
                415, "unsupported_media_type", "the body must not be compressed: send it without content-encoding"
            )
        body = await request.read_body()
        if body:
            media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if media != b"application/json" and not (media.startswith(b"application/") and media.endswith(b"+json")):
                raise HttpError(415, "unsupported_media_type", "the content-type of the body must be application/json")
        return body

    async def _call_service(self, decoded: DecodedRequest, actor: Actor, request: Request, until: float = NEVER) -> Any:
        # `until` is the deadline that the client requested, in seconds of the event loop's clock. The earlier of
        # `until` and the method's own deadline applies.
        deadline = min(until, asyncio.get_running_loop().time() + self._deadline_s)
        agent = bounded_user_agent(request.headers.get(b"user-agent", b"").decode("latin-1"))
        ids = request.request_id, request.traceparent
        call = Call(self._path, actor, "", *ids, deadline, user_agent=agent, address=request.address)
        before = current_call.set(call)
        try:
            if decoded.page and self._numbered_pages is not None:
                return await self._numbered_pages.fetch(self._call, decoded.message, decoded.page)
            if self._limit is None or not self._limit.names_account:
                return await self._call(decoded.message)
            async with self._limit.attempt(decoded.message, actor.user_id, request.address):
                return await self._call(decoded.message)
        finally:
            current_call.reset(before)

    def _respond(self, answer: Any, actor: Actor, request: Request, decoded: DecodedRequest) -> Response:
        if decoded.page:
            request.response_headers.append(DEPRECATION)
        if not self._is_read:
            return Response(self._status, _WRITE, self._writer.body(answer))
        written = self._writer.tagged(answer)
        tag = written.tag
        fixed = _READ_PRIVATE if actor.user_id else _READ_PUBLIC
        return _or_not_modified(
            request, Response(self._status, (*fixed, (b"etag", tag)), written.body, gzip=written.gzip), tag
        )


def _or_not_modified(request: Request, whole: Response, tag: bytes) -> Response:
    """Returns `whole`, or status 304 without a body if the request's header If-None-Match contains `tag`."""
    known = request.headers.get(b"if-none-match")
    if known is None or not etag.matches(known, tag):
        return whole
    # A 304 has the same headers as the 200 except content-type (RFC 9110, 15.4.5), which is the first header of
    # `whole`.
    return Response(304, whole.headers[1:], b"")
