"""Services that cannot be reached: callers get a message without addresses, and the log has gRPC's message."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
import structlog
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from gateway_http.app import Gateway
from gateway_http.server import HttpServer
from services.catalog import BACKENDS, KEY_SOURCE
from services.platform.process import Process
from services.platform.rpc import errors
from tests.conftest import mesh_settings

# No service runs here, so no store does.
pytestmark = pytest.mark.long("cluster")

MESSAGE = "tweet cannot be reached now: retry later"


@pytest.fixture
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """An edge proxy without services: it forwards calls to an address on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = mesh_settings(tmp_path_factory.mktemp("edge"), static_peers={"tweet": dead, "identity": dead})
        async with await Process.start(
            settings, {}, backend=BACKENDS[settings.backend], key_source=KEY_SOURCE
        ) as process:
            yield process


@pytest.mark.parametrize("path", ["/v1/tweets", "/roost.tweet.v1.TweetService/ListRecentTweets"])
async def test_unreachable_service_503_hides_address_and_log_has_it(edge: Process, path: str) -> None:
    dead = edge.settings.static_peers["tweet"]
    app = Gateway(edge.channel("gateway"), edge.verifier, edge.settings, edge.health, edge.rate_limits)
    server = HttpServer(app, "127.0.0.1", 0)
    await server.start()
    async with httpx.AsyncClient(base_url=server.url) as client:
        with structlog.testing.capture_logs() as lines:
            answer = await client.get(path) if path.startswith("/v1") else await client.post(path, json={})
    await server.stop()
    assert answer.status_code == 503
    assert dead not in answer.text
    assert MESSAGE in answer.text
    (line,) = [line for line in lines if line["event"] == "http_request.refused"]
    assert (line["code"], dead in line["notes"]) == ("UNAVAILABLE", True)


async def test_unreachable_service_grpc_status_hides_address_and_log_has_it(edge: Process) -> None:
    dead = edge.settings.static_peers["tweet"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.grpc_port}") as channel:
        stub = tweet_service_pb2_grpc.TweetServiceStub(channel)
        with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetTweet(tweet_service_pb2.GetTweetRequest(tweet_id=1), timeout=5)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, MESSAGE)
    assert dead not in str(errors.from_rpc(caught.value).status())
    assert [dead in line["notes"] for line in lines if line["event"] == "grpc_call.refused"] == [True]
