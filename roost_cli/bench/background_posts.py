"""Posts tweets at a constant rate while `roost bench` measures reads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli import connection
from roost_cli.exit_codes import call_error

# Maximum number of concurrent CreateTweet calls. If the mesh cannot keep the requested rate, the next call waits until
# an earlier one has ended.
MAX_UNDER_WAY = 64


@asynccontextmanager
async def posting(mesh: connection.MeshTarget, tokens: Sequence[str], per_second: int) -> AsyncIterator[None]:
    """Posts `per_second` tweets per second until the block ends, each as a random user of those whose access tokens are
    in `tokens`. Posts nothing if `per_second` is 0.

    Raises CommandError at the end of the block if a CreateTweet call failed.
    """
    if not per_second:
        yield
        return
    async with connection.connect(mesh) as channels:
        task = asyncio.create_task(_post(channels[0], tokens, per_second))
        try:
            yield
        finally:
            task.cancel()
            (done,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(done, ExceptionGroup):
        error = done.exceptions[0]
        raise call_error(error, "posting meanwhile") if isinstance(error, grpc.aio.AioRpcError) else error


async def _post(channel: grpc.aio.Channel, tokens: Sequence[str], per_second: int) -> None:
    stub = tweet_service_pb2_grpc.TweetServiceStub(channel)
    chance = random.SystemRandom()
    slots = asyncio.Semaphore(MAX_UNDER_WAY)
    loop = asyncio.get_running_loop()

    async def one(number: int) -> None:
        async with slots:
            request = tweet_service_pb2.CreateTweetRequest(text=f"Tweet {number} of a measurement.")
            await stub.CreateTweet(request, metadata=connection.bearer(chance.choice(tokens)))

    async with asyncio.TaskGroup() as group:
        begun, number = loop.time(), 0
        while True:
            number += 1
            await asyncio.sleep(max(begun + number / per_second - loop.time(), 0))
            async with slots:
                pass
            group.create_task(one(number))
