"""One binding of one RPC, served: token, rate limit, decode, call, encode. The one path that every route of the contract takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from roost.options.v1 import options_pb2 as options

from gateway_http import etag as caching
from gateway_http import rate_limits as limits
from gateway_http.codec.binding import Codec, DecodedRequest
from gateway_http.page_numbers import DEPRECATION, Skipper
from gateway_http.problem import Refusal
from gateway_http.request import JSON, SECURITY, Request, Response
from gateway_http.response_cache import Key, ResponseCache
from gateway_http.router import Binding
from services.platform.auth.tokens import Verifier
from services.platform.caching import read_tracking
from services.platform.rpc import errors
from services.platform.rpc.context import ANONYMOUS, NEVER, Actor, Call, bounded_user_agent, current_call
from services.platform.rpc.contract import Method
from services.platform.rpc.interceptors import check_access
from services.platform.rpc.rate_limits import RateLimits
from services.platform.rpc.reasons import Reason

_VARY = (b"vary", b"authorization, accept-encoding")
_READ_PUBLIC = (JSON, *SECURITY, (b"cache-control", caching.PUBLIC), _VARY)
_READ_PRIVATE = (JSON, *SECURITY, (b"cache-control", caching.PRIVATE), _VARY)
_WRITE = (JSON, *SECURITY, (b"cache-control", caching.NO_STORE))

_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class RouteDeps:
    """What all operations share."""

    channel: grpc.aio.Channel
    verifier: Verifier
    rate_limits: RateLimits
    codec: Codec
    response_cache: ResponseCache


class RpcRoute:
    """Serves one binding of one method."""

    is_probe = False

    def __init__(self, method: Method, binding: Binding, front: RouteDeps) -> None:
        """An error of the contract is an exception here, at start: TypeError or ValueError."""
        self.name = f"{method.service.rpartition('.')[2]}/{method.name}"
        self._method = method
        self._path = method.path
        self._front = front
        self._needs_user = method.policy.access != options.ACCESS_PUBLIC
        self._limit = front.rate_limits.limit_of(method)
        self._deadline_s = method.policy.deadline_ms / 1000 or NEVER
        self._is_read = binding.http_method == "GET"
        self._status = method.policy.success_status or 200
        self._streams = method.server_streaming or method.client_streaming
        if self._streams:
            return
        self._reader = front.codec.reader(method, binding)
        self._write: Callable[[Any], bytes] = front.codec.writer(method, binding)
        self._remembers = self._is_read and method.policy.response_cache
        self._skipper = Skipper(method) if method.policy.page_numbers else None
        # Joined bytes pass through: the twin, where there is one, is what comes back.
        self._call: Any = front.channel.unary_unary(
            method.path, method.request.SerializeToString, method.wire_response.FromString
        )

    async def serve(self, request: Request) -> Response:
        """Answers one request; raises RoostError, AioRpcError or Refusal."""
        actor = await self._admit(request)
        if self._streams:
            check_access(self._method, Call(actor=actor))
            raise errors.unimplemented(f"{self.name} is not served over HTTP yet")
        if self._remembers and not request.has_body():
            return await self._remembering(request, actor)
        answer, asked = await self._served(request, actor)
        return self._respond(self._write(answer), actor, request, asked)

    async def _served(self, request: Request, actor: Actor) -> tuple[Any, DecodedRequest]:
        headers = request.headers
        body = await self._body(request) if request.has_body() else b""
        key = headers.get(b"idempotency-key", b"").decode("latin-1")
        asked = self._reader.read(request.values, request.scope["query_string"], body, actor.user_id, key)
        return await self._ask(asked, actor, request), asked

    async def _remembering(self, request: Request, actor: Actor) -> Response:
        """As without remembering, but that an answer nothing has changed since is not made again."""
        response_cache = self._front.response_cache
        key: Key = (actor.user_id, request.raw_path, request.scope["query_string"])
        found = response_cache.find(key)
        if found is None:
            with read_tracking.reading() as reading:
                answer, asked = await self._served(request, actor)
            if asked.page:
                return self._respond(self._write(answer), actor, request, asked)
            found = self._tagged(self._write(answer), actor)
            response_cache.keep(key, *found, reading)
        return _unless_known(request, *found)

    async def _identify(self, request: Request) -> Actor:
        authorization = request.headers.get(b"authorization")
        if authorization is None:
            if self._needs_user:
                raise errors.unauthenticated()
            return ANONYMOUS
        if authorization[:7].lower() != _BEARER:
            raise errors.unauthenticated("authorization must be `Bearer <token>`", Reason.TOKEN_INVALID)
        token = authorization[7:].strip().decode("latin-1")
        if not token:
            raise errors.unauthenticated("the token is empty", Reason.TOKEN_INVALID)
        verifier = self._front.verifier
        # The cache first: most calls need no await, and no second look at the token.
        return verifier.cached(token) or await verifier.verify(token)

    async def _admit(self, request: Request) -> Actor:
        """Who asks, counted in the method's class: a token that does not hold is counted for the address. Raises as serve."""
        try:
            actor = await self._identify(request)
        except errors.RoostError:
            self._take(0, request)
            raise
        self._take(actor.user_id, request)
        return actor

    def _take(self, user_id: int, request: Request) -> None:
        if self._limit is not None:
            verdict = self._limit.take(user_id, request.address)
            request.response_headers.extend(limits.headers(verdict, time.time()))
            verdict.enforce()

    async def _body(self, request: Request) -> bytes:
        headers = request.headers
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal(415, "unsupported_media_type", "a body may not be compressed")
        body = await request.read_body()
        if body:
            media = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if media != b"application/json" and not (media.startswith(b"application/") and media.endswith(b"+json")):
                raise Refusal(415, "unsupported_media_type", "a body must be application/json")
        return body

    async def _ask(self, asked: DecodedRequest, actor: Actor, request: Request, until: float = NEVER) -> Any:
        # `until` is a deadline of the client's own, in the loop's seconds: it may only be the earlier one.
        deadline = min(until, asyncio.get_running_loop().time() + self._deadline_s)
        agent = bounded_user_agent(request.headers.get(b"user-agent", b"").decode("latin-1"))
        ids = request.request_id, request.traceparent
        call = Call(self._path, actor, "", *ids, deadline, user_agent=agent, address=request.address)
        before = current_call.set(call)
        try:
            if asked.page and self._skipper is not None:
                return await self._skipper.fetch(self._call, asked.message, asked.page)
            if self._limit is None or not self._limit.names_account:
                return await self._call(asked.message)
            with self._limit.attempt(asked.message, actor.user_id, request.address):
                return await self._call(asked.message)
        finally:
            current_call.reset(before)

    def _respond(self, payload: bytes, actor: Actor, request: Request, asked: DecodedRequest) -> Response:
        if asked.page:
            request.response_headers.append(DEPRECATION)
        if not self._is_read:
            return Response(self._status, _WRITE, payload)
        return _unless_known(request, *self._tagged(payload, actor))

    def _tagged(self, payload: bytes, actor: Actor) -> tuple[Response, bytes]:
        """The answer to a read, and its entity tag."""
        tag = caching.etag(payload)
        fixed = _READ_PRIVATE if actor.user_id else _READ_PUBLIC
        return Response(self._status, (*fixed, (b"etag", tag)), payload, compressible=True), tag


def _unless_known(request: Request, whole: Response, tag: bytes) -> Response:
    """The answer, or 304 where the client's If-None-Match names it."""
    known = request.headers.get(b"if-none-match")
    if known is None or not caching.matches(known, tag):
        return whole
    # RFC 9110: the headers of the answer, without those that describe a body.
    return Response(304, whole.headers[1:], b"")
