"""Serves the methods of a process over a socket with a grpc.aio server, with health, reflection and drain.

All served calls, also of health and reflection, count in `Admission`, which limits concurrent calls and streams. Calls
from outside the mesh also have rate limits, except calls of health and the operator's calls of the contract's services.
"""

from __future__ import annotations

import asyncio
import errno
import math
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from time import monotonic
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from services.platform import open_files
from services.platform.rpc import errors
from services.platform.rpc.client_address import TrustedProxies
from services.platform.rpc.context import NEVER, OPERATOR, Call, bounded_user_agent
from services.platform.rpc.interceptors import InterceptedMethod, unexpected_error
from services.platform.rpc.rate_limits import MethodLimit, RateLimits
from services.platform.transport import grpc_health, reflection
from services.platform.transport.admission import MAX_OPEN_CALLS, Admission, Visitor
from services.platform.transport.authenticator import Authenticator, Identity
from services.platform.transport.call_log import log_call
from services.platform.transport.remote import REQUEST_ID_KEY, TRACE_KEY, USER_AGENT_KEY

# The largest valid request (AppendHomeEntries, 10,000 ids) has under 100 kB, an import of 1,000 users about 300 kB.
MAX_MESSAGE_BYTES = 1 << 20
# Concurrent calls on one connection. A process of the mesh has one connection for each caller and target.
MAX_STREAMS_PER_CONNECTION = 1_000
# Seconds that calls in progress get to end after the server has stopped accepting calls.
GRACE_S = 10.0
# The shortest allowed interval of pings without data. Channels of the mesh ping every 30 s while a stream is silent,
# and by default a server closes connections that ping more often than every 5 minutes.
LEAST_PING_MS = 10_000
# Connections without a call for this long are closed; clients connect again by themselves.
IDLE_MS = 300_000
# Characters of a request id or traceparent from the metadata; the rest is ignored.
MAX_ID_CHARS = 128
# Seconds within which the request message must arrive, even if the deadline is later. Streams and health checks may
# have no deadline at all.
FIRST_MESSAGE_S = 10.0


