"""Serves the methods of a process over a socket with a grpc.aio server, with health, reflection and drain.

All served calls, also of health and reflection, count in `Admission`, which limits concurrent calls and streams. Calls
from outside the mesh also have rate limits, except calls of health and the operator's calls of the contract's services.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from services.platform import open_files
from services.platform.listen_errors import cannot_listen
from services.platform.rpc import errors
from services.platform.rpc.client_address import TrustedProxies
from services.platform.rpc.context import NEVER
from services.platform.rpc.interceptors import InterceptedMethod
from services.platform.rpc.rate_limits import RateLimits
from services.platform.transport import grpc_health, reflection
from services.platform.transport.admission import MAX_OPEN_CALLS, Admission
from services.platform.transport.authenticator import Authenticator
from services.platform.transport.method_handlers import MethodHandlers
from services.platform.transport.reply import abort, parse_message, read_message, serialize, to_roost_error

# Maximum size of a request message in bytes. gRPC rejects larger ones with RESOURCE_EXHAUSTED. An AppendHomeEntries
# request with 10,000 ids has under 100 kB, an import of 1,000 users about 300 kB.
MAX_MESSAGE_BYTES = 1 << 20
# Maximum number of concurrent calls on one connection; beyond it a gRPC client queues its calls. A process of the mesh
# has one connection for each caller and target.
MAX_STREAMS_PER_CONNECTION = 1_000
# Seconds that calls in progress get to end after the server has stopped accepting calls.
GRACE_S = 10.0
# Minimum number of milliseconds between two pings of a client without data in between; gRPC closes connections with
# more frequent pings. Channels of the mesh ping every 30 s while a stream is silent; the default minimum of gRPC is 5
# minutes.
LEAST_PING_MS = 10_000
# Number of milliseconds without a call after which a connection is closed; clients connect again by themselves.
IDLE_MS = 300_000


class GrpcServer:
    """A gRPC server. Call `bind` for each address, then `start`; at the end call `withdraw`, then `stop`.

    If `shared` is true, other processes of the same user may bind the same addresses, and the operating system spreads
    the connections over them.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        rate_limits: RateLimits,
        proxies: TrustedProxies,
        *,
        reflect: bool,
        log_calls: bool = False,
        shared: bool = False,
    ) -> None:
        self._shared = shared
        self._rate_limits = rate_limits
        self._admission = Admission(authenticator, proxies)
        self._methods = MethodHandlers(authenticator, rate_limits, self._admission, log_calls=log_calls)
        self._reflect = reflect
        self._health = grpc_health.Health()
        options = (
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
            # Connections beyond this number are closed: without a free file descriptor no store could open a file.
            # gRPC has no bound per client address; Admission bounds calls and streams per address.
            ("grpc.max_allowed_incoming_connections", open_files.grpc_connections(open_files.limit())),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            # By default, gRPC rejects some calls with CANCELLED, without a reason, if more than 1,000 are pending.
            ("grpc.server.max_pending_requests", MAX_OPEN_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_OPEN_CALLS),
            # Unless it is wanted, no second process may bind the same port: it would get a part of the calls.
            ("grpc.so_reuseport", int(shared)),
            ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_MS),
            ("grpc.keepalive_permit_without_calls", 1),
        )
        self._server = grpc.aio.server(options=options)

    def bind(self, address: str) -> int:
        """Binds `address` (host:port; port 0 is a free port) and returns the port. Raises UNAVAILABLE if the address
        cannot be bound."""
        _probe(address, shared=self._shared)
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise errors.unavailable(
                f"cannot listen on {address}: check whether another process uses the port"
            ) from error

    async def start(self, endpoints: Mapping[str, InterceptedMethod]) -> None:
        """Serves the methods in `endpoints` (by path), reflection if it is enabled, and health checks, which name a
        service by its full gRPC name or as `tweet`."""
        by_service: dict[str, dict[str, Any]] = {}
        for endpoint in endpoints.values():
            by_service.setdefault(endpoint.method.service, {})[endpoint.method.name] = self._methods.handler(endpoint)
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
        """Stops accepting calls, ends health watches, and cancels calls that are still in progress after GRACE_S
        seconds."""
        self._health.end()
        await self._server.stop(GRACE_S)

    def _health_rpcs(self) -> dict[str, Any]:
        # Any, because the type stubs do not declare the messages of List.
        messages: Any = health_pb2
        asked = health_pb2.HealthCheckRequest
        unary, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        return {
            "Check": unary(self._probed(self._health.check, asked), None, serialize),
            "List": unary(self._probed(self._health.list, messages.HealthListRequest), None, serialize),
            "Watch": stream(self._watched(self._health.watch, asked), None, serialize),
        }

    def _reflection_rpcs(self, servicer: reflection.Reflection) -> dict[str, Any]:
        async def serve(questions: Any, context: Any) -> AsyncIterator[Any]:
            client = self._admission.client(context)
            try:
                with self._admission.stream(client):
                    if not client.is_mesh:
                        await self._rate_limits.count_read(client.address)
                    async for answer in servicer.answers(questions, context):
                        yield answer
            except Exception as error:
                await abort(context, to_roost_error(error, "reflection", ""), ())

        parse = reflection_pb2.ServerReflectionRequest.FromString
        return {reflection.METHOD: grpc.stream_stream_rpc_method_handler(serve, parse, serialize)}

    def _probed(self, answer: Callable[[Any], Awaitable[Message]], asked: type[Message]) -> Callable[..., Any]:
        """Returns a handler without authentication and rate limit: a rejected health check may cause a restart."""

        async def serve(_: Any, context: Any) -> Message:
            try:
                with self._admission.probe():
                    return await answer(parse_message(asked, await read_message(context, NEVER)))
            except Exception as error:
                await abort(context, to_roost_error(error, "health check", ""), ())
                raise AssertionError("abort returned") from error

        return serve

    def _watched(self, answers: Callable[[Any], AsyncIterator[Message]], asked: type[Message]) -> Callable[..., Any]:
        """Returns a handler without authentication and rate limit: channels send health watches without metadata."""

        async def serve(_: Any, context: Any) -> AsyncIterator[Message]:
            client = self._admission.client(context)
            try:
                with self._admission.stream(client):
                    async for message in answers(parse_message(asked, await read_message(context, NEVER))):
                        yield message
            except Exception as error:
                await abort(context, to_roost_error(error, "health watch", ""), ())

        return serve


def _probe(address: str, *, shared: bool) -> None:
    """Raises UNAVAILABLE, with the reason, if a socket cannot be bound to `address` (host:port). If `shared` is true,
    sockets of other processes that share the address do not count.

    gRPC itself would write to its own log, and its error contains no reason.
    """
    host, _, port = address.rpartition(":")
    try:
        backend, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(backend, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(place)
            # With SO_REUSEADDR, two sockets may bind one port until one of them listens. A shared one must not listen:
            # it would get connections of clients.
            if not shared:
                probe.listen(1)
    except OSError as error:
        raise cannot_listen("gRPC", address, "--grpc", error) from error
