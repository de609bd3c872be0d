"""The socket: a grpc.aio server over the endpoints of a process, with health, reflection and drain."""

from __future__ import annotations

import asyncio
import errno
import hmac
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common import errors, open_files
from services.common.context import ANONYMOUS, NEVER, OPERATOR, Actor, Call, bounded_user_agent
from services.common.interceptors import Endpoint
from services.common.reasons import Reason
from services.common.tokens import Verifier
from services.runtime.channel import (
    AUTHORIZATION_KEY,
    CALLER_KEY,
    REQUEST_ID_KEY,
    SECRET_KEY,
    TRACE_KEY,
    USER_AGENT_KEY,
)

# The largest legal request (AppendHomeEntries, 10,000 ids) is under 100 kB, an import of 1,000 people about 300 kB.
MAX_MESSAGE_BYTES = 1 << 20
MAX_STREAMS = 1_000
# Calls under way get this long to end once the server takes no more.
GRACE_S = 10.0
# Callers of ours ping every 30 s while a stream is silent. By default a server hangs up on whoever does so more often than every 5 min.
LEAST_PING_MS = 10_000
MAX_ID_CHARS = 128


class Authenticator:
    """Turns a call's metadata into who calls: a user by token, the operator by secret, a service by the mesh's secret."""

    def __init__(self, verifier: Verifier, operator_token: str, mesh_secret: str) -> None:
        self._verifier = verifier
        self._operator_token = operator_token.encode()
        self._mesh_secret = mesh_secret.encode()

    async def identify(self, metadata: Mapping[str, str]) -> tuple[Actor, str]:
        """The actor and the caller; UNAUTHENTICATED where credentials are sent that do not hold."""
        caller = ""
        if CALLER_KEY in metadata:
            if not hmac.compare_digest(metadata.get(SECRET_KEY, "").encode(), self._mesh_secret):
                raise errors.unauthenticated("the mesh secret does not match", Reason.MESH_SECRET)
            caller = metadata[CALLER_KEY]
        authorization = metadata.get(AUTHORIZATION_KEY, "")
        if not authorization:
            return ANONYMOUS, caller
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise errors.unauthenticated("authorization must be 'Bearer <token>'")
        if hmac.compare_digest(token.encode(), self._operator_token):
            return ANONYMOUS, OPERATOR
        return await self._verifier.verify(token), caller


class GrpcServer:
    """Serves endpoints on one address: `bind` it, then `start` it with what it serves."""

    def __init__(self, authenticator: Authenticator, *, reflect: bool) -> None:
        self._authenticator = authenticator
        self._reflect = reflect
        self._health = health.aio.HealthServicer()
        options = (
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # Beyond it connections are closed as they come: without a free descriptor no store could open a file.
            ("grpc.max_allowed_incoming_connections", open_files.grpc_connections(open_files.limit())),
            # Two processes on one port would share its calls by chance.
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_MS),
            ("grpc.keepalive_permit_without_calls", 1),
        )
        self._server = grpc.aio.server(options=options)

    def bind(self, address: str) -> int:
        """Takes the address and returns the port; UNAVAILABLE where it cannot be had. No call is served before `start`."""
        _probe(address)
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise errors.unavailable(f"cannot listen on {address}: is the port taken?") from error

    async def start(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Serves the endpoints, with health by gRPC's full service names and by folder names, and reflection."""
        by_service: dict[str, dict[str, Any]] = {}
        for endpoint in endpoints.values():
            by_service.setdefault(endpoint.method.service, {})[endpoint.method.name] = self._rpc(endpoint)
        for name, rpcs in by_service.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, rpcs),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._reflect:
            reflection.enable_server_reflection(
                (*by_service, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
            )
        await self._server.start()
        served = [endpoint.method for endpoint in endpoints.values() if endpoint.served]
        for name in {"", *(method.service for method in served), *(method.folder for method in served)}:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def withdraw(self) -> None:
        """Answers every question after health with NOT_SERVING from now on, and serves calls as before."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Takes no more calls and waits up to GRACE_S for those under way."""
        await self._server.stop(GRACE_S)

    def _rpc(self, endpoint: Endpoint) -> Any:
        # Requests come as bytes: an endpoint parses only those that it admits.
        if endpoint.method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(_unserved, None, _serialize)
        if endpoint.method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(endpoint), None, _serialize)
        return grpc.unary_unary_rpc_method_handler(self._unary(endpoint), None, _serialize)

    def _unary(self, endpoint: Endpoint) -> Callable[..., Any]:
        async def serve(data: bytes, context: Any) -> Message:
            trailing = _Trailing(context)
            try:
                call = await self._call(endpoint, context)
                return await endpoint.unary(data, call, trailing)
            except errors.RoostError as error:
                await _abort(context, error, trailing.sent)
                raise AssertionError("abort returned") from error

        return serve

    def _stream(self, endpoint: Endpoint) -> Callable[..., Any]:
        async def serve(data: bytes, context: Any) -> AsyncIterator[Message]:
            trailing = _Trailing(context)
            try:
                call = await self._call(endpoint, context)
                async for message in endpoint.stream(data, call, trailing):
                    yield message
            except errors.RoostError as error:
                await _abort(context, error, trailing.sent)

        return serve

    async def _call(self, endpoint: Endpoint, context: Any) -> Call:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        actor, caller = await self._authenticator.identify(metadata)
        left = context.time_remaining()
        # A method without a deadline of its own is a stream that lives as long as its reader.
        if left is None and endpoint.cap_s != NEVER and caller not in ("", OPERATOR):
            raise errors.invalid_argument("a call between services needs a deadline")
        allowed = min(endpoint.cap_s, NEVER if left is None else left)
        deadline = asyncio.get_running_loop().time() + allowed
        request_id = metadata.get(REQUEST_ID_KEY, "")[:MAX_ID_CHARS]
        trace = metadata.get(TRACE_KEY, "")[:MAX_ID_CHARS]
        # A service of the mesh says for whom it calls, or nothing: its own program is of no interest.
        agent = metadata.get(USER_AGENT_KEY, "") if caller else metadata.get("user-agent", "")
        user_agent = bounded_user_agent(agent)
        return Call(endpoint.method.path, actor, caller, request_id, trace, deadline, user_agent=user_agent)


def _probe(address: str) -> None:
    """Raises UNAVAILABLE, with the reason, if a socket cannot have the address: gRPC would log its own lines, and not tell the reason."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            # Two may bind one port as long as neither listens.
            probe.listen(1)
    except OSError as error:
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise errors.unavailable(f"cannot serve gRPC on {address}: {why}") from error


class _Trailing:
    """Passes trailing metadata on, and keeps it: an abort would replace it."""

    __slots__ = ("_context", "sent")

    def __init__(self, context: Any) -> None:
        self._context = context
        self.sent: tuple[tuple[str, str | bytes], ...] = ()

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self.sent = tuple(trailing_metadata)
        self._context.set_trailing_metadata(self.sent)


async def _abort(context: Any, error: errors.RoostError, sent: tuple[tuple[str, str | bytes], ...]) -> None:
    details = (*sent, (errors.STATUS_KEY, error.status().SerializeToString()))
    await context.abort(error.code, error.message, details)


async def _unserved(_: Any, context: Any) -> None:
    await _abort(context, errors.unimplemented("client streams are not served yet"), ())


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
