"""Finds the id of a user whom a command line names by username or id, and mints access tokens for users."""

from __future__ import annotations

import grpc
from roost.identity.v1 import auth_service_pb2_grpc, user_service_pb2, user_service_pb2_grpc

from roost_cli.connection import Metadata
from roost_cli.exit_codes import FAULTS, CommandError, call_error
from roost_cli.rate_control import deadline_s
from roost_cli.tokens import mint

GET_BY_USERNAME = "/roost.identity.v1.UserService/GetUserByUsername"
# Lifetime in seconds of the access token that a command uses. It is longer than the deadline of the longest stream.
TOKEN_TTL_S = 900


async def id_of(channel: grpc.aio.Channel, user: str) -> int:
    """Returns the id of the user that `user` names: an id if it consists of digits, otherwise a username with or
    without `@`.

    Raises CommandError if the username is unknown. Does not check that an id exists.
    """
    if user.isascii() and user.isdigit():
        return int(user)
    stub = user_service_pb2_grpc.UserServiceStub(channel)
    request = user_service_pb2.GetUserByUsernameRequest(username=user.removeprefix("@"))
    try:
        answer = await stub.GetUserByUsername(request, timeout=deadline_s(GET_BY_USERNAME))
    except grpc.aio.AioRpcError as error:
        raise call_error(error, f"looking up {user}") from error
    return answer.user.id


async def token_of(channel: grpc.aio.Channel, operator: Metadata, user_id: int, ttl_s: int = TOKEN_TTL_S) -> str:
    """Mints an access token for one user, valid for `ttl_s` seconds. Raises CommandError if the user is unknown,
    suspended or deactivated."""
    try:
        tokens = await mint(auth_service_pb2_grpc.AuthServiceStub(channel), operator, [user_id], ttl_s)
    except grpc.aio.AioRpcError as error:
        raise call_error(error, "minting a token") from error
    if user_id not in tokens:
        raise CommandError(f"user {user_id} is unknown, suspended or deactivated", FAULTS)
    return tokens[user_id]
