"""Identity within the mesh: profiles joined by their real owners, and tokens refused once their session ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from roost.graph.v1 import graph_service_pb2
from roost.identity.v1 import auth_service_pb2, user_service_pb2

from services.common.context import Actor, Call, current_call
from tests.conftest import Mesh, MeshFactory, refused

# The promise is a second; a loaded machine gets more.
REVOKED_WITHIN_S = 5.0


@contextmanager
def bearing(token: str, user_id: int = 0) -> Iterator[None]:
    """Calls within it carry this access token over a socket; in process it is the user who is believed."""
    reset = current_call.set(Call(actor=Actor(user_id, token=token)))
    try:
        yield
    finally:
        current_call.reset(reset)


async def sign_up(mesh: Mesh, name: str) -> auth_service_pb2.SignUpResponse:
    request = auth_service_pb2.SignUpRequest(username=name, email=f"{name}@example.com", password="correct horse")
    return await mesh.auth.SignUp(request)


async def test_a_profile_has_its_counts_and_a_blocked_reader_sees_none(mesh: Mesh) -> None:
    alice, bob = await mesh.people("alice", "bob")
    await mesh.follow(alice, bob)
    await mesh.post(bob, "first")
    request = user_service_pb2.GetUserRequest(user_id=bob)
    with mesh.as_user(alice):
        user = (await mesh.users.GetUser(request)).user
    assert (user.metrics.followers, user.metrics.following, user.metrics.tweets) == (1, 0, 1)
    assert user.viewer.following
    assert user.email == ""
    with mesh.as_user(bob):
        await mesh.graph.Block(graph_service_pb2.BlockRequest(user_id=alice))
    with mesh.as_user(alice):
        hidden = (await mesh.users.GetUser(request)).user
    assert hidden.viewer.blocked_by
    assert (hidden.username, hidden.display_name, hidden.HasField("metrics")) == ("bob", "", False)


async def test_a_token_is_refused_once_its_session_ended(start_mesh: MeshFactory) -> None:
    mesh = await start_mesh(wire="grpc")
    alice = await sign_up(mesh, "alice")
    request = user_service_pb2.GetUserRequest(user_id=alice.user.id)
    with bearing(alice.access_token):
        assert (await mesh.users.GetUser(request)).user.email == "alice@example.com"
    await mesh.auth.Logout(auth_service_pb2.LogoutRequest(refresh_token=alice.refresh_token))

    async def until_refused() -> grpc.StatusCode:
        while True:
            try:
                with bearing(alice.access_token):
                    await mesh.users.GetUser(request)
            except grpc.aio.AioRpcError as error:
                return error.code()
            await asyncio.sleep(0.01)

    async with asyncio.timeout(REVOKED_WITHIN_S):
        assert await until_refused() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_forged_token_is_refused_also_where_none_is_needed(start_mesh: MeshFactory) -> None:
    mesh = await start_mesh(wire="grpc")
    alice = await sign_up(mesh, "alice")
    for forged in ("garbage", "a.b.c", alice.access_token[:-4] + "AAAA", "x" * 5_000):
        with bearing(forged), refused(grpc.StatusCode.UNAUTHENTICATED):
            await mesh.users.GetUser(user_service_pb2.GetUserRequest(user_id=alice.user.id))


async def test_what_comes_later_is_unimplemented(mesh: Mesh) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        await mesh.auth.VerifyOtp(auth_service_pb2.VerifyOtpRequest(username="alice", otp="123456"))
