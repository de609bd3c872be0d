"""Runs a mesh on embedded stores in this process, and measures the CPU time of single operations.

The CPU time is that of all threads of this process, so other processes on the machine distort it little.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc
from roost.graph.v1 import graph_service_pb2, graph_service_pb2_grpc
from roost.identity.v1 import user_service_pb2, user_service_pb2_grpc
from roost.timeline.v1 import timeline_service_pb2, timeline_service_pb2_grpc
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from roost_cli.exit_codes import FAULTS, CommandError
from services.catalog import BACKENDS, KEY_SOURCE, SERVICES
from services.platform import logs
from services.platform.config import Settings
from services.platform.process import Process
from services.platform.rpc.context import Actor, Call, current_call
from services.platform.service import Service, ServiceContext
from services.timeline.store import HomeTimelineStore

# Seconds that a mesh waits until follows count as old. All follows are older than that when it starts.
CLOCK_MARGIN_S = 0.05
# The number of followers from which on an author's tweets are pulled, so far above all sizes that all are pushed.
NO_CELEBRITIES = 1_000_000_000
# Maximum number of seconds of the fan-out of one tweet.
DELIVER_WITHIN_S = 120.0
# Seconds between two questions whether fan-out is done: at first, and at most. Each costs 0.1 ms of CPU.
FIRST_LOOK_S, LAST_LOOK_S = 0.002, 0.05


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an operation: its CPU time and its duration, in milliseconds."""

    cpu_ms: float
    ms: float


class GrowthMesh:
    """A running mesh. `homes` is the store of its home timelines."""

    def __init__(self, process: Process, homes: HomeTimelineStore) -> None:
        channel, operator = process.channel(""), process.channel("operator")
        self.homes = homes
        self._tweets = tweet_service_pb2_grpc.TweetServiceStub(channel)
        self._timelines = timeline_service_pb2_grpc.TimelineServiceStub(channel)
        self._users = user_service_pb2_grpc.UserServiceStub(channel)
        self._fanout = fanout_service_pb2_grpc.FanoutServiceStub(operator)
        self._rebuilds = timeline_service_pb2_grpc.TimelineServiceStub(operator)
        self._graph = graph_service_pb2_grpc.GraphServiceStub(operator)

    async def post(self, author_id: int, text: str) -> int:
        """Posts a tweet, waits until fan-out has delivered it, and returns the number of home timelines that got it.
        Raises CommandError if that takes longer than DELIVER_WITHIN_S seconds."""
        current_call.set(Call(actor=Actor(author_id)))
        answer = await self._tweets.CreateTweet(tweet_service_pb2.CreateTweetRequest(text=text))
        current_call.set(Call())
        request = fanout_service_pb2.GetFanoutLagRequest()
        pause, until = FIRST_LOOK_S, time.monotonic() + DELIVER_WITHIN_S
        while (await self._fanout.GetFanoutLag(request)).events:
            if time.monotonic() > until:
                raise CommandError(f"tweet {answer.tweet.id} was not delivered in {DELIVER_WITHIN_S:g} s", FAULTS)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_LOOK_S)
        asked = fanout_service_pb2.GetFanoutStatusRequest(tweet_id=answer.tweet.id)
        return (await self._fanout.GetFanoutStatus(asked)).delivered

    async def read(self, reader_id: int) -> None:
        """Reads the first page of a home timeline. Raises CommandError if it is empty or partial."""
        current_call.set(Call(actor=Actor(reader_id)))
        answer = await self._timelines.ListHomeTimeline(timeline_service_pb2.ListHomeTimelineRequest())
        if answer.partial or not answer.tweets:
            raise CommandError(
                f"the home timeline of user {reader_id} is {'partial' if answer.partial else 'empty'}", FAULTS
            )

    async def rebuild(self, reader_id: int) -> None:
        """Builds a home timeline anew."""
        current_call.set(Call())
        await self._rebuilds.RebuildHomeTimeline(timeline_service_pb2.RebuildHomeTimelineRequest(user_id=reader_id))

    async def look_up(self, username: str) -> None:
        """Reads a profile by its username."""
        current_call.set(Call())
        await self._users.GetUserByUsername(user_service_pb2.GetUserByUsernameRequest(username=username))

    async def make_celebrity(self, user_id: int) -> None:
        """Makes a user a celebrity, whose tweets are pulled."""
        current_call.set(Call())
        await self._graph.ReclassifyUser(
            graph_service_pb2.ReclassifyUserRequest(user_id=user_id, tier=graph_service_pb2.TIER_CHOICE_CELEBRITY)
        )

    async def warm(self, user_ids: Iterable[int]) -> None:
        """Makes the home timelines of the users warm, each without a tweet, below the API."""
        now_ms = int(time.time() * 1000)
        for user_id in user_ids:
            build = await self.homes.open_build(user_id, now_ms, "hybrid")
            assert build is not None, "the store in memory never refuses"
            await self.homes.close_build(build, (), 0)


async def cost(
    operation: Callable[[int], Awaitable[object]],
    repeats: int,
    before: Callable[[int], Awaitable[object]] | None = None,
) -> Cost:
    """Returns the median cost of an operation that is called `repeats` times with its number, after a first call that is
    not counted. `before` is called before each, and is not part of the cost."""
    cpu_ms, ms = [], []
    for number in range(repeats + 1):
        if before is not None:
            await before(number)
        cpu_begun, begun = time.process_time(), time.perf_counter()
        await operation(number)
        ms.append((time.perf_counter() - begun) * 1e3)
        cpu_ms.append((time.process_time() - cpu_begun) * 1e3)
    return Cost(statistics.median(cpu_ms[1:]), statistics.median(ms[1:]))


@asynccontextmanager
async def running(folder: Path, homes: int) -> AsyncIterator[GrowthMesh]:
    """Runs a mesh with the data directory `folder` until the block ends. It keeps up to `homes` home timelines."""
    stores: list[HomeTimelineStore] = []

    async def timeline(context: ServiceContext) -> Service:
        service = await SERVICES["timeline"](context)
        # Its store is its only resource.
        (store,) = service.resources
        stores.append(cast(HomeTimelineStore, store))
        return service

    settings = Settings(
        data_dir=folder,
        grpc_address="127.0.0.1:0",
        http_address="127.0.0.1:0",
        rate_limits=False,
        log_level="error",
        clock_margin_s=CLOCK_MARGIN_S,
        celebrity_threshold=NO_CELEBRITIES,
        warm_timelines=homes,
    )
    logs.configure(settings, "bench")
    builds = {**SERVICES, "timeline": timeline}
    async with await Process.start(settings, builds, backend=BACKENDS["embedded"], key_source=KEY_SOURCE) as process:
        # The celebrities are known only some time after the start, and until then all tweets are pulled.
        await asyncio.sleep(10 * CLOCK_MARGIN_S)
        yield GrowthMesh(process, stores[0])
