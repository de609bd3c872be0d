"""Observes the fan-out of a mesh: whether it has delivered all tweets, and how long each delivery took."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc as grpc_lib
import orjson
from roost.fanout.v1 import fanout_service_pb2, fanout_service_pb2_grpc

from roost_cli import connection
from roost_cli.bench import http_load
from roost_cli.exit_codes import FAULTS, CommandError, call_error
from roost_cli.rate_control import for_each

# Maximum number of seconds that fan-out may need for the tweets of a round after the last response.
DELIVER_WITHIN_S = 60.0
# Seconds between two questions whether fan-out is done. They count as CPU time of the mesh, so they are few.
LOOK_EVERY_S = 0.02
# Number of tweets of a round whose delivery time is read, taken evenly from the last FANOUT_TRACKED: fan-out knows the
# times of no earlier ones.
DELIVERIES = 1_000
FANOUT_TRACKED = 10_000
CONCURRENCY = 16
TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of one tweet: the seconds from the response to the post until the tweet was in the home timelines of
    all followers that have a warm one, and the number of those."""

    seconds: float
    homes: int


class FanoutWatch:
    """Observes the fan-out of a mesh as the operator. `operator` is the call metadata with the operator token."""

    def __init__(self, channel: grpc_lib.aio.Channel, operator: connection.Metadata) -> None:
        self._stub = fanout_service_pb2_grpc.FanoutServiceStub(channel)
        self._operator = operator

    async def until_done(self) -> None:
        """Waits until fan-out has processed all events. Raises CommandError if that takes longer than DELIVER_WITHIN_S
        seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + DELIVER_WITHIN_S
        request = fanout_service_pb2.GetFanoutLagRequest()
        while True:
            try:
                lag = await self._stub.GetFanoutLag(request, metadata=self._operator, timeout=TIMEOUT_S)
            except grpc_lib.aio.AioRpcError as error:
                raise call_error(error, "asking for the lag of fan-out") from error
            if not lag.events:
                return
            if loop.time() > until:
                raise CommandError(
                    f"fan-out has {lag.events:,} events left after {DELIVER_WITHIN_S:g} s: read the log of the mesh",
                    FAULTS,
                )
            await asyncio.sleep(LOOK_EVERY_S)

    async def deliveries(self, samples: Sequence[http_load.Sample]) -> list[Delivery]:
        """Returns the deliveries of at most DELIVERIES of the posts in `samples`. Leaves out tweets that the asked
        process does not track, and those of celebrities, which are delivered to nobody."""
        recent = sorted(samples, key=lambda sample: sample.ended_at)[-FANOUT_TRACKED // 2 :]
        step = max(len(recent) // DELIVERIES, 1)
        found: list[Delivery] = []

        async def one(sample: http_load.Sample) -> None:
            tweet_id = int(orjson.loads(sample.body)["id"])
            request = fanout_service_pb2.GetFanoutStatusRequest(tweet_id=tweet_id)
            try:
                status = await self._stub.GetFanoutStatus(request, metadata=self._operator, timeout=TIMEOUT_S)
            except grpc_lib.aio.AioRpcError as error:
                if error.code() is grpc_lib.StatusCode.NOT_FOUND:
                    return
                raise call_error(error, "asking for the fan-out of a tweet") from error
            if status.state == fanout_service_pb2.FANOUT_STATE_DONE:
                # Fan-out may be done before the client has read the response.
                seconds = max(status.finished_at.ToMilliseconds() / 1e3 - sample.ended_at, 0.0)
                found.append(Delivery(seconds, status.delivered))

        await for_each(recent[::step], one, concurrency=CONCURRENCY)
        return found
