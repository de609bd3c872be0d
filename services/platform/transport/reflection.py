"""Server reflection, versions v1 and v1alpha, which have the same messages under two names."""

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
# Questions in one stream: a tool asks once for each service and type of a contract, some 300 here.
MAX_QUESTIONS = 1_000


class Reflection(ReflectionServicer):
    """Answers for the services named, their methods and fields too, and everything they depend on."""

    def __init__(self, services: Iterable[str]) -> None:
        _add_v1(descriptor_pool.Default())
        super().__init__((*services, *SERVICES))

    def answers(self, questions: Any, context: Any) -> AsyncIterator[Any]:
        """Answers each question in turn. Raises RESOURCE_EXHAUSTED after MAX_QUESTIONS."""
        # The type stubs take the generator for a coroutine.
        found: Any = self.ServerReflectionInfo(_bounded(questions), context)
        return found  # type: ignore[no-any-return]

    @property
    def _base(self) -> Any:
        # The type stubs leave out what the library keeps to itself.
        return super()

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        # Python's pool finds no methods, fields and values by their symbol; the file of what holds them is the answer.
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
    # A method knows its service only.
    file: str = getattr(found, "file", None) or found.containing_service.file
    return file.name  # type: ignore[attr-defined, no-any-return]


async def _bounded(questions: Any) -> AsyncIterator[Any]:
    asked = 0
    async for question in questions:
        asked += 1
        if asked > MAX_QUESTIONS:
            raise errors.resource_exhausted(f"more than {MAX_QUESTIONS} questions in one stream")
        yield question


def _add_v1(pool: descriptor_pool.DescriptorPool) -> None:
    """Adds v1's file to the pool, made of v1alpha's by its name: no package for Python brings it."""
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
