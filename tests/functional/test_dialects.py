"""Connect over HTTP against the mesh, and methods that no dialect serves to users."""

from __future__ import annotations

import re
from typing import Any

import grpc
import httpx
import pytest
from roost.identity.v1 import auth_service_pb2
from roost.options.v1 import options_pb2 as options
from roost.timeline.v1 import timeline_service_pb2
from roost.tweet.v1 import tweet_service_pb2

from gateway_http.router import bindings
from services.platform.rpc.contract import Method, methods
from tests.conftest import MeshFactory
from tests.functional.conftest import PASSWORD, Person, Web

AUTH = "/roost.identity.v1.AuthService"
TWEETS = "/roost.tweet.v1.TweetService"
TIMELINES = "/roost.timeline.v1.TimelineService"
INTERNAL = [method for method in methods().values() if method.policy.access == options.ACCESS_MESH]


async def connect(web: Web, path: str, body: Any, person: Person | None = None, **headers: str) -> httpx.Response:
    sent = {"connect-protocol-version": "1", **headers}
    return await web.call("POST", path, person, json=body, headers=sent)


async def test_connect_json_and_binary_match_rest(web: Web) -> None:
    """Signs up, posts, reads and deletes in JSON and binary; REST shows the same tweets."""
    name = web.fresh("ada")
    account = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    answer = await connect(web, f"{AUTH}/SignUp", account)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    ada = Person(found["user"]["id"], name, found["accessToken"], found["refreshToken"])

    request = tweet_service_pb2.CreateTweetRequest(text="over connect", idempotency_key="once")
    binary = {"content-type": "application/proto"}
    for _ in range(2):
        answer = await web.call(
            "POST", f"{TWEETS}/CreateTweet", ada, content=request.SerializeToString(), headers=binary
        )
        assert answer.status_code == 200
        tweet = tweet_service_pb2.CreateTweetResponse.FromString(answer.content).tweet
        assert (tweet.text, tweet.author.username) == ("over connect", name)
    assert await web.home(ada) == [str(tweet.id)]

    answer = await connect(web, f"{TIMELINES}/ListHomeTimeline", {"pageSize": 5}, ada)
    assert [one["id"] for one in answer.json()["tweets"]] == [str(tweet.id)]
    assert answer.json()["tweets"][0]["createdAt"].endswith("Z")

    assert (await connect(web, f"{TWEETS}/DeleteTweet", {"tweetId": str(tweet.id)}, ada)).status_code == 200
    answer = await connect(web, f"{TWEETS}/GetTweet", {"tweetId": str(tweet.id)}, ada)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.long("cluster")
