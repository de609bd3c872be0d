"""Posts tweets at a constant rate while reads are measured."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli import connection
from roost_cli.exit_codes import call_error

# The most posts in flight. If the mesh is slower than the rate, posts are sent at the speed of the mesh.
MAX_UNDER_WAY = 64


@asynccontextmanager
async def posting(mesh: connection.MeshTarget, tokens: Sequence[str], per_second: int) -> AsyncIterator[None]:
    """Posts `per_second` tweets a second as random users until the block ends; 0 posts none. Raises CommandError if
    a post fails."""
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
