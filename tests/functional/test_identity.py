"""Identity in the mesh: profiles with counts from their owners, sessions, and tokens that are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from roost.graph.v1 import graph_service_pb2
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc, user_service_pb2

from services.platform.rpc.context import Actor, Call, current_call
from tests.conftest import SETTLE_WITHIN_S, Mesh, refused
from tests.functional.conftest import PASSWORD, Web, unique

over_grpc = pytest.mark.parametrize("shared_mesh", ["grpc"], indirect=True)


@contextmanager
def bearing(token: str, user_id: int = 0) -> Iterator[None]:
    """Makes calls within it with this access token; the in-process channel uses `user_id` instead."""
    reset = current_call.set(Call(actor=Actor(user_id, token=token)))
    try:
        yield
    finally:
        current_call.reset(reset)


async def sign_up(mesh: Mesh, name: str) -> auth_service_pb2.SignUpResponse:
    request = auth_service_pb2.SignUpRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
    return await mesh.auth.SignUp(request)


async def test_get_user_by_blocked_reader_hides_counts(shared_mesh: Mesh) -> None:
    mesh, bob_name = shared_mesh, unique("bob")
    alice, bob = await mesh.people(unique("alice"), bob_name)
    await mesh.follow(alice, bob)
    await mesh.post(bob, "first")
    request = user_service_pb2.GetUserRequest(user_id=bob)
    with mesh.as_user(alice):
        async with asyncio.timeout(SETTLE_WITHIN_S):
            # A profile is returned without its counts if the services that count do not answer in time.
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
    assert (hidden.username, hidden.display_name, hidden.HasField("metrics")) == (bob_name, "", False)


async def test_unserved_method_is_unimplemented(shared_mesh: Mesh) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        await shared_mesh.auth.VerifyOtp(auth_service_pb2.VerifyOtpRequest(username="alice", otp="123456"))


async def test_list_sessions_over_http_names_user_agent(web: Web) -> None:
    """The name is the user-agent header, cut to 255 characters, without characters outside printable ASCII."""
    name = web.fresh("ada")
    body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    headers = {"user-agent": "Roost/1.0 (phone)"}
    ada = (await web.client.post("/v1/auth/signup", json=body, headers=headers)).json()
    body = {"username": f"@{name} ", "password": PASSWORD}
    hostile = b"caf\xe9 " + b"x" * 1_000
    assert (await web.client.post("/v1/auth/login", json=body, headers={"user-agent": hostile})).status_code == 200
    bearer = {"authorization": f"Bearer {ada['access_token']}"}
    sessions = (await web.client.get("/v1/users/me/sessions", headers=bearer)).json()["sessions"]
    assert [session["user_agent"] for session in sessions] == ["caf " + "x" * 251, "Roost/1.0 (phone)"]


async def test_update_user_concurrent_updates_all_succeed(web: Web) -> None:
    ada = await web.sign_up("ada")
    changes = [web.call("PATCH", "/v1/users/me", ada, json={"bio": f"bio {number}"}) for number in range(10)]
    assert [answer.status_code for answer in await asyncio.gather(*changes)] == [200] * 10


async def test_login_deleted_account_with_reactivate_restores_tweets(web: Web) -> None:
    ada = await web.sign_up("ada")
    tweet_id = await web.post(ada, "hello")
    assert (await web.call("DELETE", "/v1/users/me", ada)).is_success
    assert (await web.call("GET", f"/v1/tweets/{tweet_id}")).status_code == 404
    body = {"username": ada.username, "password": PASSWORD}
    offered = await web.client.post("/v1/auth/login", json=body)
    assert (offered.status_code, offered.json()["code"]) == (403, "account_deactivated")
    back = await web.client.post("/v1/auth/login", json=body | {"reactivate": True})
    assert back.status_code == 200, back.text
    assert (await web.call("GET", f"/v1/tweets/{tweet_id}")).status_code == 200


@over_grpc
async def test_token_after_logout_is_refused(shared_mesh: Mesh) -> None:
    mesh, name = shared_mesh, unique("alice")
    alice = await sign_up(mesh, name)
    request = user_service_pb2.GetUserRequest(user_id=alice.user.id)
    with bearing(alice.access_token):
        assert (await mesh.users.GetUser(request)).user.email == f"{name}@example.com"
    await mesh.auth.Logout(auth_service_pb2.LogoutRequest(refresh_token=alice.refresh_token))

    async def until_refused() -> grpc.StatusCode:
        while True:
            try:
                with bearing(alice.access_token):
                    await mesh.users.GetUser(request)
            except grpc.aio.AioRpcError as error:
                return error.code()
            await asyncio.sleep(0.01)

    async with asyncio.timeout(SETTLE_WITHIN_S):
        assert await until_refused() is grpc.StatusCode.UNAUTHENTICATED


@over_grpc
async def test_forged_token_for_public_method_is_refused(shared_mesh: Mesh) -> None:
    mesh = shared_mesh
    alice = await sign_up(mesh, unique("alice"))
    for forged in ("garbage", "a.b.c", alice.access_token[:-4] + "AAAA", "x" * 5_000):
        with bearing(forged), refused(grpc.StatusCode.UNAUTHENTICATED):
            await mesh.users.GetUser(user_service_pb2.GetUserRequest(user_id=alice.user.id))


@over_grpc
async def test_list_sessions_over_grpc_names_user_agent(shared_mesh: Mesh) -> None:
    name = unique("ada")
    options = [("grpc.primary_user_agent", "ada-app/2.0")]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{shared_mesh.process.grpc_port}", options=options) as channel:
        auth = auth_service_pb2_grpc.AuthServiceStub(channel)
        request = auth_service_pb2.SignUpRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
        ada = await auth.SignUp(request, timeout=10)
        metadata = (("authorization", f"Bearer {ada.access_token}"),)
        listing = auth_service_pb2.ListSessionsRequest(user_id=ada.user.id)
        (session,) = (await auth.ListSessions(listing, metadata=metadata, timeout=10)).sessions
    assert session.user_agent.startswith("ada-app/2.0 ")