class GrpcServer:
    """A gRPC server on one address. Call `bind`, then `start`; at the end call `withdraw`, then `stop`."""

    def __init__(
        self,
        authenticator: Authenticator,
        rate_limits: RateLimits,
        proxies: TrustedProxies,
        *,
        reflect: bool,
        log_calls: bool = False,
    ) -> None:
        self._authenticator = authenticator
        self._rate_limits = rate_limits
        self._admission = Admission(authenticator, proxies)
        self._reflect = reflect
        self._log_calls = log_calls
        self._health = grpc_health.Health()
        options = (
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            # Further connections are closed: without a free file descriptor no store could open a file.
            ("grpc.max_allowed_incoming_connections", open_files.grpc_connections(open_files.limit())),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            # By default, gRPC rejects some calls with CANCELLED, without a reason, if more than 1,000 are pending.
            ("grpc.server.max_pending_requests", MAX_OPEN_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_OPEN_CALLS),
            # Otherwise a second process could bind the same port, and the calls would be split at random.
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_MS),
            ("grpc.keepalive_permit_without_calls", 1),
        )
        self._server = grpc.aio.server(options=options)

    def bind(self, address: str) -> int:
        """Binds `address` (host:port, 0: a free port) and returns the port. Raises UNAVAILABLE if that fails."""
        _probe(address)
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise errors.unavailable(f"cannot listen on {address}: is the port taken?") from error

    async def start(self, endpoints: Mapping[str, InterceptedMethod]) -> None:
        """Serves the methods (by path), reflection if enabled, and health, by full service name and by folder name."""
        by_service: dict[str, dict[str, Any]] = {}
        for endpoint in endpoints.values():
            by_service.setdefault(endpoint.method.service, {})[endpoint.method.name] = self._rpc(endpoint)
        by_service[grpc_health.SERVICE] = self._health_rpcs()
        if self._reflect:
            questions = self._reflection_rpcs(reflection.Reflection(by_service))
            by_service.update(dict.fromkeys(reflection.SERVICES, questions))
        for name, rpcs in by_service.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, rpcs),))
        await self._server.start()
        served = [endpoint.method for endpoint in endpoints.values() if endpoint.served]
        for name in {"", *(method.service for method in served), *(method.service_name for method in served)}:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def withdraw(self) -> None:
        """Reports NOT_SERVING for every service in health checks from now on. Calls are still served."""
        self._health.drain()

    async def stop(self) -> None:
        """Stops accepting calls, ends health watches, and cancels calls that are still in progress after GRACE_S."""
        self._health.end()
        await self._server.stop(GRACE_S)

    def _rpc(self, endpoint: InterceptedMethod) -> Any:
        # No deserializer: requests are parsed after the access check, because parsing a megabyte can take 70 ms.
        if endpoint.method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(_unserved, None, _serialize)
        # Request streams, although there is one request: otherwise gRPC never responds to a call that sends none.
        if endpoint.method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(endpoint), None, _serialize)
        return grpc.stream_unary_rpc_method_handler(self._unary(endpoint), None, _serialize)

    def _unary(self, endpoint: InterceptedMethod) -> Callable[..., Any]:
        limit = self._rate_limits.limit_of(endpoint.method)

        async def serve(_: Any, context: Any) -> Message:
            visitor = self._admission.visitor(context)
            with self._reply(endpoint, visitor, context) as reply:
                try:
                    with self._admission.open(visitor):
                        call = await self._call(endpoint, limit, visitor, reply, context)
                        request = await _message(context, call.deadline)
                        with self._admission.served(visitor), _attempt(limit, endpoint, request, call, visitor):
                            return await endpoint.unary(request, call, reply)
                except Exception as error:
                    await reply.refuse(_told(error, endpoint.method.path, reply.request_id))
                    raise AssertionError("abort returned") from error

        return serve

    def _stream(self, endpoint: InterceptedMethod) -> Callable[..., Any]:
        limit = self._rate_limits.limit_of(endpoint.method)

        async def serve(_: Any, context: Any) -> AsyncIterator[Message]:
            visitor = self._admission.visitor(context)
            with self._reply(endpoint, visitor, context) as reply:
                try:
                    with self._admission.stream(visitor):
                        call = await self._call(endpoint, limit, visitor, reply, context)
                        request = await _message(context, call.deadline)
                        with _attempt(limit, endpoint, request, call, visitor):
                            async for message in endpoint.stream(request, call, reply):
                                yield message
                except Exception as error:
                    await reply.refuse(_told(error, endpoint.method.path, reply.request_id))

        return serve

    def _reply(self, endpoint: InterceptedMethod, visitor: Visitor, context: Any) -> _Reply:
        return _Reply(endpoint.method.path, visitor.metadata, context, logged=self._log_calls)

    async def _call(
        self, endpoint: InterceptedMethod, limit: MethodLimit | None, visitor: Visitor, reply: _Reply, context: Any
    ) -> Call:
        """Authenticates the call and returns it; counts it in `limit` if neither the mesh nor the operator made it.
        Raises UNAUTHENTICATED, UNAVAILABLE, RESOURCE_EXHAUSTED, or INVALID_ARGUMENT if a service sends no deadline.
        """
        metadata = visitor.metadata
        actor, caller = await self._identify(limit, visitor)
        reply.user_id = actor.user_id
        left = context.time_remaining()
        # `cap_s` is NEVER for streams that last as long as their reader: they need no deadline.
        if left is None and endpoint.cap_s != NEVER and caller not in ("", OPERATOR):
            raise errors.invalid_argument("a call between services needs a deadline")
        allowed = min(endpoint.cap_s, NEVER if left is None else left)
        deadline = asyncio.get_running_loop().time() + allowed
        # A process of the mesh forwards the user agent of its client. Its own header `user-agent` is ignored.
        agent = bounded_user_agent(metadata.get(USER_AGENT_KEY if visitor.is_mesh else "user-agent", ""))
        ids = (reply.request_id, reply.traceparent)
        return Call(endpoint.method.path, actor, caller, *ids, deadline, agent, visitor.address)

    async def _identify(self, limit: MethodLimit | None, visitor: Visitor) -> Identity:
        limited = limit if not visitor.is_mesh else None
        try:
            identity = await self._authenticator.identify(visitor.metadata)
        except errors.RoostError:
            if limited is not None:
                # Calls with an invalid token count for the address, so guessing tokens is limited as well.
                limited.take(0, visitor.address).enforce()
            raise
        if limited is not None and identity.caller != OPERATOR:
            limited.take(identity.actor.user_id, visitor.address).enforce()
        return identity

    def _health_rpcs(self) -> dict[str, Any]:
        # Any, because the type stubs do not declare the messages of List.
        messages: Any = health_pb2
        asked = health_pb2.HealthCheckRequest
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        return {
            "Check": unary(self._probed(self._health.check, asked), None, _serialize),
            "List": unary(self._probed(self._health.list, messages.HealthListRequest), None, _serialize),
            "Watch": stream(self._watched(self._health.watch, asked), None, _serialize),
        }

    def _reflection_rpcs(self, servicer: reflection.Reflection) -> dict[str, Any]:
        async def serve(questions: Any, context: Any) -> AsyncIterator[Any]:
            visitor = self._admission.visitor(context)
            try:
                with self._admission.stream(visitor):
                    if not visitor.is_mesh:
                        self._rate_limits.count_read(visitor.address)
                    async for answer in servicer.answers(questions, context):
                        yield answer
            except Exception as error:
                await _abort(context, _told(error, "reflection", ""), ())

        parse = reflection_pb2.ServerReflectionRequest.FromString
        return {reflection.METHOD: grpc.stream_stream_rpc_method_handler(serve, parse, _serialize)}

    def _probed(self, answer: Callable[[Any], Awaitable[Message]], asked: type[Message]) -> Callable[..., Any]:
        """Returns a handler without authentication and rate limit: a rejected health check may cause a restart."""

        async def serve(_: Any, context: Any) -> Message:
            try:
                with self._admission.probe():
                    return await answer(_parsed(asked, await _message(context, NEVER)))
            except Exception as error:
                await _abort(context, _told(error, "health check", ""), ())
                raise AssertionError("abort returned") from error

        return serve

    def _watched(self, answers: Callable[[Any], AsyncIterator[Message]], asked: type[Message]) -> Callable[..., Any]:
        """Returns a handler without authentication and rate limit: channels send health watches without metadata."""

        async def serve(_: Any, context: Any) -> AsyncIterator[Message]:
            visitor = self._admission.visitor(context)
            try:
                with self._admission.stream(visitor):
                    async for message in answers(_parsed(asked, await _message(context, NEVER))):
                        yield message
            except Exception as error:
                await _abort(context, _told(error, "health watch", ""), ())

        return serve


