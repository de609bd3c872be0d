"""Tests the interceptors around an RPC, with the same results over in-process and gRPC channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from roost.batch.v1 import batch_service_pb2, batch_service_pb2_grpc
from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from services.catalog import KEY_SOURCE, SERVICES
from services.platform.backends.embedded import open_embedded
from services.platform.config import Settings
from services.platform.process import Process
from services.platform.rpc import context, errors
from services.platform.rpc.context import Actor, Call, current_call
from services.platform.rpc.contract import methods
from services.platform.rpc.interceptors.endpoint import intercepted_methods
from services.platform.service import Service, ServiceContext
from services.platform.transport.message_guard import FrozenMessageChanged, MutationGuard
from tests.waiting import WITHIN_S, forever, wait_until


class Tweets(tweet_service_pb2_grpc.TweetServiceServicer):
    """Records the calls that reach it; some ids fail, and id 504 does not return."""

    def __init__(self) -> None:
        self.seen: list[Call] = []
        self.cancelled = asyncio.Event()
        self.kept = tweet_service_pb2.BatchGetTweetCoresResponse()

    async def GetTweet(self, request: tweet_service_pb2.GetTweetRequest, context_: Any) -> tweet_pb2.SerializedTweet:
        self.seen.append(context.current())
        match request.tweet_id:
            case 404:
                raise errors.not_found("no such tweet")
            case 499:
                raise errors.RoostError(grpc.StatusCode.CANCELLED, "stopping")
            case 500:
                raise ValueError("the database password is hunter2")
            case 503:
                raise errors.unavailable("later", retry_after_s=2.5)
            case 504:
                try:
                    await forever()
                finally:
                    self.cancelled.set()
        context_.set_trailing_metadata((("roost-timeline", "warm"),))
        tweet = tweet_pb2.Tweet(id=request.tweet_id, author_id=context.reader_id())
        return tweet_pb2.SerializedTweet(tweet=tweet.SerializeToString())

    async def DeleteTweet(
        self, request: tweet_service_pb2.DeleteTweetRequest, context_: Any
    ) -> tweet_service_pb2.DeleteTweetResponse:
        self.seen.append(context.current())
        return tweet_service_pb2.DeleteTweetResponse()

    async def BatchGetTweetCores(
        self, request: tweet_service_pb2.BatchGetTweetCoresRequest, context_: Any
    ) -> tweet_service_pb2.BatchGetTweetCoresResponse:
        self.seen.append(context.current())
        self.kept.cores.add()
        return self.kept

    async def CreateTweet(
        self, request: tweet_service_pb2.CreateTweetRequest, context_: Any
    ) -> tweet_service_pb2.CreateTweetResponse:
        request.text = "changed"
        return tweet_service_pb2.CreateTweetResponse()

    async def ScanTweets(
        self, request: tweet_service_pb2.ScanTweetsRequest, context_: Any
    ) -> AsyncIterator[tweet_service_pb2.ScanTweetsResponse]:
        for number in range(1, 1000):
            if number == request.after_id:
                raise errors.unavailable("half-way")
            yield tweet_service_pb2.ScanTweetsResponse(cores=[tweet_pb2.TweetCore(replies=number)])
            await asyncio.sleep(0)


class Fanout(fanout_service_pb2_grpc.FanoutServiceServicer):
    """A second hop: asks the tweet service on behalf of its caller."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.tweets = tweet_service_pb2_grpc.TweetServiceStub(channel)

    async def GetFanoutStatus(
        self, request: fanout_service_pb2.GetFanoutStatusRequest, context_: Any
    ) -> fanout_service_pb2.GetFanoutStatusResponse:
        await self.tweets.GetTweet(tweet_service_pb2.GetTweetRequest(tweet_id=request.tweet_id))
        return fanout_service_pb2.GetFanoutStatusResponse(tweet_id=request.tweet_id)


class Rig:
    def __init__(self, wire: str) -> None:
        self.wire = wire
        self.servicer = Tweets()
        self.process: Process

    async def tweet(self, kit: ServiceContext) -> Service:
        return Service("tweet", {"roost.tweet.v1.TweetService": self.servicer})

    async def fanout(self, kit: ServiceContext) -> Service:
        return Service("fanout", {"roost.fanout.v1.FanoutService": Fanout(kit.channel)})

    def tweets(self, caller: str = "") -> tweet_service_pb2_grpc.TweetServiceStub:
        return tweet_service_pb2_grpc.TweetServiceStub(self.process.channel(caller))


def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", grpc_address="127.0.0.1:0", log_level="error")


