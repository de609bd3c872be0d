"""Implements gRPC server reflection, versions v1 and v1alpha. Their messages differ in the package name only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from services.platform.rpc import errors

V1ALPHA = "grpc.reflection.v1alpha"
V1 = "grpc.reflection.v1"
SERVICES = (f"{V1}.ServerReflection", f"{V1ALPHA}.ServerReflection")
METHOD = "ServerReflectionInfo"
# Maximum number of requests in one stream. Beyond it the stream ends with RESOURCE_EXHAUSTED. A tool sends one request
# for each service and type of the contract, about 300.
MAX_QUESTIONS = 1_000


class Reflection(ReflectionServicer):
    """Serves gRPC server reflection: the descriptors of the services whose full names the constructor gets, and of all
    files that they depend on.

    Finds a file by its name, and by the full name of a service, message, enum, method or field in it.
    """

    def __init__(self, services: Iterable[str]) -> None:
        _add_v1(descriptor_pool.Default())
        super().__init__((*services, *SERVICES))

    def answers(self, questions: Any, context: Any) -> AsyncIterator[Any]:
        """Yields one response for each request, in order. Raises RESOURCE_EXHAUSTED after MAX_QUESTIONS requests."""
        # The type stubs declare a coroutine, but the method is an asynchronous generator.
        found: Any = self.ServerReflectionInfo(_bounded(questions), context)
        return found  # type: ignore[no-any-return]

    @property
    def _base(self) -> Any:
        # Any, because the type stubs do not declare the private methods of the library.
        return super()

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        # The pool's FindFileContainingSymbol, which the library uses, does not find methods and fields.
        pool = descriptor_pool.Default()
        for find in (pool.FindMethodByName, pool.FindFieldByName):
            name = _file_of(find, fully_qualified_name)
            if name is not None:
                return self._base._file_by_filename(request, name)
        return self._base._file_containing_symbol(request, fully_qualified_name)


def _file_of(find: Callable[[str], Any], name: str) -> str | None:
    try:
        found = find(name)
    except KeyError:
        return None
    # The descriptor of a method has no `file`, only a service.
    file: str = getattr(found, "file", None) or found.containing_service.file
    return file.name  # type: ignore[attr-defined, no-any-return]


async def _bounded(questions: Any) -> AsyncIterator[Any]:
    asked = 0
    async for question in questions:
        asked += 1
        if asked > MAX_QUESTIONS:
            raise errors.resource_exhausted(f"the stream has more than {MAX_QUESTIONS} requests: open another one")
        yield question


def _add_v1(pool: descriptor_pool.DescriptorPool) -> None:
    """Adds the descriptor file of v1 to the pool. The file is made from the descriptor file of v1alpha by replacing the
    package name.

    No Python package contains the file of v1.
    """
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", V1
    for message in file.message_type:
        for field in message.field:
            if not field.type_name:
                continue
            field.type_name = field.type_name.replace(f".{V1ALPHA}.", f".{V1}.")
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(f".{V1ALPHA}.", f".{V1}.")
            method.output_type = method.output_type.replace(f".{V1ALPHA}.", f".{V1}.")
    pool.AddSerializedFile(file.SerializeToString())