def _probe(address: str) -> None:
    """Raises UNAVAILABLE, with the reason, if a socket cannot be bound to `address` (host:port).

    gRPC itself would write to its own log, and its error contains no reason.
    """
    host, _, port = address.rpartition(":")
    try:
        backend, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(backend, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            # With SO_REUSEADDR, two sockets may bind one port until one of them listens.
            probe.listen(1)
    except OSError as error:
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise errors.unavailable(f"cannot serve gRPC on {address}: {why}") from error


class _Reply:
    """The servicer context of one call: sends its trailing metadata, which include the request id, and its status.

    It stores the trailing metadata too, because an abort replaces those that were set. As a context manager it logs the
    call at its end if `logged` is true.
    """

    __slots__ = ("_began", "_code", "_context", "_logged", "_method", "_sent", "request_id", "traceparent", "user_id")

    def __init__(self, method: str, metadata: Mapping[str, str], context: Any, *, logged: bool) -> None:
        self._began = monotonic()
        self._code = grpc.StatusCode.OK
        self._context = context
        self._logged = logged
        self._method = method
        self.request_id = metadata.get(REQUEST_ID_KEY, "")[:MAX_ID_CHARS] or secrets.token_hex(8)
        self.traceparent = metadata.get(TRACE_KEY, "")[:MAX_ID_CHARS] or _new_trace()
        self.user_id = 0
        self.set_trailing_metadata(())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        # A servicer may forward the trailing metadata of another call, with the request id of that call: it is dropped.
        rest = (pair for pair in trailing_metadata if pair[0] != REQUEST_ID_KEY)
        self._sent: tuple[tuple[str, str | bytes], ...] = ((REQUEST_ID_KEY, self.request_id), *rest)
        self._context.set_trailing_metadata(self._sent)

    async def refuse(self, error: errors.RoostError) -> None:
        """Ends the call with the error. Raises grpc.aio's AbortError, so it never returns."""
        self._code = error.code
        await _abort(self._context, error, self._sent)

    def __enter__(self) -> _Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._logged:
            return
        ended_early = kind is not None and not issubclass(kind, Exception)
        code = grpc.StatusCode.CANCELLED if ended_early else self._code
        log_call(self._method, code, self._began, self.user_id, self.request_id, self.traceparent)


def _new_trace() -> str:
    """Returns a W3C traceparent with a new trace id and the sampled flag."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def _attempt(
    limit: MethodLimit | None, endpoint: InterceptedMethod, data: bytes, call: Call, visitor: Visitor
) -> AbstractContextManager[None]:
    if limit is None or not limit.names_account or visitor.is_mesh or call.caller == OPERATOR:
        return nullcontext()
    return limit.attempt(endpoint.parsed(data), call.actor.user_id, visitor.address)


async def _message(context: Any, deadline: float) -> bytes:
    """Returns the serialised request of a call. `deadline` is in seconds of the event loop's clock.

    Raises DEADLINE_EXCEEDED if none arrives by `deadline` or within FIRST_MESSAGE_S seconds, INVALID_ARGUMENT if the
    call ends without one.
    """
    by = min(deadline, asyncio.get_running_loop().time() + FIRST_MESSAGE_S)
    try:
        async with asyncio.timeout_at(by):
            data = await context.read()
    except TimeoutError:
        raise errors.deadline_exceeded("no request came in time") from None
    if data is grpc.aio.EOF:
        raise errors.invalid_argument("the call ended without a request")
    return data  # type: ignore[no-any-return]


def _parsed(cls: type[Message], data: bytes) -> Message:
    try:
        return cls.FromString(data)
    except DecodeError:
        raise errors.invalid_argument("the request is not a valid message") from None


def _told(error: Exception, method: str, request_id: str) -> errors.RoostError:
    """Returns a RoostError unchanged. Logs any other exception and returns INTERNAL with an error id instead."""
    return error if isinstance(error, errors.RoostError) else unexpected_error(error, method, request_id)


async def _abort(context: Any, error: errors.RoostError, sent: tuple[tuple[str, str | bytes], ...]) -> None:
    details = [*sent, (errors.STATUS_KEY, error.status().SerializeToString())]
    if error.retry_after_s is not None:
        # For clients that do not parse the status details, whose RetryInfo contains the same delay.
        details.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    await context.abort(error.code, error.message, tuple(details))


async def _unserved(_: Any, context: Any) -> None:
    await _abort(context, errors.unimplemented("client streams are not served yet"), ())


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
