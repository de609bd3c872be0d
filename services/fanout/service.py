"""The servicer of roost.fanout.v1.FanoutService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from roost.fanout.v1 import fanout_service_pb2 as pb
from roost.fanout.v1.fanout_service_pb2_grpc import FanoutServiceServicer

from services.fanout.delivery_status import Receipts
from services.platform.events.log import Consumer, Lag
from services.platform.rpc import errors

# The generated type differs from method to method, and nothing here asks the context for anything.
_Context = Any


class FanoutService(FanoutServiceServicer):
    """Looks into fan-out and steers it. `outbox_lag` tells what waits in outboxes of this process."""

    def __init__(
        self, main: Consumer, large: Consumer, receipts: Receipts, outbox_lag: Callable[[], Awaitable[Lag]]
    ) -> None:
        self._main = main
        self._large = large
        self._receipts = receipts
        self._unrelayed = outbox_lag
        self._paused = False

    async def GetFanoutStatus(
        self, request: pb.GetFanoutStatusRequest, context: _Context
    ) -> pb.GetFanoutStatusResponse:
        receipt = self._receipts.get(request.tweet_id)
        if receipt is None:
            raise errors.not_found("no receipt is kept of this tweet")
        answer = pb.GetFanoutStatusResponse(
            tweet_id=request.tweet_id,
            state=receipt.state,
            followers=receipt.followers,
            delivered=receipt.delivered,
            started_at=_timestamp(receipt.started_ms),
        )
        if receipt.finished_ms:
            answer.finished_at.CopyFrom(_timestamp(receipt.finished_ms))
        return answer

    async def GetFanoutLag(self, request: pb.GetFanoutLagRequest, context: _Context) -> pb.GetFanoutLagResponse:
        # In the order in which an event travels: one that moves on meanwhile is counted twice rather than not at all.
        lags: Sequence[Lag] = [await self._unrelayed(), await self._main.lag(), await self._large.lag()]
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
        # Else some of it would be delivered again before it is counted.
        self._main.pause()
        try:
            match request.WhichOneof("from"):
                case "offset":
                    await self._main.seek(offset=request.offset)
                case "time":
                    await self._main.seek(time_ms=request.time.ToMilliseconds())
                case _:
                    raise errors.invalid_argument("give an offset or a time to deliver again from", field="offset")
            return pb.ReplayFanoutResponse(events=(await self._main.lag()).events)
        finally:
            if not self._paused:
                self._main.resume()


def _timestamp(ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp
