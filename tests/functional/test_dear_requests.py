"""The longest lists that a request can hold, in every dialect: refused with little CPU, so that other calls on the loop do not wait."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import orjson
import pytest
from google.protobuf.descriptor import FieldDescriptor
from roost.options.v1 import options_pb2 as options

from gateway_http.compat.connect import MAX_BINARY_BYTES
from gateway_http.http_protocol import MAX_HEADER_BYTES
from gateway_http.request import MAX_BODY_BYTES
from gateway_http.router import bindings
from services.platform.rpc.contract import Method, methods
from services.platform.transport.server import MAX_MESSAGE_BYTES
from tests.conftest import WIRES, MeshFactory
from tests.functional.conftest import ADMIN, Web, open_web

# Refused before any store is asked.
pytestmark = pytest.mark.long("cluster")

# Milliseconds of CPU of the loop's thread for client and server together, the minimum of TRIES: a refusal takes under 10, a check item
# by item 200 and more.
MOST_MS = 50
TRIES = 4
# Bytes that JSON and the query need around the list.
SLACK = 200


@dataclass(frozen=True)
class Dear:
    """A method and the list field of its request that the test fills."""

    method: Method
    field: FieldDescriptor

    def __str__(self) -> str:
        return f"{self.method.name}.{self.field.name}"

    @property
    def item(self) -> bytes:
        """Returns the shortest JSON value of the list's type; it breaks the rule of the items if they have one."""
        if self.field.message_type is not None:
            return b"{}"
        return b'""' if self.field.cpp_type == FieldDescriptor.CPPTYPE_STRING else b"0"

    def json(self, size: int = MAX_BODY_BYTES) -> bytes:
        """Returns a body of about `size` bytes."""
        count = (size - SLACK) // (len(self.item) + 1)
        return b'{"%s":[%s]}' % (self.field.name.encode(), b",".join([self.item] * count))

    def binary(self, size: int) -> bytes:
        """Returns a message of about `size` bytes: the list's tag and a zero byte (0 or an empty value), repeated."""
        wire_type = 0 if self.item == b"0" else 2
        return bytes((self.field.number << 3 | wire_type, 0)) * ((size - SLACK) // 2)

    def query(self) -> str:
        """Returns a query with as many values as a request line can hold beside the other headers."""
        return f"{self.field.name}=" + ",".join(["0"] * ((MAX_HEADER_BYTES - 8 * SLACK) // 2))


def dear(*accesses: int) -> list[Dear]:
    found = [
        Dear(method, field)
        for method in methods().values()
        if method.policy.access in accesses and not method.client_streaming
        for field in method.descriptor.input_type.fields
        if field.is_repeated
    ]
    assert found, "the contract has such methods"
    return found


PUBLIC = dear(options.ACCESS_PUBLIC, options.ACCESS_USER, options.ACCESS_MODERATOR, options.ACCESS_ADMIN)


async def least_ms(ask: Callable[[], Awaitable[None]]) -> float:
    """Returns the minimum of TRIES measurements of one `ask`, in milliseconds of CPU of this thread, which runs the loop.

    Threads of Kafka and Cassandra work at any time; their CPU is not counted.
    """
    found = []
    for _ in range(TRIES):
        begun = time.thread_time()
        await ask()
        found.append((time.thread_time() - begun) * 1000)
    return min(found)


def over_http(one: Dear) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (verb, path, options of httpx) for each dialect of HTTP."""
    for binding in bindings(one.method):
        if one.field.name in binding.variables():
            continue
        path = binding.template
        for name in binding.variables():
            path = path.replace(f"{{{name}}}", "1")
        if binding.http_method == "GET":
            yield "GET", f"{path}?{one.query()}", {}
        else:
            yield binding.http_method, path, _body(one.json(), "application/json")
    if not one.method.server_streaming:
        yield "POST", one.method.path, _body(one.json(), "application/json")
        yield "POST", one.method.path, _body(one.binary(MAX_BINARY_BYTES), "application/proto")


def _body(content: bytes, media: str) -> dict[str, Any]:
    return {"content": content, "headers": {"content-type": media}}


def names_list(answer: httpx.Response, one: Dear) -> bool:
    """Returns whether the answer names the list as the invalid field."""
    problem = orjson.loads(answer.content)
    return one.field.name in problem.get("detail", problem.get("message", ""))


@pytest.mark.parametrize("wire", WIRES)
async def test_gateway_list_of_a_megabyte_is_refused_cheaply(start_mesh: MeshFactory, wire: Any) -> None:
    mesh = await start_mesh(wire=wire, admins=(ADMIN,))
    server, client = await open_web(mesh, mesh.process.settings)
    web = Web(mesh, client)
    admin = await web.admin()
    faults = []
    for one in PUBLIC:
        for verb, path, sent in over_http(one):
            answers: list[httpx.Response] = []

            async def ask(verb: str = verb, path: str = path, sent: Any = sent, answers: Any = answers) -> None:
                answers.append(await web.call(verb, path, admin, **sent))

            cost_ms = await least_ms(ask)
            if (
                {answer.status_code for answer in answers} != {400}
                or not names_list(answers[0], one)
                or cost_ms > MOST_MS
            ):
                faults.append((str(one), verb, path[:60], answers[0].status_code, answers[0].text[:200], cost_ms))
    await client.aclose()
    await server.stop()
    assert faults == []


async def test_grpc_server_list_of_a_megabyte_is_refused_cheaply(start_mesh: MeshFactory) -> None:
    """Public methods refuse the list as too long; methods of the mesh refuse the caller before they parse the message."""
    mesh = await start_mesh(wire="grpc", admins=(ADMIN,))
    server, client = await open_web(mesh, mesh.process.settings)
    admin = await Web(mesh, client).admin()
    await client.aclose()
    await server.stop()
    signed_in = (("authorization", f"Bearer {admin.token}"),)
    faults = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.process.grpc_port}") as channel:
        for expected, cases in (("INVALID_ARGUMENT", PUBLIC), ("PERMISSION_DENIED", dear(options.ACCESS_MESH))):
            for one in cases:
                codes: set[str] = set()
                data = one.binary(MAX_MESSAGE_BYTES)

                async def ask(path: str = one.method.path, data: bytes = data, codes: set[str] = codes) -> None:
                    try:
                        await channel.unary_unary(path)(data, metadata=signed_in, timeout=20)
                    except grpc.aio.AioRpcError as error:
                        codes.add(error.code().name)

                cost_ms = await least_ms(ask)
                if codes not in ({expected}, {"UNIMPLEMENTED"}) or cost_ms > MOST_MS:
                    faults.append((str(one), codes, cost_ms))
    assert faults == []
