"""Tests discovery through the registry, and the edge proxy, with real servers on loopback ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from services.catalog import KEY_SOURCE
from services.platform.backends.embedded import open_embedded
from services.platform.config import Settings
from services.platform.process import Process
from services.platform.rpc import errors
from services.platform.service import Service, ServiceContext, ServiceFactory
from services.platform.transport import discovery
from services.platform.transport.remote import MeshChannel
from services.registry.server import build as build_registry

SECRET = "0123456789abcdef" * 2
# All processes of a mesh share one token.
OPERATOR_TOKEN = "fedcba9876543210" * 2
WITHIN_S = 30.0
ELSEWHERE = ("registry", "tweet", "graph")


class Tweets(tweet_service_pb2_grpc.TweetServiceServicer):
    """Answers with its own number as the author."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.go_on = asyncio.Event()

    async def GetTweet(self, request: tweet_service_pb2.GetTweetRequest, context_: Any) -> tweet_pb2.SerializedTweet:
        if request.tweet_id == 404:
            raise errors.failed_precondition("no such tweet", "GONE")
        context_.set_trailing_metadata((("roost-timeline", "warm"),))
        return tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=1, author_id=self.number).SerializeToString())

    async def ScanTweets(
        self, request: tweet_service_pb2.ScanTweetsRequest, context_: Any
    ) -> AsyncIterator[tweet_service_pb2.ScanTweetsResponse]:
        for number in (1, 2, 3):
            if number == request.after_id:
                await self.go_on.wait()
            yield tweet_service_pb2.ScanTweetsResponse(cores=[tweet_pb2.TweetCore(replies=number)])


class Follows(graph_service_pb2_grpc.GraphServiceServicer):
    """Answers with its own number as the number of followers."""

    def __init__(self, number: int) -> None:
        self.number = number

    async def BatchGetUserCounts(
        self, request: graph_service_pb2.BatchGetUserCountsRequest, context_: Any
    ) -> graph_service_pb2.BatchGetUserCountsResponse:
        counts = {1: graph_service_pb2.UserCounts(followers=self.number)}
        return graph_service_pb2.BatchGetUserCountsResponse(counts=counts)

    async def build(self, context: ServiceContext) -> Service:
        return Service("graph", {"roost.graph.v1.GraphService": self})


