"""Tests retries over real sockets: only writes with an idempotency key and no response are retried, within their deadline."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from services.platform.transport.idempotent_retry import ATTEMPTS
from services.platform.transport.remote import MeshChannel
from tests.waiting import wait_until

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED

# Below the deadline of the method, which would cap each attempt.
SHARED_S = 4.0


class Tweets(tweet_service_pb2_grpc.TweetServiceServicer):
    """Fails with the statuses of `failures`, one per call, then succeeds."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.callers: list[str] = []
        self.left_s: list[float] = []
        self.failures: list[grpc.StatusCode] = []
        self.delay_s = 0.0
        self.release = asyncio.Event()
        self.release.set()

    async def CreateTweet(
        self, request: tweet_service_pb2.CreateTweetRequest, context: Any
    ) -> tweet_service_pb2.CreateTweetResponse:
        self.keys.append(request.idempotency_key)
        self.callers.append(dict(context.invocation_metadata())["roost-caller"])
        self.left_s.append(context.time_remaining())
        await asyncio.sleep(self.delay_s)
        await self.release.wait()
        if self.failures:
            await context.abort(self.failures.pop(0), "as configured")
        context.set_trailing_metadata((("sent", "last"),))
        return tweet_service_pb2.CreateTweetResponse()


class Rig:
    """A server, and a mesh channel to it."""

    def __init__(self, channel: MeshChannel, servicer: Tweets) -> None:
        self.channel = channel
        self.servicer = servicer

    def create(self, key: str, **options: Any) -> Any:
        stub = tweet_service_pb2_grpc.TweetServiceStub(self.channel)
        return stub.CreateTweet(tweet_service_pb2.CreateTweetRequest(text="a", idempotency_key=key), **options)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    server, servicer = grpc.aio.server(), Tweets()
    tweet_service_pb2_grpc.add_TweetServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = MeshChannel(f"127.0.0.1:{port}", "gateway", "s" * 32)
    yield Rig(channel, servicer)
    await channel.close()
    await server.stop(0)


@pytest.mark.parametrize("code", [UNAVAILABLE, CANCELLED])
async def test_write_without_response_is_retried_with_same_key(rig: Rig, code: grpc.StatusCode) -> None:
    rig.servicer.failures = [code] * (ATTEMPTS - 1)
    call = rig.create("k")
    await call
    assert rig.servicer.keys == ["k"] * ATTEMPTS
    assert set(rig.servicer.callers) == {"gateway"}
    assert dict(await call.trailing_metadata())["sent"] == "last"


async def test_retry_attempts_are_bounded(rig: Rig) -> None:
    rig.servicer.failures = [UNAVAILABLE] * 10
    with pytest.raises(grpc.aio.AioRpcError, match="as configured"):
        await rig.create("k")
    assert rig.servicer.keys == ["k"] * ATTEMPTS


@pytest.mark.parametrize(
    ("key", "code"), [("", UNAVAILABLE), ("k", grpc.StatusCode.DEADLINE_EXCEEDED), ("k", grpc.StatusCode.NOT_FOUND)]
)
async def test_write_without_key_or_with_other_status_is_not_retried(rig: Rig, key: str, code: grpc.StatusCode) -> None:
    rig.servicer.failures = [code]
    with pytest.raises(grpc.aio.AioRpcError):
        await rig.create(key)
    assert rig.servicer.keys == [key]


async def test_retry_attempts_share_deadline(rig: Rig) -> None:
    rig.servicer.failures = [UNAVAILABLE] * 10
    rig.servicer.delay_s = 0.2
    with pytest.raises(grpc.aio.AioRpcError):
        await rig.create("k", timeout=SHARED_S)
    left_s = rig.servicer.left_s
    assert len(left_s) > 1
    assert left_s[0] <= SHARED_S
    # Each attempt has what the earlier ones left. gRPC rounds deadlines, by far less than half the delay.
    assert all(later < earlier - rig.servicer.delay_s / 2 for earlier, later in itertools.pairwise(left_s)), left_s


async def test_retry_cancelled_caller_ends_attempts(rig: Rig) -> None:
    rig.servicer.failures = [UNAVAILABLE] * 10
    rig.servicer.release.clear()
    waiting = asyncio.ensure_future(_awaited(rig.create("cancelled")))
    await wait_until(lambda: rig.servicer.keys)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    rig.servicer.release.set()
    # A later call makes all its attempts: the cancelled one had as much time for another.
    with pytest.raises(grpc.aio.AioRpcError):
        await rig.create("later")
    assert rig.servicer.keys == ["cancelled"] + ["later"] * ATTEMPTS


async def _awaited(call: Any) -> Any:
    return await call
