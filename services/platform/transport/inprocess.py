"""The in-process channel: stubs call servicers without a socket.

Interceptors, deadlines, trailing metadata, cancellation and status codes are the same as over a socket, and each call
has its own current call. Messages are passed by reference, so neither side may change a message after it was passed.
`MutationGuard` detects violations in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from services.platform.rpc import errors
from services.platform.rpc.interceptors import InterceptedMethod
from services.platform.transport.base import AbstractChannel
from services.platform.transport.inprocess_calls import BoundMethod, StreamCall, UnaryCall, rpc_error
from services.platform.transport.message_guard import MutationGuard


class InProcessChannel(AbstractChannel):
    """A channel from the service `caller` ("": a client outside the mesh) to the methods of this process.

    `endpoints` maps paths to methods; a method may be added until it is called for the first time. A path without a
    method gets UNIMPLEMENTED, as do client streams and bidirectional streams. `checker` is set in tests only.
    """

    def __init__(
        self, endpoints: Mapping[str, InterceptedMethod], caller: str, checker: MutationGuard | None = None
    ) -> None:
        self._endpoints = endpoints
        self._caller = caller
        self._checker = checker

    def _starter(self, call: type[Any], path: str, deserializer: Any) -> Callable[..., Any]:
        target: BoundMethod | None = None

        def start(request: Message, *, timeout: float | None = None, **_: Any) -> Any:
            nonlocal target
            # Looked up at the first call, because a stub may be created before the service that it calls.
            if target is None or target.endpoint is None:
                endpoint = self._endpoints.get(path)
                target = BoundMethod(path, endpoint, self._caller, self._checker, deserializer)
            return call(target, request, timeout)

        return start

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        # Generated stubs pass the serializers by name or in order: request first, then response.
        deserializer = kwargs.get("response_deserializer", args[1] if len(args) > 1 else None)
        if kind == "unary_unary":
            return self._starter(UnaryCall, method, deserializer)
        if kind == "unary_stream":
            return self._starter(StreamCall, method, deserializer)
        return _refuse(method)


def _refuse(path: str) -> Callable[..., Any]:
    def start(*_: Any, **__: Any) -> Any:
        raise rpc_error(
            errors.unimplemented(f"{path} has a request stream, which the in-process channel does not support"), ()
        )

    return start
