"""Creates the handlers of the contract's methods for a grpc.aio server. A handler applies the limits of concurrent
calls, authenticates the call, counts it in its rate limit, and then calls the intercepted method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import grpc
from google.protobuf.message import Message

from services.platform.rpc import errors
from services.platform.rpc.context import NEVER, OPERATOR, Call, bounded_user_agent
from services.platform.rpc.interceptors import InterceptedMethod
from services.platform.rpc.rate_limits import MethodLimit, RateLimits
from services.platform.transport.admission import Admission, Client
from services.platform.transport.authenticator import Authenticator, Identity
from services.platform.transport.remote import USER_AGENT_KEY
from services.platform.transport.reply import Reply, abort, read_message, serialize, to_roost_error


class MethodHandlers:
    """Creates the handlers of one server. If `log_calls` is true, every call is logged at its end."""

    def __init__(
        self, authenticator: Authenticator, rate_limits: RateLimits, admission: Admission, *, log_calls: bool
    ) -> None:
        self._authenticator = authenticator
        self._rate_limits = rate_limits
        self._admission = admission
        self._log_calls = log_calls

    def handler(self, endpoint: InterceptedMethod) -> Any:
        """Returns the method's handler, for `grpc.method_handlers_generic_handler`."""
        # The handlers have no deserializer: requests are parsed after the access check, because parsing a megabyte can
        # take 70 ms.
        if endpoint.method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(_unserved, None, serialize)
        # The handlers take a stream of requests, although there is one request: with a unary handler gRPC never
        # responds to a call that sends none.
        if endpoint.method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(endpoint), None, serialize)
        return grpc.stream_unary_rpc_method_handler(self._unary(endpoint), None, serialize)

    def _unary(self, endpoint: InterceptedMethod) -> Callable[..., Any]:
        limit = self._rate_limits.limit_of(endpoint.method)

        async def serve(_: Any, context: Any) -> Message:
            client = self._admission.client(context)
            with self._reply(endpoint, client, context) as reply:
                try:
                    with self._admission.open(client):
                        call = await self._call(endpoint, limit, client, reply, context)
                        request = await read_message(context, call.deadline)
                        with self._admission.served(client):
                            async with _account_attempt(limit, endpoint, request, call, client):
                                return await endpoint.unary(request, call, reply)
                except Exception as error:
                    await reply.refuse(to_roost_error(error, endpoint.method.path, reply.request_id))
                    raise AssertionError("abort returned") from error

        return serve

    def _stream(self, endpoint: InterceptedMethod) -> Callable[..., Any]:
        limit = self._rate_limits.limit_of(endpoint.method)

        async def serve(_: Any, context: Any) -> AsyncIterator[Message]:
            client = self._admission.client(context)
            with self._reply(endpoint, client, context) as reply:
                try:
                    with self._admission.stream(client):
                        call = await self._call(endpoint, limit, client, reply, context)
                        request = await read_message(context, call.deadline)
                        async with _account_attempt(limit, endpoint, request, call, client):
                            async for message in endpoint.stream(request, call, reply):
                                yield message
                except Exception as error:
                    await reply.refuse(to_roost_error(error, endpoint.method.path, reply.request_id))

        return serve

    def _reply(self, endpoint: InterceptedMethod, client: Client, context: Any) -> Reply:
        return Reply(endpoint.method.path, client.metadata, context, logged=self._log_calls)

    async def _call(
        self, endpoint: InterceptedMethod, limit: MethodLimit | None, client: Client, reply: Reply, context: Any
    ) -> Call:
        """Authenticates the call and returns it; counts it in `limit` if neither the mesh nor the operator made it.
        Raises UNAUTHENTICATED, UNAVAILABLE, RESOURCE_EXHAUSTED, or INVALID_ARGUMENT if a service sends no deadline.
        """
        metadata = client.metadata
        actor, caller = await self._identify(limit, client)
        reply.user_id = actor.user_id
        left = context.time_remaining()
        # `cap_s` is NEVER for streams that last as long as their reader: they need no deadline.
        if left is None and endpoint.cap_s != NEVER and caller not in ("", OPERATOR):
            raise errors.invalid_argument("a call between services needs a deadline")
        allowed = min(endpoint.cap_s, NEVER if left is None else left)
        deadline = asyncio.get_running_loop().time() + allowed
        # A process of the mesh forwards the user agent of its client. Its own header `user-agent` is ignored.
        agent = bounded_user_agent(metadata.get(USER_AGENT_KEY if client.is_mesh else "user-agent", ""))
        ids = (reply.request_id, reply.traceparent)
        return Call(endpoint.method.path, actor, caller, *ids, deadline, agent, client.address)

    async def _identify(self, limit: MethodLimit | None, client: Client) -> Identity:
        limited = limit if not client.is_mesh else None
        try:
            identity = await self._authenticator.identify(client.metadata)
        except errors.RoostError:
            if limited is not None:
                # Calls with an invalid token count for the address, so guessing tokens is limited as well.
                (await limited.take(0, client.address)).enforce()
            raise
        if limited is not None and identity.caller != OPERATOR:
            (await limited.take(identity.actor.user_id, client.address)).enforce()
        return identity


def _account_attempt(
    limit: MethodLimit | None, endpoint: InterceptedMethod, data: bytes, call: Call, client: Client
) -> AbstractAsyncContextManager[None]:
    if limit is None or not limit.names_account or client.is_mesh or call.caller == OPERATOR:
        return nullcontext()
    return limit.attempt(endpoint.parsed(data), call.actor.user_id, client.address)


async def _unserved(_: Any, context: Any) -> None:
    await abort(context, errors.unimplemented("client streams are not served yet"), ())
