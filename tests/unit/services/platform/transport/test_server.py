"""Tests the public side of the gRPC server: limits, bounds, health, reflection and malformed calls."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from services.catalog import KEY_SOURCE
from services.platform import open_files
from services.platform.backends.embedded import open_embedded
from services.platform.config import Settings
from services.platform.process import Process
from services.platform.rpc import context, errors
from services.platform.rpc.context import Actor, Call
from services.platform.service import Service, ServiceContext
from services.platform.transport import admission, reply
from services.platform.transport.batching import BatchingChannel
from services.platform.transport.remote import MeshChannel
from tests.waiting import wait_until

SECRET = "0123456789abcdef" * 2
OPERATOR_TOKEN = "fedcba9876543210" * 2
OPERATOR = (("authorization", f"Bearer {OPERATOR_TOKEN}"),)
GET_TWEET = "/roost.tweet.v1.TweetService/GetTweet"
HELD = 504
WITHIN_S = 20.0

_health: Any = health_pb2


class Tweets(tweet_service_pb2_grpc.TweetServiceServicer):
    def __init__(self) -> None:
        self.seen: list[Call] = []
        self.release = asyncio.Event()

    async def GetTweet(self, request: tweet_service_pb2.GetTweetRequest, context_: Any) -> tweet_pb2.SerializedTweet:
        self.seen.append(context.current())
        if request.tweet_id == HELD:
            await self.release.wait()
        return tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=request.tweet_id).SerializeToString())


class Served:
    """A process, and channels to it."""

    def __init__(self, process: Process, tweets: Tweets, stack: AsyncExitStack) -> None:
        self.process = process
        self.tweets = tweets
        self.target = f"127.0.0.1:{process.grpc_port}"
        self._stack = stack

    async def outside(self, *, local: bool = False) -> grpc.aio.Channel:
        """A channel without credentials; `local` gives it a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", int(local))]
        return await self._stack.enter_async_context(grpc.aio.insecure_channel(self.target, options=options))

    async def stub(self, *, local: bool = False) -> tweet_service_pb2_grpc.TweetServiceStub:
        return tweet_service_pb2_grpc.TweetServiceStub(await self.outside(local=local))

    async def health(self) -> health_pb2_grpc.HealthStub:
        return health_pb2_grpc.HealthStub(await self.outside())


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> Served:
            tweets = Tweets()

            async def build(kit: ServiceContext) -> Service:
                return Service("tweet", {"roost.tweet.v1.TweetService": tweets})

            fixed = {"data_dir": tmp_path / "data", "grpc_address": "127.0.0.1:0", "log_level": "error"}
            settings = Settings(**{**fixed, "mesh_secret": SECRET, "operator_token": OPERATOR_TOKEN, **changes})
            process = await stack.enter_async_context(
                await Process.start(settings, {"tweet": build}, backend=open_embedded, key_source=KEY_SOURCE)
            )
            stack.callback(tweets.release.set)
            return Served(process, tweets, stack)

        yield start


def get(tweet_id: int) -> tweet_service_pb2.GetTweetRequest:
    return tweet_service_pb2.GetTweetRequest(tweet_id=tweet_id)