class RegistryMesh:
    """A registry, and processes that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[Process] = []
        self.servicers: dict[int, Tweets] = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.registry = f"127.0.0.1:{probe.getsockname()[1]}"

    async def start(
        self,
        name: str,
        builds: dict[str, ServiceFactory],
        grpc_address: str = "127.0.0.1:0",
        *,
        is_edge: bool = False,
    ) -> Process:
        settings = Settings(
            data_dir=self.folder / name,
            grpc_address=grpc_address,
            log_level="error",
            mesh_secret=SECRET,
            operator_token=OPERATOR_TOKEN,
            registry_address=self.registry,
        )
        process = await Process.start(
            settings,
            builds,
            backend=open_embedded,
            key_source=KEY_SOURCE,
            remote_services=ELSEWHERE,
            is_edge=is_edge,
        )
        self.running.append(process)
        return process

    async def stop(self, process: Process) -> None:
        self.running.remove(process)
        await process.stop()

    async def start_registry(self) -> Process:
        return await self.start("registry", {"registry": build_registry}, self.registry)

    async def start_tweets(self, number: int) -> Process:
        self.servicers[number] = Tweets(number)

        async def build(context: ServiceContext) -> Service:
            return Service("tweet", {"roost.tweet.v1.TweetService": self.servicers[number]})

        return await self.start(f"tweet-{number}", {"tweet": build})

    async def start_proxy(self) -> Process:
        return await self.start("proxy", {})


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[RegistryMesh]:
    mesh = RegistryMesh(tmp_path)
    yield mesh
    for process in reversed(mesh.running):
        await process.stop()


async def answering(process: Process, caller: str = "gateway") -> int:
    """Returns the number of the instance that answers a call from this process."""
    stub = tweet_service_pb2_grpc.TweetServiceStub(process.channel(caller))
    answer = await stub.GetTweet(tweet_service_pb2.GetTweetRequest(tweet_id=1), timeout=WITHIN_S)
    return int(answer.tweet.author_id)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                if await holds():
                    return
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(0.05)


async def wait_for_instances(process: Process, numbers: set[int]) -> None:
    """Waits until exactly these instances answer calls from this process."""

    async def holds() -> bool:
        return {await answering(process) for _ in range(20)} == numbers

    await until(holds)


async def test_calls_go_to_registered_instances_only(mesh: RegistryMesh) -> None:
    await mesh.start_registry()
    one = await mesh.start_tweets(1)
    proxy = await mesh.start_proxy()
    await wait_for_instances(proxy, {1})
    await mesh.start_tweets(2)
    await wait_for_instances(proxy, {1, 2})
    # The instance deregisters before it stops, so no call reaches a closed port.
    stopping = asyncio.ensure_future(mesh.stop(one))
    while not stopping.done():
        assert await answering(proxy) in (1, 2)
    await wait_for_instances(proxy, {2})


async def test_addresses_survive_registry_outage_and_are_refreshed_by_new_registry(mesh: RegistryMesh) -> None:
    registry = await mesh.start_registry()
    await mesh.start_tweets(1)
    proxy = await mesh.start_proxy()
    await wait_for_instances(proxy, {1})
    await mesh.stop(registry)
    assert await answering(proxy) == 1
    await mesh.start_tweets(2)
    await mesh.start_registry()
    await wait_for_instances(proxy, {1, 2})


async def test_stream_in_progress_survives_new_instance(mesh: RegistryMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "RETIRE_S", 0.05)
    await mesh.start_registry()
    await mesh.start_tweets(1)
    proxy = await mesh.start_proxy()
    await wait_for_instances(proxy, {1})
    stub = tweet_service_pb2_grpc.TweetServiceStub(proxy.channel("search"))
    stream = stub.ScanTweets(tweet_service_pb2.ScanTweetsRequest(after_id=2))
    first = await stream.read()
    await mesh.start_tweets(2)
    await wait_for_instances(proxy, {1, 2})
    # The next call retires the earlier connections, which wait for their streams.
    closing, close = asyncio.Event(), MeshChannel.close

    async def noted(self: MeshChannel, grace: float | None = None) -> None:
        closing.set()
        await close(self, grace)

    monkeypatch.setattr(MeshChannel, "close", noted)
    await answering(proxy, "search")
    await asyncio.wait_for(closing.wait(), WITHIN_S)
    mesh.servicers[1].go_on.set()
    messages: list[Any] = [first, await stream.read(), await stream.read()]
    assert [message.cores[0].replies for message in messages] == [1, 2, 3]


async def test_queued_calls_survive_new_instance(mesh: RegistryMesh) -> None:
    await mesh.start_registry()
    await mesh.start_tweets(1)
    proxy = await mesh.start_proxy()
    await wait_for_instances(proxy, {1})

    async def calls() -> None:
        while not done:
            await asyncio.gather(*(answering(proxy) for _ in range(20)))

    done = False
    calling = [asyncio.ensure_future(calls()) for _ in range(3)]
    await mesh.start_tweets(2)
    await wait_for_instances(proxy, {1, 2})
    done = True
    await asyncio.gather(*calling)


async def test_call_to_service_without_instance_is_unavailable(mesh: RegistryMesh) -> None:
    await mesh.start_registry()
    proxy = await mesh.start_proxy()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answering(proxy)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (proxy.health().status, proxy.health().peers["tweet"]) == ("degraded", "TRANSIENT_FAILURE")


async def test_edge_proxy_forwards_calls_with_errors_and_trailing_metadata(mesh: RegistryMesh) -> None:
    await mesh.start_registry()
    await mesh.start_tweets(1)
    proxy = await mesh.start_proxy()
    await wait_for_instances(proxy, {1})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.grpc_port}") as outside:
        stub = tweet_service_pb2_grpc.TweetServiceStub(outside)
        call = stub.GetTweet(tweet_service_pb2.GetTweetRequest(tweet_id=1), timeout=WITHIN_S)
        assert (await call).tweet.author_id == 1
        assert ("roost-timeline", "warm") in list(await call.trailing_metadata())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetTweet(tweet_service_pb2.GetTweetRequest(tweet_id=404), timeout=WITHIN_S)
        assert errors.from_rpc(caught.value).reason == "GONE"
        # The proxy refuses mesh-only methods, as the service itself does.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ScanTweets(tweet_service_pb2.ScanTweetsRequest(), timeout=WITHIN_S).read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        operator = (("authorization", f"Bearer {proxy.operator_token}"),)
        found = [
            m async for m in stub.ScanTweets(tweet_service_pb2.ScanTweetsRequest(), timeout=WITHIN_S, metadata=operator)
        ]
        assert [message.cores[0].replies for message in found] == [1, 2, 3]


async def test_edge_proxy_with_services_answers_itself_and_forwards_the_rest(mesh: RegistryMesh) -> None:
    await mesh.start_registry()
    await mesh.start_tweets(1)
    here, away = Follows(2), Follows(3)
    edge = await mesh.start("edge", {"graph": here.build}, is_edge=True)
    await mesh.start("away", {"graph": away.build})
    await wait_for_instances(edge, {1})
    async with grpc.aio.insecure_channel(f"127.0.0.1:{edge.grpc_port}") as outside:
        tweets = tweet_service_pb2_grpc.TweetServiceStub(outside)
        assert (await tweets.GetTweet(tweet_service_pb2.GetTweetRequest(tweet_id=1))).tweet.author_id == 1
    async with MeshChannel(f"127.0.0.1:{edge.grpc_port}", "identity", SECRET) as inside:
        graph = graph_service_pb2_grpc.GraphServiceStub(inside)
        asked = graph_service_pb2.BatchGetUserCountsRequest(ids=[1])
        counts = [(await graph.BatchGetUserCounts(asked)).counts for _ in range(20)]
        # Never the other process, although the registry has its address too.
        assert {found[1].followers for found in counts} == {2}
    assert set(edge.health().peers) == {"registry", "tweet"}
    assert set(edge.health().services) == {"graph"}
    assert {"identity", "timeline"} <= set(edge.unaddressed)
    assert not {"graph", "tweet"} & set(edge.unaddressed)
