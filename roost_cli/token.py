"""`roost token`: mints access tokens for users without their passwords, for the operator."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

import grpc as grpc_lib
import orjson
import typer
from roost.identity.v1 import auth_service_pb2_grpc, user_service_pb2

from roost_cli import connection, options, users
from roost_cli.exit_codes import CommandError, call_error
from roost_cli.scans import scan_users
from roost_cli.tokens import MAX_TTL_S, MINT_BATCH, mint

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def token(
    user: Annotated[str | None, typer.Argument(help="The user, by username or id.")] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="Print one JSON line {user_id, username, token} for every user.")
    ] = False,
    ttl: Annotated[
        str, typer.Option("--ttl", help="How long the token is valid, such as 90s, 30m or 1h; at most a day.")
    ] = "1h",
    grpc: options.Grpc = None,
) -> None:
    """Print access tokens of users, valid for gRPC and HTTP. The audit log records each."""
    if (user is None) != everyone:
        raise CommandError("name a user, or give --all for the tokens of all users")
    seconds = ttl_seconds(ttl)
    asyncio.run(_tokens(connection.find(grpc), user, seconds))


def ttl_seconds(text: str) -> int:
    """Returns the seconds of a duration such as `90s`, `30m` or `1h`. Raises CommandError if it is malformed, zero or
    longer than a day."""
    match = re.fullmatch(r"(\d{1,6})([smhd]?)", text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= seconds <= MAX_TTL_S:
        raise CommandError(f"--ttl {text!r}: write 90s, 30m or 1h, at most a day")
    return seconds


async def _tokens(mesh: connection.MeshTarget, user: str | None, ttl_s: int) -> None:
    operator = mesh.operator()
    async with connection.connect(mesh) as channels:
        channel = channels[0]
        if user is not None:
            typer.echo(await users.token_of(channel, operator, await users.id_of(channel, user), ttl_s))
            return
        batch: list[user_service_pb2.ScannedUser] = []
        try:
            async for scanned in scan_users(channel, operator):
                batch.append(scanned)
                if len(batch) == MINT_BATCH:
                    await _print(channel, operator, batch, ttl_s)
                    batch = []
            if batch:
                await _print(channel, operator, batch, ttl_s)
        except grpc_lib.aio.AioRpcError as error:
            raise call_error(error, "minting tokens") from error


async def _print(
    channel: grpc_lib.aio.Channel, operator: connection.Metadata, batch: list[user_service_pb2.ScannedUser], ttl_s: int
) -> None:
    names = {scanned.user.id: scanned.user.username for scanned in batch}
    minted = await mint(auth_service_pb2_grpc.AuthServiceStub(channel), operator, names, ttl_s)
    for user_id, access_token in minted.items():
        line = {"user_id": str(user_id), "username": names[user_id], "token": access_token}
        typer.echo(orjson.dumps(line).decode())