async def test_connect_refusals_are_connect_errors(web: Web) -> None:
    ada = await web.sign_up("ada")
    answer = await connect(web, f"{TWEETS}/CreateTweet", {"text": "x" * 281}, ada)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")
    assert {"google.rpc.ErrorInfo", "google.rpc.BadRequest"} == {one["type"] for one in answer.json()["details"]}
    answer = await connect(web, f"{TWEETS}/CreateTweet", {"text": "x"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    answer = await connect(web, "/roost.fanout.v1.FanoutService/PauseFanout", {}, ada)
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    answer = await connect(web, f"{TIMELINES}/ListHomeTimeline", {}, ada, **{"connect-timeout-ms": "0"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


@pytest.mark.long("cluster")
async def test_internal_methods_over_http_return_404(web: Web) -> None:
    """Paths of Connect and guessed paths of REST are answered like a path that does not exist, even to administrators."""
    admin = await web.admin()

    def outcome(answer: httpx.Response) -> Any:
        return answer.status_code, {k: v for k, v in answer.json().items() if k not in ("instance", "trace_id")}

    nowhere = outcome(await connect(web, "/roost.tweet.v1.TweetService/Nothing", {}, admin))
    assert nowhere[0] == 404
    for method in INTERNAL:
        assert bindings(method) == [], f"{method.path} is internal and has a route"
        assert outcome(await connect(web, method.path, {}, admin)) == nowhere
        for verb in ("GET", "POST"):
            answer = await web.call(verb, f"/v1{method.path}", admin)
            assert outcome(answer) == nowhere


async def ask(channel: grpc.aio.Channel, method: Method, token: str) -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {token}"),)
    try:
        if method.client_streaming:
            stream = channel.stream_unary(method.path)(metadata=metadata, timeout=10)
            await stream
        elif method.server_streaming:
            async for _ in channel.unary_stream(method.path)(b"", metadata=metadata, timeout=10):
                break
        else:
            await channel.unary_unary(method.path)(b"", metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.long("cluster")
@pytest.mark.parametrize("codec", ["json", "binary"])
async def test_connectrpc_client_calls_and_errors_are_understood(web: Web, codec: str) -> None:
    """Calls the gateway by connectrpc, an independent implementation of Connect."""
    client_module = pytest.importorskip("connectrpc.client")
    compat = pytest.importorskip("connectrpc.compat")
    from connectrpc.code import Code
    from connectrpc.errors import ConnectError
    from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType

    def info(path: str) -> Any:
        method = methods()[path]
        return MethodInfo(
            name=method.name,
            service_name=method.service,
            input=method.request,
            output=method.response,
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=StreamType.UNARY,
        )

    ada = await web.sign_up("ada")
    chosen = compat.google_protobuf_json_codec() if codec == "json" else compat.google_protobuf_binary_codec()
    address = str(web.client.base_url).rstrip("/")
    client = client_module.ConnectClient(address, codec=chosen, send_compression=None)
    created = await client.execute_unary(
        request=tweet_service_pb2.CreateTweetRequest(text="héllo"),
        method=info(f"{TWEETS}/CreateTweet"),
        headers=ada.headers,
    )
    assert (created.tweet.text, created.tweet.author_id) == ("héllo", int(ada.id))
    page = await client.execute_unary(
        request=timeline_service_pb2.ListHomeTimelineRequest(mode=timeline_service_pb2.TIMELINE_MODE_LATEST),
        method=info(f"{TIMELINES}/ListHomeTimeline"),
        headers=ada.headers,
        timeout_ms=30_000,
    )
    assert [one.id for one in page.tweets] == [created.tweet.id]
    for text, headers, code in (("", ada.headers, Code.INVALID_ARGUMENT), ("x", {}, Code.UNAUTHENTICATED)):
        with pytest.raises(ConnectError) as caught:
            await client.execute_unary(
                request=tweet_service_pb2.CreateTweetRequest(text=text),
                method=info(f"{TWEETS}/CreateTweet"),
                headers=headers,
            )
        assert caught.value.code is code
        assert "google.rpc.ErrorInfo" in {one.type_name for one in caught.value.details}


ADMINISTRATION = [
    method
    for method in methods().values()
    if method.policy.access in (options.ACCESS_ADMIN, options.ACCESS_MODERATOR) and not method.client_streaming
]


@pytest.mark.long("cluster")
async def test_admin_methods_by_user_are_refused_in_every_dialect(web: Web) -> None:
    """Access is checked before it is known whether the method is served: 403 for users, 401 without a token."""
    ada = await web.sign_up("ada")
    for method in ADMINISTRATION:
        routes = [(one.http_method, re.sub(r"\{\w+\}", "1", one.template)) for one in bindings(method)]
        for verb, path in [*routes, ("POST", method.path)]:
            body = {} if verb == "GET" else {"json": {}}
            for person, status in ((ada, 403), (None, 401)):
                answer = await web.call(verb, path, person, **body)
                assert answer.status_code == status, (verb, path, answer.text)
    address = f"127.0.0.1:{web.mesh.process.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:
        for method in ADMINISTRATION:
            for metadata, code in (
                ([("authorization", f"Bearer {ada.token}")], "PERMISSION_DENIED"),
                ([], "UNAUTHENTICATED"),
            ):
                call = channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
                with pytest.raises(grpc.aio.AioRpcError, match=code):
                    await call(method.request(), metadata=metadata, timeout=10)


@pytest.mark.long("cluster")
async def test_admin_methods_not_served_return_501(web: Web) -> None:
    admin = await web.admin()
    assert (await web.call("GET", "/admin/v1/ranking/model", admin)).status_code == 501
    answer = await connect(web, "/roost.timeline.v1.RankingService/GetModel", {}, admin)
    assert (answer.status_code, answer.json()["code"]) == (501, "unimplemented")


@pytest.mark.long("cluster")
async def test_internal_methods_over_grpc_are_denied(start_mesh: MeshFactory) -> None:
    """The client has an administrator's token and no identity of the mesh."""
    mesh = await start_mesh(wire="grpc", admins=("root_admin",))
    [admin] = await mesh.people("root_admin")
    token = (
        (await mesh.operator_auth.MintTokens(auth_service_pb2.MintTokensRequest(user_ids=[admin], ttl_seconds=60)))
        .tokens[0]
        .access_token
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.process.grpc_port}") as channel:
        found = {method.path: await ask(channel, method, token) for method in INTERNAL}
    # Methods that no service serves yet are denied too.
    assert found == dict.fromkeys(found, grpc.StatusCode.PERMISSION_DENIED)
    assert len(INTERNAL) > 20