@pytest.fixture(params=["inprocess", "grpc"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(request.param)
    builds = {"tweet": rig.tweet, "fanout": rig.fanout}
    async with await Process.start(
        settings(tmp_path), builds, backend=open_embedded, key_source=KEY_SOURCE, wire=request.param
    ) as rig.process:
        yield rig


def get(tweet_id: int) -> tweet_service_pb2.GetTweetRequest:
    return tweet_service_pb2.GetTweetRequest(tweet_id=tweet_id)


async def test_wire_type_response_is_received_as_declared_message(rig: Rig) -> None:
    answer = await rig.tweets().GetTweet(get(7))
    assert answer == tweet_service_pb2.GetTweetResponse(tweet=tweet_pb2.Tweet(id=7))


async def test_call_trailing_metadata_reaches_caller(rig: Rig) -> None:
    call = rig.tweets().GetTweet(get(7))
    await call
    assert dict(await call.trailing_metadata())["roost-timeline"] == "warm"


@pytest.mark.parametrize(
    ("tweet_id", "code"),
    [(404, "NOT_FOUND"), (500, "INTERNAL"), (0, "INVALID_ARGUMENT"), (-1, "INVALID_ARGUMENT")],
)
async def test_call_errors_have_expected_status(rig: Rig, tweet_id: int, code: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.tweets().GetTweet(get(tweet_id))
    assert caught.value.code().name == code


async def test_call_unexpected_exception_hides_text(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.tweets().GetTweet(get(500))
    shown = repr(caught.value) + str(errors.from_rpc(caught.value))
    assert "hunter2" not in shown
    assert "internal error" in shown


async def test_call_error_details_reach_caller(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.tweets().GetTweet(get(0))
    assert [v.field for v in errors.from_rpc(caught.value).violations] == ["tweet_id"]
    stub = rig.tweets()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetTweet(get(503))
    assert errors.from_rpc(caught.value).retry_after_s == 2.5


async def test_call_deadline_exceeded_cancels_servicer(rig: Rig) -> None:
    await rig.tweets().GetTweet(get(1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        # Enough to reach the servicer: the connection is open.
        await rig.tweets().GetTweet(get(504), timeout=1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(rig.servicer.cancelled.wait(), WITHIN_S)


async def test_call_timer_firing_early_is_deadline_exceeded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = intercepted_methods({"roost.tweet.v1.TweetService": rig.servicer})[
        "/roost.tweet.v1.TweetService/GetTweet"
    ]
    call = Call(endpoint.method.path, deadline=asyncio.get_running_loop().time() + 0.05)
    # uvloop's timers count whole milliseconds and can fire up to 1 ms early.
    monkeypatch.setattr("services.platform.rpc.interceptors.endpoint.monotonic", lambda: call.deadline - 0.001)
    with pytest.raises(errors.RoostError) as caught:
        await endpoint.unary(get(504), call, None)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_call_cancelled_by_caller_cancels_servicer(rig: Rig) -> None:
    async def ask() -> None:
        await rig.tweets().GetTweet(get(504))

    asking = asyncio.create_task(ask())
    await wait_until(lambda: rig.servicer.seen)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(rig.servicer.cancelled.wait(), WITHIN_S)


async def test_call_deadline_shrinks_at_each_hop(rig: Rig) -> None:
    operator = fanout_service_pb2_grpc.FanoutServiceStub(rig.process.channel("operator"))
    own_s = methods()["/roost.tweet.v1.TweetService/GetTweet"].policy.deadline_ms / 1000
    given_s = own_s - 1
    await operator.GetFanoutStatus(fanout_service_pb2.GetFanoutStatusRequest(tweet_id=1), timeout=given_s)
    answered_at = asyncio.get_running_loop().time()
    (call,) = rig.servicer.seen
    assert call.caller == "fanout"
    # The method's own deadline is a second longer; the call must use the rest of the first hop's time instead.
    assert call.deadline < answered_at + given_s


async def test_mesh_method_from_unlisted_caller_is_denied(rig: Rig) -> None:
    request = tweet_service_pb2.BatchGetTweetCoresRequest(ids=[1])
    await rig.tweets("timeline").BatchGetTweetCores(request)
    for caller in ("", "gateway", "operator", "graph"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.tweets(caller).BatchGetTweetCores(request)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_mesh_method_without_callers_is_allowed_to_services_only(rig: Rig) -> None:
    stub = batch_service_pb2_grpc.BatchServiceStub
    request = batch_service_pb2.CallRequest(
        items=[batch_service_pb2.CallItem(method="/roost.no.v1.No/Such", deadline_ms=1000)]
    )
    for caller in ("gateway", *SERVICES):
        response = await stub(rig.process.channel(caller)).Call(request)
        assert len(response.results) == 1, caller
    for caller in ("", "operator", "no-service"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(rig.process.channel(caller)).Call(request)
        # Over a socket an unknown caller is not even identified.
        assert caught.value.code().name in {"PERMISSION_DENIED", "UNAUTHENTICATED"}, caller
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.process.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(channel).Call(request, timeout=WITHIN_S)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_user_method_without_user_is_unauthenticated(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.tweets().DeleteTweet(tweet_service_pb2.DeleteTweetRequest(tweet_id=1))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert rig.servicer.seen == []


async def test_call_unimplemented_method_is_unimplemented(rig: Rig) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.tweets().ListQuotes(tweet_service_pb2.ListQuotesRequest(tweet_id=1))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_stream_completes_fails_or_is_abandoned(rig: Rig) -> None:
    stub = rig.tweets("operator")
    request = tweet_service_pb2.ScanTweetsRequest()
    assert [part.cores[0].replies async for part in stub.ScanTweets(request)] == list(range(1, 1000))
    taken = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for part in stub.ScanTweets(tweet_service_pb2.ScanTweetsRequest(after_id=5)):
            taken.append(part.cores[0].replies)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert taken == [1, 2, 3, 4]
    async for _ in stub.ScanTweets(request):
        break


async def test_public_call_with_service_name_is_refused(rig: Rig) -> None:
    request = tweet_service_pb2.BatchGetTweetCoresRequest(ids=[1])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.process.grpc_port}") as channel:
        stub = tweet_service_pb2_grpc.TweetServiceStub(channel)
        for metadata in (
            (("roost-caller", "timeline"),),
            (("roost-caller", "timeline"), ("roost-mesh-secret", "guessed")),
            (("x-roost-user-id", "1"),),
            (("authorization", "Bearer guessed"),),
            (("authorization", "Basic Zm9v"),),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.BatchGetTweetCores(request, metadata=metadata, timeout=WITHIN_S)
            assert caught.value.code().name in {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE"}
    assert rig.servicer.seen == []


async def test_call_with_malformed_message_is_invalid_argument(rig: Rig) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.process.grpc_port}") as channel:
        call = channel.unary_unary("/roost.tweet.v1.TweetService/GetTweet")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\x0a\xff\xff", timeout=WITHIN_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_health_check_by_service_or_package_name_is_serving(rig: Rig) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.process.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "roost.tweet.v1.TweetService", "roost.fanout.v1.FanoutService", "tweet", "fanout"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=WITHIN_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_actor_of_in_process_call_reaches_servicer(tmp_path: Path) -> None:
    rig = Rig("inprocess")
    async with await Process.start(
        settings(tmp_path), {"tweet": rig.tweet}, backend=open_embedded, key_source=KEY_SOURCE
    ) as rig.process:
        token = current_call.set(Call(actor=Actor(42)))
        answer = await rig.tweets().GetTweet(get(1))
        current_call.reset(token)
    assert answer.tweet.author_id == 42


async def test_mutation_guard_detects_changed_request(tmp_path: Path) -> None:
    rig = Rig("inprocess")
    checker = MutationGuard()
    async with await Process.start(
        settings(tmp_path), {"tweet": rig.tweet}, backend=open_embedded, key_source=KEY_SOURCE, checker=checker
    ) as rig.process:
        token = current_call.set(Call(actor=Actor(42)))
        request = tweet_service_pb2.CreateTweetRequest(text="as sent")
        with pytest.raises(FrozenMessageChanged, match="CreateTweet"):
            await rig.tweets().CreateTweet(request)
        current_call.reset(token)
    assert request.text == "as sent"


async def test_mutation_guard_detects_changed_response(tmp_path: Path) -> None:
    rig = Rig("inprocess")
    checker = MutationGuard()
    async with await Process.start(
        settings(tmp_path), {"tweet": rig.tweet}, backend=open_embedded, key_source=KEY_SOURCE, checker=checker
    ) as rig.process:
        stub = rig.tweets("timeline")
        request = tweet_service_pb2.BatchGetTweetCoresRequest(ids=[1])
        await stub.BatchGetTweetCores(request)
        with pytest.raises(FrozenMessageChanged, match="BatchGetTweetCores"):
            await stub.BatchGetTweetCores(request)


async def test_start_on_taken_port_raises_with_reason(tmp_path: Path) -> None:
    rig = Rig("inprocess")
    async with await Process.start(
        settings(tmp_path), {"tweet": rig.tweet}, backend=open_embedded, key_source=KEY_SOURCE
    ) as rig.process:
        address = f"127.0.0.1:{rig.process.grpc_port}"
        second = Settings(data_dir=tmp_path / "other", grpc_address=address, log_level="error")
        with pytest.raises(errors.RoostError, match="another program listens there"):
            await Process.start(second, {"tweet": rig.tweet}, backend=open_embedded, key_source=KEY_SOURCE)


async def test_start_on_data_dir_in_use_is_refused(tmp_path: Path) -> None:
    rig = Rig("inprocess")
    async with await Process.start(
        settings(tmp_path), {"tweet": rig.tweet}, backend=open_embedded, key_source=KEY_SOURCE
    ) as rig.process:
        with pytest.raises(errors.RoostError):
            await Process.start(settings(tmp_path), {"tweet": rig.tweet}, backend=open_embedded, key_source=KEY_SOURCE)


async def test_call_cancelled_by_dependency_is_unavailable(rig: Rig) -> None:
    stub = fanout_service_pb2_grpc.FanoutServiceStub(rig.process.channel("operator"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetFanoutStatus(fanout_service_pb2.GetFanoutStatusRequest(tweet_id=499))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
