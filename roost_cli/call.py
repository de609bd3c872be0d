"""`roost call`: calls any method of the API. Arguments and output are derived from the proto descriptors."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence
from typing import Annotated, cast

import grpc as grpc_lib
import orjson
import typer
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from roost.options.v1 import options_pb2

from roost_cli import connection, options, request_args, users
from roost_cli.exit_codes import CommandError, call_error
from services.platform.rpc import contract

# Maximum number of methods that the error about a misspelled method suggests.
MAX_SUGGESTIONS = 3
# Least similarity of two method names, from 0 to 1, for a suggestion: one or two wrong letters in a short name.
SIMILARITY = 0.7
_OPERATORS = (options_pb2.ACCESS_MESH, options_pb2.ACCESS_ADMIN, options_pb2.ACCESS_MODERATOR)


def call(
    method: Annotated[str | None, typer.Argument(help="The method, such as TweetService.GetTweet.")] = None,
    values: Annotated[
        list[str] | None, typer.Argument(help="Fields of the request: field=value, nested.field=value or list=[1,2].")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--as", metavar="USER", help="Make the call as this user, named by username or id.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the methods with their kind and who may call them.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="FIELD", help="Print only this field of the response, such as user.id."),
    ] = None,
    grpc: options.Grpc = None,
) -> None:
    """Call one method of the API and print the response as JSON. Each message of a stream is printed on its own
    line."""
    if listed:
        _list(method or "")
        return
    if method is None:
        raise CommandError("name a method, such as TweetService.GetTweet; `roost call --list` names them all")
    found = resolve(method)
    path = tuple(only.split(".")) if only else ()
    _check(found, path)
    asyncio.run(_call(connection.find(grpc), found, values or [], user, path))


def resolve(name: str) -> contract.Method:
    """Returns the method named `Service.Method`; the proto package before it may be left out. Raises CommandError if no
    method has this name."""
    wanted = name.strip("/").replace("/", ".")
    for method in contract.methods().values():
        full = f"{method.service}.{method.name}"
        if wanted in (full, f"{method.descriptor.containing_service.name}.{method.name}"):
            return method
    alike = _alike(wanted)
    hint = f"did you mean {' or '.join(alike)}?" if alike else "`roost call --list` names them all"
    raise CommandError(f"no method {name!r}: {hint}")


def _alike(wanted: str) -> list[str]:
    """Returns the methods, as `Service.Method`, that a misspelled name may mean, the most similar first: those with the
    same method name in any case; if there are none, up to MAX_SUGGESTIONS with a similar method name."""
    names = {
        f"{method.descriptor.containing_service.name}.{method.name}": method.name.lower()
        for method in contract.methods().values()
    }
    name = wanted.lower().rpartition(".")[2]
    if same := [full for full, own in names.items() if own == name]:
        return same
    close = difflib.get_close_matches(name, set(names.values()), MAX_SUGGESTIONS, SIMILARITY)
    likely = [full for full, own in names.items() if own in close]
    return difflib.get_close_matches(wanted, likely, MAX_SUGGESTIONS, cutoff=0)


def _list(part: str) -> None:
    service = ""
    for method in contract.methods().values():
        if part.lower() not in f"{method.service}.{method.name}".lower():
            continue
        if method.service != service:
            service = method.service
            typer.echo(service)
        access = options_pb2.Access.Name(method.policy.access).removeprefix("ACCESS_").lower()
        if method.policy.access == options_pb2.ACCESS_MESH:
            access += f" ({', '.join(method.policy.callers) or 'any service'})"
        mark = ", not served yet" if method.policy.unserved else ""
        typer.echo(f"  {method.name:<28} {_kind(method):<14} {access}{mark}")


def _kind(method: contract.Method) -> str:
    if method.client_streaming:
        return "client stream"
    return "server stream" if method.server_streaming else "unary"


async def _call(
    mesh: connection.MeshTarget, method: contract.Method, values: list[str], user: str | None, only: Sequence[str] = ()
) -> None:
    if method.client_streaming:
        raise CommandError(f"{method.name} takes a stream of messages, which `roost call` cannot send")
    async with connection.connect(mesh) as channels:
        channel = channels[0]
        caller = await users.id_of(channel, user) if user is not None else None
        request = request_args.parse(values, method.request, None if caller is None else lambda: caller)
        metadata = await _credentials(channel, mesh, method, caller)
        try:
            await _print(channel, method, request, metadata, only)
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error) from error


async def _credentials(
    channel: grpc_lib.aio.Channel, mesh: connection.MeshTarget, method: contract.Method, caller: int | None
) -> connection.Metadata:
    if caller is not None:
        return connection.bearer(await users.token_of(channel, mesh.operator(), caller))
    if method.policy.access in _OPERATORS:
        return mesh.operator()
    if method.policy.access == options_pb2.ACCESS_USER:
        raise CommandError(f"{method.name} is called by a user: name the user with --as USER")
    return ()


async def _print(
    channel: grpc_lib.aio.Channel,
    method: contract.Method,
    request: Message,
    metadata: connection.Metadata,
    only: Sequence[str],
) -> None:
    timeout = method.policy.deadline_ms / 1000
    if method.server_streaming:
        stream = channel.unary_stream(method.path, method.request.SerializeToString, method.response.FromString)
        async for message in stream(request, metadata=metadata, timeout=timeout):
            typer.echo(_shown(message, only, indent=False))
        return
    unary = channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
    typer.echo(_shown(await unary(request, metadata=metadata, timeout=timeout), only))


def _check(method: contract.Method, only: Sequence[str]) -> None:
    """Raises CommandError if the method's response has no field at the path `only`, a list of field names."""
    descriptor: Descriptor | None = cast(Descriptor, method.response.DESCRIPTOR)
    for depth, name in enumerate(only):
        field = descriptor.fields_by_name.get(name) if descriptor else None
        if field is None or (field.is_repeated and depth < len(only) - 1):
            raise CommandError(f"--only {'.'.join(only)}: the response of {method.name} has no such field")
        descriptor = field.message_type


def _shown(message: Message, only: Sequence[str], *, indent: bool = True) -> str:
    """Returns the message as JSON, or if `only` is not empty, the field at the path `only` as JSON. A string is
    returned without quotes, an unset field as ""."""
    if not only:
        return as_json(message, indent=indent)
    value = orjson.loads(as_json(message))
    for name in only:
        value = value.get(name, "") if isinstance(value, dict) else ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def as_json(message: Message, *, indent: bool = True) -> str:
    """Returns the message as JSON in the form that the gateway uses: proto field names, 64-bit integers as strings,
    zero values included."""
    plain = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return orjson.dumps(plain, option=orjson.OPT_INDENT_2 if indent else None).decode()
