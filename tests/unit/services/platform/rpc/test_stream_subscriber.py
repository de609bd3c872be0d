from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import Int32Value

from services.platform.rpc.stream_subscriber import StreamSubscriber

WAIT_S = 10.0
Step = Callable[[], Any]


def send(number: int) -> Step:
    return lambda: Int32Value(value=number)


def fail() -> Any:
    raise ValueError("a broken stream")


def cut_off() -> Any:
    raise asyncio.CancelledError


class Script:
    """A call that reads what its steps return, and then waits without end."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps
        self.cancelled = False

    async def read(self) -> Any:
        if not self.steps:
            await asyncio.Event().wait()
        return self.steps.pop(0)()

    def cancel(self) -> None:
        self.cancelled = True


class Numbers(StreamSubscriber[Int32Value]):
    """Subscribes to one scripted stream after another."""

    def __init__(self, *streams: list[Step], silence_s: float = WAIT_S) -> None:
        super().__init__("numbers", silence_s=silence_s, retry_first_s=0.0, retry_max_s=0.0)
        self.streams = [Script(steps) for steps in streams]
        self.opened: list[Script] = []
        self.got: list[int] = []
        self.lost = 0
        self.last = asyncio.Event()

    def _open(self) -> Any:
        self.opened.append(self.streams[len(self.opened)])
        return self.opened[-1]

    def _receive(self, message: Int32Value) -> None:
        self.got.append(message.value)
        if message.value == 0:
            self.last.set()

    def _lost(self) -> None:
        self.lost += 1


async def test_stream_subscriber_opens_again_after_every_way_to_lose_a_stream() -> None:
    ends: list[list[Step]] = [[send(1), lambda: grpc.aio.EOF], [send(2), fail], [cut_off], [send(3), send(0)]]
    subscriber = Numbers(*ends)
    await subscriber.start()
    await asyncio.wait_for(subscriber.last.wait(), WAIT_S)
    assert subscriber.got == [1, 2, 3, 0]
    assert subscriber.lost == 3
    await subscriber.stop()
    assert [call.cancelled for call in subscriber.opened] == [True] * 4
    assert subscriber.lost == 3


async def test_stream_subscriber_gives_up_a_silent_stream() -> None:
    subscriber = Numbers([send(1)], [send(0)], silence_s=0.05)
    await subscriber.start()
    await asyncio.wait_for(subscriber.last.wait(), WAIT_S)
    assert subscriber.got == [1, 0]
    await subscriber.stop()
