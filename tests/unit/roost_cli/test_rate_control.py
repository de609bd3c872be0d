"""Tests bounded concurrency and bounded retries."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from roost_cli import rate_control
from roost_cli.exit_codes import CommandError


def rpc_error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED]
)
async def test_patiently_short_outage_returns_result(code: grpc.StatusCode) -> None:
    left = 3

    async def call() -> str:
        nonlocal left
        left -= 1
        if left:
            raise rpc_error(code)
        return "answer"

    assert await rate_control.with_retries(call) == "answer"


async def test_patiently_long_outage_raises_command_error() -> None:
    async def call() -> None:
        raise rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED)

    with pytest.raises(CommandError, match="ROOST_RATE_LIMITS=off"):
        await rate_control.with_retries(call, retry_for_s=0.05)


async def test_patiently_permanent_status_raises_at_once() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise rpc_error(grpc.StatusCode.NOT_FOUND)

    with pytest.raises(grpc.aio.AioRpcError):
        await rate_control.with_retries(call)
    assert calls == 1


async def test_for_each_never_exceeds_concurrency() -> None:
    running = most = 0
    done: list[int] = []

    async def work(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(item)

    await rate_control.for_each(range(50), work, concurrency=7)
    assert most == 7
    assert sorted(done) == list(range(50))


async def test_for_each_first_error_cancels_others() -> None:
    begun: list[int] = []

    async def work(item: int) -> None:
        begun.append(item)
        await asyncio.sleep(0)
        if item == 3:
            raise CommandError("three")

    with pytest.raises(CommandError, match="three"):
        await rate_control.for_each(range(1_000), work, concurrency=2)
    assert len(begun) < 10
