"""Identity within the mesh: profiles joined by their real owners, and tokens refused once their session ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from roost.graph.v1 import graph_service_pb2
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc, user_service_pb2

from services.platform.rpc.context import Actor, Call, current_call
from tests.conftest import Mesh, MeshFactory, refused
from tests.functional.conftest import PASSWORD, Web

# The promise is a second; a loaded machine gets more.
REVOKED_WITHIN_S = 5.0
COUNTED_WITHIN_S = 20.0


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
        async with asyncio.timeout(COUNTED_WITHIN_S):
            # On a machine that is busy a profile may come without its counts.
            while not (user := (await mesh.users.GetUser(request)).user).HasField("metrics"):
                await asyncio.sleep(0.05)
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


async def test_sessions_name_the_program_at_the_other_end(web: Web) -> None:
    """Over HTTP the header, over gRPC what the channel calls itself; bounded, and in printable ASCII."""
    body = {"username": "ada", "email": "ada@example.com", "password": PASSWORD}
    headers = {"user-agent": "Roost/1.0 (phone)"}
    ada = (await web.client.post("/v1/auth/signup", json=body, headers=headers)).json()
    body = {"username": "@ada ", "password": PASSWORD}
    hostile = b"caf\xe9 " + b"x" * 1_000
    assert (await web.client.post("/v1/auth/login", json=body, headers={"user-agent": hostile})).status_code == 200
    bearer = {"authorization": f"Bearer {ada['access_token']}"}
    sessions = (await web.client.get("/v1/users/me/sessions", headers=bearer)).json()["sessions"]
    assert [session["user_agent"] for session in sessions] == ["caf " + "x" * 251, "Roost/1.0 (phone)"]


async def test_sessions_name_the_program_at_the_other_end_of_grpc(start_mesh: MeshFactory) -> None:
    mesh = await start_mesh(wire="grpc")
    options = [("grpc.primary_user_agent", "ada-app/2.0")]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.process.grpc_port}", options=options) as channel:
        auth = auth_service_pb2_grpc.AuthServiceStub(channel)
        request = auth_service_pb2.SignUpRequest(username="ada", email="ada@example.com", password=PASSWORD)
        ada = await auth.SignUp(request, timeout=10)
        metadata = (("authorization", f"Bearer {ada.access_token}"),)
        listing = auth_service_pb2.ListSessionsRequest(user_id=ada.user.id)
        (session,) = (await auth.ListSessions(listing, metadata=metadata, timeout=10)).sessions
    assert session.user_agent.startswith("ada-app/2.0 ")


async def test_many_updates_of_one_profile_at_once_all_succeed(web: Web) -> None:
    ada = await web.sign_up("ada")
    changes = [web.call("PATCH", "/v1/users/me", ada, json={"bio": f"bio {number}"}) for number in range(10)]
    assert [answer.status_code for answer in await asyncio.gather(*changes)] == [200] * 10


async def test_a_deleted_account_comes_back_by_its_password(web: Web) -> None:
    ada = await web.sign_up("ada")
    tweet_id = await web.post(ada, "hello")
    assert (await web.call("DELETE", "/v1/users/me", ada)).is_success
    assert (await web.call("GET", f"/v1/tweets/{tweet_id}")).status_code == 404
    body = {"username": "ada", "password": PASSWORD}
    offered = await web.client.post("/v1/auth/login", json=body)
    assert (offered.status_code, offered.json()["code"]) == (403, "account_deactivated")
    back = await web.client.post("/v1/auth/login", json=body | {"reactivate": True})
    assert back.status_code == 200, back.text
    assert (await web.call("GET", f"/v1/tweets/{tweet_id}")).status_code == 200