async def code_of(call: Awaitable[Any]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def refusal_of(call: Awaitable[Any]) -> errors.RoostError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return errors.from_rpc(caught.value)


async def test_public_calls_above_rate_limit_are_refused_with_retry_time(serve: Serve) -> None:
    stub = await (await serve(reads_per_minute=3)).stub()
    assert [await code_of(stub.GetTweet(get(1))) for _ in range(3)] == ["OK"] * 3
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetTweet(get(1))
    refusal = errors.from_rpc(caught.value)
    assert (refusal.code.name, refusal.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    assert refusal.retry_after_s == pytest.approx(20, abs=5)
    assert 15 <= int(dict(caught.value.trailing_metadata())["retry-after"]) <= 20


async def test_mesh_and_operator_calls_have_no_rate_limit(serve: Serve) -> None:
    served = await serve(reads_per_minute=1)
    mesh = MeshChannel(served.target, "timeline", SECRET)
    stub = tweet_service_pb2_grpc.TweetServiceStub(mesh)
    assert [await code_of(stub.GetTweet(get(1))) for _ in range(3)] == ["OK"] * 3
    await mesh.close()
    outside = await served.stub()
    assert [await code_of(outside.GetTweet(get(1), metadata=OPERATOR)) for _ in range(3)] == ["OK"] * 3
    assert [await code_of(outside.GetTweet(get(1))) for _ in range(2)] == ["OK", "RESOURCE_EXHAUSTED"]


async def test_refusals_of_thousands_of_calls_have_expected_status(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_STREAMS_PER_ADDRESS", 1)
    served = await serve(reads_per_minute=1)
    # Separate connections: the bound on streams of a single one would queue calls.
    stubs = [await served.stub(local=True) for _ in range(6)]
    codes = await asyncio.gather(*(code_of(stub.GetTweet(get(1))) for _ in range(500) for stub in stubs))
    assert {*codes} == {"OK", "RESOURCE_EXHAUSTED"}
    health = await served.health()
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(500)]
    codes = await asyncio.gather(*(code_of(watch.read()) for watch in watches))
    assert (codes.count("OK"), codes.count("RESOURCE_EXHAUSTED")) == (1, 499)


async def test_calls_with_invalid_token_count_towards_rate_limit(serve: Serve) -> None:
    stub = await (await serve(reads_per_minute=2)).stub()
    forged = (("authorization", "Bearer forged"),)
    codes = [await code_of(stub.GetTweet(get(1), metadata=forged)) for _ in range(4)]
    assert codes == ["UNAUTHENTICATED"] * 2 + ["RESOURCE_EXHAUSTED"] * 2


async def test_address_in_metadata_of_untrusted_caller_is_ignored(serve: Serve) -> None:
    served = await serve()
    claims = (("roost-client-address", "192.0.2.9"), ("x-forwarded-for", "192.0.2.8"))
    stub = await served.stub()
    await stub.GetTweet(get(1), metadata=claims)
    await stub.GetTweet(
        get(1), timeout=WITHIN_S, metadata=(*claims, ("roost-caller", "gateway"), ("roost-mesh-secret", SECRET))
    )
    assert [call.address for call in served.tweets.seen] == ["127.0.0.1", "192.0.2.9"]


async def test_rate_limit_behind_trusted_proxy_counts_client_address(serve: Serve) -> None:
    served = await serve(trusted_proxies="127.0.0.0/8", reads_per_minute=1)
    stub = await served.stub()
    codes = [
        await code_of(stub.GetTweet(get(1), metadata=(("x-forwarded-for", address),)))
        for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")
    ]
    assert codes == ["OK", "OK", "RESOURCE_EXHAUSTED"]


async def test_address_from_gateway_reaches_service_in_single_and_batched_calls(serve: Serve) -> None:
    served = await serve()
    mesh = BatchingChannel(MeshChannel(served.target, "gateway", SECRET))
    stub = tweet_service_pb2_grpc.TweetServiceStub(mesh)
    addresses = [f"192.0.2.{number}" for number in range(5)]

    async def ask(address: str) -> None:
        context.current_call.set(Call(address=address))
        await stub.GetTweet(get(1))

    await asyncio.gather(*map(ask, addresses))
    await ask("192.0.2.9")
    await mesh.close()
    assert sorted(call.address for call in served.tweets.seen) == [*addresses, "192.0.2.9"]
    assert {call.user_agent for call in served.tweets.seen} == {""}


async def test_concurrent_calls_per_address_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_CALLS_PER_ADDRESS", 3)
    served = await serve(trusted_proxies="127.0.0.0/8")
    stub = await served.stub()
    held = [asyncio.ensure_future(stub.GetTweet(get(HELD))) for _ in range(3)]
    await wait_until(lambda: len(served.tweets.seen) == 3)
    refusal = await refusal_of(stub.GetTweet(get(1)))
    assert (refusal.code.name, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_AT_ONCE")
    # Another address is served, and so is the first once its calls have ended.
    assert await code_of(stub.GetTweet(get(1), metadata=(("x-forwarded-for", "192.0.2.1"),))) == "OK"
    served.tweets.release.set()
    await asyncio.gather(*held)
    assert await code_of(stub.GetTweet(get(1))) == "OK"


async def test_concurrent_mesh_calls_are_bounded_in_total(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_MESH_CALLS", 2)
    served = await serve()
    stub = await served.stub()
    identity = (("roost-caller", "timeline"), ("roost-mesh-secret", SECRET))
    held = [asyncio.ensure_future(stub.GetTweet(get(HELD), timeout=30, metadata=identity)) for _ in range(2)]
    await wait_until(lambda: len(served.tweets.seen) == 2)
    assert await code_of(stub.GetTweet(get(1), timeout=30, metadata=identity)) == "UNAVAILABLE"
    assert await code_of(stub.GetTweet(get(1))) == "OK"
    served.tweets.release.set()
    await asyncio.gather(*held)


async def test_health_watches_per_address_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_STREAMS_PER_ADDRESS", 3)
    served = await serve()
    health = await served.health()
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    assert [(await watch.read()).status for watch in watches] == [1, 1, 1]
    refused = health.Watch(health_pb2.HealthCheckRequest())
    assert (await refusal_of(refused.read())).reason == "TOO_MANY_AT_ONCE"
    watches.pop().cancel()
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await health.Watch(health_pb2.HealthCheckRequest()).read()
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)


async def test_reflection_counts_as_read_and_health_check_is_unlimited(serve: Serve) -> None:
    served = await serve(reads_per_minute=2)
    health = await served.health()
    ask = (await served.outside()).stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    assert [await code_of(ask(iter(())).read()) for _ in range(3)] == ["OK", "OK", "RESOURCE_EXHAUSTED"]
    assert await code_of(health.Check(health_pb2.HealthCheckRequest())) == "OK"
    assert await code_of(health.Watch(health_pb2.HealthCheckRequest()).read()) == "OK"


async def test_connections_above_bound_are_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "grpc_connections", lambda _: 3)
    served = await serve()
    answers = []
    with ExitStack() as sockets:
        for _ in range(6):
            client = sockets.enter_context(socket.create_connection(("127.0.0.1", served.process.grpc_port), WITHIN_S))
            # A server that accepts the connection sends its settings first.
            answers.append(bool(await asyncio.to_thread(client.recv, 1)))
    assert answers == [True] * 3 + [False] * 3


@pytest.mark.parametrize("path", [GET_TWEET, "/grpc.health.v1.Health/Check", "/roost.tweet.v1.TweetService/ScanTweets"])
async def test_call_without_request_is_invalid_argument(serve: Serve, path: str) -> None:
    channel = await (await serve()).outside()
    async with asyncio.timeout(WITHIN_S):
        refusal = await refusal_of(channel.stream_unary(path)(iter(())))
    assert refusal.code.name == "INVALID_ARGUMENT"


async def test_call_with_missing_request_ends_after_first_message_timeout(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "FIRST_MESSAGE_S", 0.1)
    channel = await (await serve()).outside()
    async with asyncio.timeout(WITHIN_S):
        refusal = await refusal_of(channel.stream_unary(GET_TWEET)())
    assert refusal.code.name == "DEADLINE_EXCEEDED"


async def test_health_lists_all_services(serve: Serve) -> None:
    channel = await (await serve()).outside()
    listed = channel.unary_unary(
        "/grpc.health.v1.Health/List",
        _health.HealthListRequest.SerializeToString,
        _health.HealthListResponse.FromString,
    )
    statuses = (await listed(_health.HealthListRequest())).statuses
    assert {name: status.status for name, status in statuses.items()} == {
        "": 1,
        "tweet": 1,
        "roost.tweet.v1.TweetService": 1,
        "roost.batch.v1.BatchService": 1,
        "batch": 1,
    }


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_resolves_services_methods_and_fields(serve: Serve, version: str) -> None:
    channel = await (await serve()).outside()
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    asked = reflection_pb2.ServerReflectionRequest
    symbols = {
        "roost.tweet.v1.TweetService": "roost/tweet/v1/tweet_service.proto",
        "roost.tweet.v1.TweetService.GetTweet": "roost/tweet/v1/tweet_service.proto",
        "roost.tweet.v1.GetTweetRequest.tweet_id": "roost/tweet/v1/tweet_service.proto",
        "grpc.reflection.v1.ServerReflection.ServerReflectionInfo": "grpc/reflection/v1/reflection.proto",
        "grpc.health.v1.Health.Watch": "grpc_health/v1/health.proto",
    }
    questions = [asked(list_services=""), *(asked(file_containing_symbol=symbol) for symbol in symbols)]
    answers = [answer async for answer in ask(iter((*questions, asked(file_containing_symbol="roost.no.Such"))))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names >= {
        "roost.tweet.v1.TweetService",
        "grpc.health.v1.Health",
        f"grpc.reflection.{version}.ServerReflection",
    }
    for answer, (symbol, wanted) in zip(answers[1:], symbols.items(), strict=False):
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data).name
            for data in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert wanted in files, symbol
    assert answers[-1].error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("caller", ["operator", "nobody", "Gateway"])
async def test_mesh_secret_with_operator_or_unknown_caller_is_refused(serve: Serve, caller: str) -> None:
    stub = await (await serve()).stub()
    refusal = await refusal_of(
        stub.GetTweet(get(1), timeout=WITHIN_S, metadata=(("roost-caller", caller), ("roost-mesh-secret", SECRET)))
    )
    assert (refusal.code.name, refusal.reason) == ("UNAUTHENTICATED", "UNKNOWN_CALLER")


async def test_exception_during_token_verification_hides_text(serve: Serve) -> None:
    served = await serve()

    async def verify(token: str) -> Actor:
        raise OverflowError("hunter2")

    served.process.verifier.verify = verify  # type: ignore[method-assign]
    stub = await served.stub()
    refusal = await refusal_of(stub.GetTweet(get(1), metadata=(("authorization", "Bearer x"),)))
    assert (refusal.code.name, refusal.reason) == ("INTERNAL", "INTERNAL")
    assert "hunter2" not in refusal.message


async def test_shared_address_is_served_by_all_its_processes_and_by_no_other(serve: Serve, tmp_path: Path) -> None:
    one = await serve(grpc_address_shared=True, data_dir=tmp_path / "one")
    two = await serve(grpc_address_shared=True, data_dir=tmp_path / "two", grpc_address=one.target)
    assert one.target == two.target
    # gRPC spreads connections, so each call gets one of its own.
    async with asyncio.timeout(30):
        while not (one.tweets.seen and two.tweets.seen):
            async with grpc.aio.insecure_channel(
                one.target, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                await tweet_service_pb2_grpc.TweetServiceStub(channel).GetTweet(get(1))
    with pytest.raises(errors.RoostError, match="another program listens there"):
        await serve(data_dir=tmp_path / "three", grpc_address=one.target)
    # In the registry, each process has an address at which only it answers.
    addresses = {served.process.advertised_address for served in (one, two)}
    assert len(addresses - {one.target}) == 2
    for served in (one, two):
        served.tweets.seen.clear()
        async with grpc.aio.insecure_channel(served.process.advertised_address) as channel:
            await tweet_service_pb2_grpc.TweetServiceStub(channel).GetTweet(get(1))
        assert served.tweets.seen
