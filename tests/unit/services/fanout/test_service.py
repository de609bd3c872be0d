"""Tests the servicer of fan-out: status, lag, pause and replay."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from roost.fanout.v1 import fanout_service_pb2 as pb

from services.fanout.delivery_status import DeliveryTracker
from services.fanout.service import FanoutService
from services.platform.events.log import Lag
from services.platform.rpc.errors import RoostError


class Consumer:
    def __init__(self, events: int, age_s: float) -> None:
        self.behind = Lag(events, age_s)
        self.paused = False
        self.paused_at_lag = False
        self.sought: tuple[int | None, int | None] | None = None

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    async def lag(self) -> Lag:
        self.paused_at_lag = self.paused
        return self.behind

    async def seek(self, *, offset: int | None = None, time_ms: int | None = None) -> None:
        self.sought = (offset, time_ms)


class Fixture:
    def __init__(self) -> None:
        self.main, self.large = Consumer(3, 0.5), Consumer(2, 7.25)
        self.tracker = DeliveryTracker(lambda: 1_800_000_000.25)
        main: Any = self.main
        large: Any = self.large
        self.service = FanoutService(main, large, self.tracker, self.outbox_lag)

    async def outbox_lag(self) -> Lag:
        return Lag(4, 1.0)


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


async def test_get_fanout_lag_sums_outboxes_and_consumers(fixture: Fixture) -> None:
    lag = await fixture.service.GetFanoutLag(pb.GetFanoutLagRequest(), None)
    assert (lag.events, lag.age_ms, lag.paused) == (9, 7_250, False)


async def test_pause_fanout_stops_both_consumers_until_resumed(fixture: Fixture) -> None:
    await fixture.service.PauseFanout(pb.PauseFanoutRequest(), None)
    assert (await fixture.service.GetFanoutLag(pb.GetFanoutLagRequest(), None)).paused
    assert fixture.main.paused
    assert fixture.large.paused
    await fixture.service.ResumeFanout(pb.ResumeFanoutRequest(), None)
    assert not (await fixture.service.GetFanoutLag(pb.GetFanoutLagRequest(), None)).paused
    assert not fixture.main.paused
    assert not fixture.large.paused


async def test_replay_fanout_seeks_and_returns_event_count(fixture: Fixture) -> None:
    answer = await fixture.service.ReplayFanout(pb.ReplayFanoutRequest(offset=0), None)
    assert (fixture.main.sought, answer.events) == ((0, None), 3)
    time = Timestamp(seconds=1_800_000_000, nanos=250_000_000)
    await fixture.service.ReplayFanout(pb.ReplayFanoutRequest(time=time), None)
    assert fixture.main.sought == (None, 1_800_000_000_250)
    with pytest.raises(RoostError, match="INVALID_ARGUMENT"):
        await fixture.service.ReplayFanout(pb.ReplayFanoutRequest(), None)


async def test_replay_fanout_counts_before_delivery(fixture: Fixture) -> None:
    await fixture.service.ReplayFanout(pb.ReplayFanoutRequest(offset=0), None)
    assert fixture.main.paused_at_lag
    assert not fixture.main.paused
    with pytest.raises(RoostError):
        await fixture.service.ReplayFanout(pb.ReplayFanoutRequest(), None)
    assert not fixture.main.paused
    await fixture.service.PauseFanout(pb.PauseFanoutRequest(), None)
    await fixture.service.ReplayFanout(pb.ReplayFanoutRequest(offset=0), None)
    assert fixture.main.paused, "whoever paused it resumes it"


async def test_get_fanout_status_returns_delivery(fixture: Fixture) -> None:
    request = pb.GetFanoutStatusRequest(tweet_id=7)
    with pytest.raises(RoostError, match="NOT_FOUND"):
        await fixture.service.GetFanoutStatus(request, None)
    fixture.tracker.begin(7)
    fixture.tracker.record_delivered(7, 10, 4)
    status = await fixture.service.GetFanoutStatus(request, None)
    assert (status.tweet_id, status.state, status.followers, status.delivered) == (7, pb.FANOUT_STATE_RUNNING, 10, 4)
    assert status.started_at.ToMilliseconds() == 1_800_000_000_250
    assert not status.HasField("finished_at")
    fixture.tracker.end(7, pb.FANOUT_STATE_DONE)
    status = await fixture.service.GetFanoutStatus(request, None)
    assert status.state == pb.FANOUT_STATE_DONE
    assert status.finished_at.ToMilliseconds() == 1_800_000_000_250
