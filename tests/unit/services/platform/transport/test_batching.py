"""Tests batching over real sockets: concurrent calls share one RPC and get the same responses as single calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from roost.batch.v1 import batch_service_pb2 as pb
from roost.batch.v1 import batch_service_pb2_grpc as pb_grpc
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2, tweet_service_pb2_grpc

from services.catalog import KEY_SOURCE
from services.platform.backends.embedded import open_embedded
from services.platform.config import Settings
from services.platform.process import Process
from services.platform.rpc import context, errors
from services.platform.rpc.context import Actor, Call, current_call
from services.platform.service import Service, ServiceContext
from services.platform.transport.batching import MAX_BATCHES, BatchingChannel
from services.platform.transport.remote import MeshChannel
from tests.waiting import WITHIN_S, wait_until

SECRET = "0123456789abcdef" * 2


class Tweets(tweet_service_pb2_grpc.TweetServiceServicer):
    """Records the callers; ids 404 and 503 fail, id 9 waits for `release`."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.release = asyncio.Event()

    async def GetTweet(self, request: tweet_service_pb2.GetTweetRequest, context_: Any) -> tweet_pb2.SerializedTweet:
        self.calls.append(context.current())
        if request.tweet_id == 404:
            raise errors.not_found("no such tweet")
        if request.tweet_id == 503:
            raise errors.unavailable("later", retry_after_s=2.5)
        if request.tweet_id == 9:
            await self.release.wait()
        context_.set_trailing_metadata((("roost-timeline", str(request.tweet_id)),))
        return tweet_pb2.SerializedTweet(tweet=tweet_pb2.Tweet(id=request.tweet_id).SerializeToString())

    async def DeleteTweet(
        self, request: tweet_service_pb2.DeleteTweetRequest, context_: Any
    ) -> tweet_service_pb2.DeleteTweetResponse:
        self.calls.append(context.current())
        return tweet_service_pb2.DeleteTweetResponse()


class Rig:
    def __init__(self) -> None:
        self.servicer = Tweets()
        self.sent: list[str] = []
        self.process: Process
        self.channel: BatchingChannel

    async def build(self, kit: ServiceContext) -> Service:
        return Service("tweet", {"roost.tweet.v1.TweetService": self.servicer})

    @property
    def stub(self) -> tweet_service_pb2_grpc.TweetServiceStub:
        return tweet_service_pb2_grpc.TweetServiceStub(self.channel)

    def batches(self) -> int:
        return sum(name.endswith("/Call") for name in self.sent)


class Watched(MeshChannel):
    """A channel that records the method of each call."""

    def __init__(self, target: str, sent: list[str]) -> None:
        super().__init__(target, "timeline", SECRET)
        self._sent = sent

    def _callable(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Any:
        start = super()._callable(kind, method, *args, **kwargs)

        def begin(*a: Any, **k: Any) -> Any:
            self._sent.append(method)
            return start(*a, **k)

        return begin


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig()
    settings = Settings(data_dir=tmp_path / "data", grpc_address="127.0.0.1:0", log_level="error", mesh_secret=SECRET)
    async with await Process.start(
        settings, {"tweet": rig.build}, backend=open_embedded, key_source=KEY_SOURCE
    ) as rig.process:
        rig.channel = BatchingChannel(Watched(f"127.0.0.1:{rig.process.grpc_port}", rig.sent))
        yield rig
        rig.servicer.release.set()
        await rig.channel.close()


def get(tweet_id: int) -> tweet_service_pb2.GetTweetRequest:
    return tweet_service_pb2.GetTweetRequest(tweet_id=tweet_id)


async def test_calls_of_one_loop_iteration_share_batch(rig: Rig) -> None:
    answers = await asyncio.gather(*(rig.stub.GetTweet(get(i)) for i in range(1, 9)))
    assert [answer.tweet.id for answer in answers] == list(range(1, 9))
    assert rig.batches() == 1
    assert len(rig.sent) == 1


async def test_single_call_is_sent_without_batch(rig: Rig) -> None:
    assert (await rig.stub.GetTweet(get(7))).tweet.id == 7
    assert rig.sent == ["/roost.tweet.v1.TweetService/GetTweet"]


async def test_queued_calls_are_sent_in_few_batches(rig: Rig) -> None:
    async def one(i: int) -> int:
        return int((await rig.stub.GetTweet(get(i))).tweet.id)

    async def later(i: int) -> int:
        await asyncio.sleep(0)
        return await one(i)

    found = await asyncio.gather(*(one(i) for i in range(10, 20)), *(later(i) for i in range(20, 60)))
    assert sorted(found) == list(range(10, 60))
    assert len(rig.sent) <= 1 + MAX_BATCHES + 1


async def test_batched_calls_have_separate_statuses(rig: Rig) -> None:
    found = await asyncio.gather(*(rig.stub.GetTweet(get(i)) for i in (1, 404, 2, 503)), return_exceptions=True)
    assert rig.batches() == 1
    one, missing, two, later = found
    assert (one.tweet.id, two.tweet.id) == (1, 2)  # type: ignore[union-attr]
    assert isinstance(missing, grpc.aio.AioRpcError)
    assert missing.code() is grpc.StatusCode.NOT_FOUND
    assert isinstance(later, grpc.aio.AioRpcError)
    # Error details such as the retry time are kept.
    assert errors.from_rpc(later).retry_after_s == 2.5


async def test_batched_calls_have_separate_caller_actor_and_request_id(rig: Rig) -> None:
    async def asked_by(request_id: str) -> None:
        current_call.set(Call(request_id=request_id, traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01"))
        await rig.stub.GetTweet(get(1))

    await asyncio.gather(asked_by("r1"), asked_by("r2"))
    assert rig.batches() == 1
    assert sorted(call.request_id for call in rig.servicer.calls) == ["r1", "r2"]
    assert {call.caller for call in rig.servicer.calls} == {"timeline"}
    assert {call.actor.user_id for call in rig.servicer.calls} == {0}


async def test_batched_call_with_invalid_token_fails_alone(rig: Rig) -> None:
    async def asked_with(token: str) -> Any:
        current_call.set(Call(actor=Actor(5, token=token)))
        return await rig.stub.GetTweet(get(1))

    found = await asyncio.gather(asked_with("not a token"), asked_with(""), return_exceptions=True)
    assert rig.batches() == 1
    assert isinstance(found[0], grpc.aio.AioRpcError)
    assert found[0].code() is grpc.StatusCode.UNAUTHENTICATED
    assert found[1].tweet.id == 1  # type: ignore[union-attr]


async def test_batched_call_deadline_ends_call_alone(rig: Rig) -> None:
    hurried = rig.stub.GetTweet(get(9), timeout=0.2)
    patient = rig.stub.GetTweet(get(1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await hurried
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await patient).tweet.id == 1
    assert rig.batches() == 1


async def test_slow_batches_do_not_block_later_calls(rig: Rig) -> None:
    slow = [asyncio.ensure_future(_awaited(rig.stub.GetTweet(get(9)))) for _ in range(2)]
    await wait_until(lambda: len(rig.servicer.calls) == 2)
    slow += [asyncio.ensure_future(_awaited(rig.stub.GetTweet(get(9)))) for _ in range(2)]
    await wait_until(lambda: len(rig.servicer.calls) == 4)
    async with asyncio.timeout(WITHIN_S):
        assert (await rig.stub.GetTweet(get(3))).tweet.id == 3
    rig.servicer.release.set()
    assert [answer.tweet.id for answer in await asyncio.gather(*slow)] == [9, 9, 9, 9]


async def _awaited(call: Any) -> Any:
    return await call


async def test_batched_call_trailing_metadata_reaches_caller(rig: Rig) -> None:
    calls = [rig.stub.GetTweet(get(i)) for i in (1, 2)]
    await asyncio.gather(*map(_awaited, calls))
    assert list(await calls[0].trailing_metadata()) == [("roost-timeline", "1")]


async def test_unsafe_calls_are_sent_without_batch(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.platform.transport import batching

    monkeypatch.setattr(batching, "_fits", lambda method: method.name != "DeleteTweet")
    stub = rig.stub
    delete = tweet_service_pb2.DeleteTweetRequest(tweet_id=1)
    calls = [_awaited(stub.DeleteTweet(delete)) for _ in range(3)]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert len(rig.sent) == 3
    assert all(isinstance(error, grpc.aio.AioRpcError) for error in found)


async def test_lost_batch_is_retried_as_single_calls(rig: Rig) -> None:
    """The first batch is lost; its calls reach the server as single calls."""
    real = rig.channel._call_batch

    async def lost(*_: Any, **__: Any) -> pb.CallResponse:
        rig.channel._call_batch = real
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "gone")

    rig.channel._call_batch = lost
    answers = await asyncio.gather(*(rig.stub.GetTweet(get(i)) for i in (1, 2, 3)))
    assert [answer.tweet.id for answer in answers] == [1, 2, 3]
    assert rig.sent == ["/roost.tweet.v1.TweetService/GetTweet"] * 3


async def test_batch_from_public_caller_is_denied(rig: Rig) -> None:
    outside = grpc.aio.insecure_channel(f"127.0.0.1:{rig.process.grpc_port}")
    item = pb.CallItem(method="/roost.tweet.v1.TweetService/GetTweet", deadline_ms=1000)
    async with outside:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.BatchServiceStub(outside).Call(pb.CallRequest(items=[item]))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_close_fails_queued_calls(rig: Rig) -> None:
    calls = [rig.stub.GetTweet(get(i)) for i in (1, 2)]
    await rig.channel.close()
    found = await asyncio.gather(*map(_awaited, calls), return_exceptions=True)
    assert {error.code() for error in found if isinstance(error, grpc.aio.AioRpcError)} == {grpc.StatusCode.UNAVAILABLE}
