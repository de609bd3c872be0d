"""Makes unary calls over one channel, with the deadlines and retries that the protos declare."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from roost.options.v1 import options_pb2

from roost_client.errors import from_rpc

R = TypeVar("R", bound=Message)

# The retry policy for methods that are declared `retry_safe`, in the format of gRPC's service config. gRPC makes up to
# three more attempts, within a second.
RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    # A server that shuts down ends calls that it has not started with CANCELLED.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}


def policy(method: MethodDescriptor) -> options_pb2.MethodPolicy:
    """Returns the policy that the proto declares for a method."""
    return method.GetOptions().Extensions[options_pb2.policy]


def path(method: MethodDescriptor) -> str:
    """Returns the path of a method in gRPC: `/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def service_config(files: Iterable[FileDescriptor]) -> str:
    """Returns a gRPC service config, as JSON, that enables retries for the methods in `files` that are declared
    `retry_safe`."""
    names = [
        {"service": service.full_name, "method": method.name}
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        if policy(method).retry_safe
    ]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": RETRIES}]})


class Transport:
    """Makes calls over `channel` with the access token `token`, or anonymous calls if `token` is ""."""

    def __init__(self, channel: grpc.Channel, token: str = "") -> None:
        self.channel = channel
        self.token = token
        self._calls: dict[str, Callable[..., Any]] = {}

    def call(self, method: MethodDescriptor, request: Message, response: type[R]) -> R:
        """Makes a unary call, with the deadline of the proto, and returns the response. Raises ApiError if the call
        fails. `response` is the type of the response."""
        name = path(method)
        if name not in self._calls:
            self._calls[name] = self.channel.unary_unary(
                name, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
            )
        metadata = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        try:
            answer: R = self._calls[name](request, timeout=policy(method).deadline_ms / 1000, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc(error) from error
        return answer
