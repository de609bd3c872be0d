"""The servicer of roost.fanout.v1.FanoutService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from roost.fanout.v1 import fanout_service_pb2 as pb
from roost.fanout.v1.fanout_service_pb2_grpc import FanoutServiceServicer

from services.fanout.delivery_status import DeliveryTracker
from services.platform.events.log import Consumer, Lag
from services.platform.rpc import errors

# The generated type of the context differs per method. No method here uses the context.
_Context = Any


class FanoutService(FanoutServiceServicer):
    """Reports and controls fan-out. `main` and `large` are the consumers of TOPICS and LARGE_TOPIC. `outbox_lag`
    returns the number and the age of the events of TOPICS that this process has not yet moved from an outbox to the
    log."""

    def __init__(
        self, main: Consumer, large: Consumer, tracker: DeliveryTracker, outbox_lag: Callable[[], Awaitable[Lag]]
    ) -> None:
        self._main = main
        self._large = large
        self._tracker = tracker
        self._outbox_lag = outbox_lag
        self._paused = False

    async def GetFanoutStatus(
        self, request: pb.GetFanoutStatusRequest, context: _Context
    ) -> pb.GetFanoutStatusResponse:
        status = self._tracker.get(request.tweet_id)
        if status is None:
            raise errors.not_found(
                "this process does not track the delivery of this tweet: it tracks only the tweets that it delivered "
                "most recently"
            )
        answer = pb.GetFanoutStatusResponse(
            tweet_id=request.tweet_id,
            state=status.state,
            followers=status.followers,
            delivered=status.delivered,
            started_at=_timestamp(status.started_ms),
        )
        if status.finished_ms:
            answer.finished_at.CopyFrom(_timestamp(status.finished_ms))
        return answer

    async def GetFanoutLag(self, request: pb.GetFanoutLagRequest, context: _Context) -> pb.GetFanoutLagResponse:
        # An event passes from the outbox to TOPICS and from there to LARGE_TOPIC. The lags are read in this order, so
        # an event that passes on between two reads is counted twice, not missed.
        lags: Sequence[Lag] = [await self._outbox_lag(), await self._main.lag(), await self._large.lag()]
        return pb.GetFanoutLagResponse(
            events=sum(lag.events for lag in lags),
            age_ms=int(max(lag.age_s for lag in lags) * 1000),
            paused=self._paused,
        )

    async def PauseFanout(self, request: pb.PauseFanoutRequest, context: _Context) -> pb.PauseFanoutResponse:
        self._paused = True
        self._main.pause()
        self._large.pause()
        return pb.PauseFanoutResponse()

    async def ResumeFanout(self, request: pb.ResumeFanoutRequest, context: _Context) -> pb.ResumeFanoutResponse:
        self._paused = False
        self._main.resume()
        self._large.resume()
        return pb.ResumeFanoutResponse()

    async def ReplayFanout(self, request: pb.ReplayFanoutRequest, context: _Context) -> pb.ReplayFanoutResponse:
        # The consumer is paused until the lag is read. Otherwise it could deliver replayed events first, and the
        # response would report too few.
        self._main.pause()
        try:
            match request.WhichOneof("from"):
                case "offset":
                    await self._main.seek(offset=request.offset)
                case "time":
                    await self._main.seek(time_ms=request.time.ToMilliseconds())
                case _:
                    raise errors.invalid_argument(
                        "set `offset` or `time` to say where the replay starts", field="offset"
                    )
            return pb.ReplayFanoutResponse(events=(await self._main.lag()).events)
        finally:
            if not self._paused:
                self._main.resume()


def _timestamp(ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp
