"""The edge proxy of a mesh of many processes: servicers that forward every call to the process that serves it.

The same interceptors run for these servicers as for all others, so a call is checked by the proxy and again by the
process that serves it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import grpc

from services.platform.rpc import errors
from services.platform.rpc.context import current
from services.platform.rpc.contract import Method, methods
from services.platform.transport.remote import with_service

ChannelOf = Callable[[str], grpc.aio.Channel]


class ProxyServicer:
    """Forwards all methods of one gRPC service, except client streams, with their trailing metadata and errors.

    `channel_of` returns a channel that makes calls as the given caller, so the caller of a forwarded call is preserved.
    """

    def __init__(self, service: str, channel_of: ChannelOf) -> None:
        for method in methods().values():
            if method.service == service and not method.client_streaming:
                make = _stream if method.server_streaming else _unary
                setattr(self, method.name, make(method, channel_of))


def forwarders(folders: Collection[str], channel_of: ChannelOf) -> dict[str, object]:
    """Returns a ProxyServicer for each gRPC service of the services `folders`, which are names such as `tweet`.

    The keys are full names, such as `roost.tweet.v1.TweetService`.
    """
    services = {method.service for method in methods().values() if method.service_name in folders}
    return {service: ProxyServicer(service, channel_of) for service in sorted(services)}


def _unary(method: Method, channel_of: ChannelOf) -> Callable[..., Any]:
    async def forward(request: Any, context: Any) -> Any:
        try:
            call = _begin(channel_of(current().caller).unary_unary, method, request)
            answer = await call
            context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))
            return answer
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(error) from error

    return forward


def _stream(method: Method, channel_of: ChannelOf) -> Callable[..., Any]:
    async def forward(request: Any, context: Any) -> AsyncIterator[Any]:
        call = None
        try:
            call = _begin(channel_of(current().caller).unary_stream, method, request)
            while (message := await call.read()) is not grpc.aio.EOF:
                yield message
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc(with_service(error, method.service_name)) from error
        finally:
            if call is not None:
                call.cancel()

    return forward


def _begin(starter: Callable[..., Any], method: Method, request: Any) -> Any:
    start = starter(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )
    return start(request)
