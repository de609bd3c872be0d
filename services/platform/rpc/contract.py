"""Reads every RPC from the descriptors of the generated modules: its policy, message types and wire type.

The interceptors, the gateway and the CLI derive their checks, routes and commands from these methods, so that no second
list exists.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import roost
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from roost.options.v1 import options_pb2

from services.platform.rpc.bounds import Bounds
from services.platform.rpc.context import GATEWAY


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. For example, its `path` is `/roost.tweet.v1.TweetService/GetTweet`, its `service` is
    `roost.tweet.v1.TweetService`, its `service_name` is `tweet` and its `name` is `GetTweet`.

    `request` and `response` are the generated classes. `caller_only` names the request's fields that must hold the
    caller's own id.
    """

    path: str
    service: str
    service_name: str
    name: str
    policy: options_pb2.MethodPolicy
    descriptor: MethodDescriptor
    request: type[Message]
    response: type[Message]
    # The class that servicers return and that channels carry: the response's wire type if it declares one, else the
    # response.
    wire_response: type[Message]
    caller_only: tuple[str, ...]
    # The maximum lengths of the request's lists.
    bounds: Bounds

    @property
    def client_streaming(self) -> bool:
        return bool(self.descriptor.client_streaming)

    @property
    def server_streaming(self) -> bool:
        return bool(self.descriptor.server_streaming)


def field_policy(field: FieldDescriptor) -> options_pb2.FieldPolicy:
    """Returns the field's option `(roost.options.v1.field)`, an empty message if it has none."""
    policy: options_pb2.FieldPolicy = field.GetOptions().Extensions[options_pb2.field]
    return policy


def wire_class_of(message: Descriptor) -> type[Message]:
    """Returns the class of the objects that channels carry for this message: its wire type if it declares one, else its
    own generated class."""
    name = message.GetOptions().Extensions[options_pb2.wire_type]
    return message_class(descriptor_pool.Default().FindMessageTypeByName(name) if name else message)


def message_class(descriptor: Descriptor) -> type[Message]:
    """Returns the generated class of a message."""
    cls: type[Message] = message_factory.GetMessageClass(descriptor)
    return cls


@functools.cache
def methods() -> Mapping[str, Method]:
    """Returns every RPC of every `roost` package by path, in a stable order. Imports all generated modules at the first
    call."""
    found: dict[str, Method] = {}
    for module in sorted(_modules()):
        file: Any = importlib.import_module(module).DESCRIPTOR
        for service in file.services_by_name.values():
            for descriptor in service.methods:
                method = _method(descriptor)
                found[method.path] = method
    return found


@functools.cache
def mesh_callers() -> frozenset[str]:
    """Returns the names that a calling process of the mesh may have: every service of the contract, and GATEWAY."""
    return frozenset({GATEWAY, *(method.service_name for method in methods().values())})


def callers_of(method: Method) -> frozenset[str]:
    """Returns the names of the callers that may call a method with access `MESH` (only for calls from within the mesh);
    an empty set for a method with another access rule.

    These are the `callers` of the method's policy; if the policy lists none, every service and the gateway.
    """
    if method.policy.access != options_pb2.ACCESS_MESH:
        return frozenset()
    return frozenset(method.policy.callers) or mesh_callers()


def called_by(name: str) -> frozenset[str]:
    """Returns the names of the services that have at least one method with access `MESH` whose policy allows the
    service `name` as a caller."""
    return frozenset(method.service_name for method in methods().values() if name in callers_of(method))


def _modules() -> list[str]:
    # `roost` is a namespace package, which pkgutil.walk_packages does not enter.
    roots = [Path(root) for root in roost.__path__]
    files = [(root, path) for root in roots for path in root.rglob("*_pb2.py")]
    return [".".join(("roost", *path.relative_to(root).with_suffix("").parts)) for root, path in files]


def _method(descriptor: MethodDescriptor) -> Method:
    service = descriptor.containing_service
    policy = descriptor.GetOptions().Extensions[options_pb2.policy]
    request = descriptor.input_type
    return Method(
        path=f"/{service.full_name}/{descriptor.name}",
        service=service.full_name,
        service_name=service.full_name.split(".")[1],
        name=descriptor.name,
        policy=policy,
        descriptor=descriptor,
        request=message_class(request),
        response=message_class(descriptor.output_type),
        wire_response=wire_class_of(descriptor.output_type),
        caller_only=tuple(field.name for field in request.fields if field_policy(field).caller_only),
        bounds=Bounds(request),
    )
