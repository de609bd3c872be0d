"""Tests the posts that run beside a measurement."""

from __future__ import annotations

import asyncio

import pytest

from roost_cli.bench import http_load
from roost_cli.bench.background_posts import BackgroundPoster, posting
from roost_cli.exit_codes import CommandError


def connections(count: int) -> list[http_load.Connection]:
    return [http_load.Connection("127.0.0.1:1") for _ in range(count)]


async def test_post_waits_for_idle_connection_and_counts_wait() -> None:
    async def write(connection: http_load.Connection) -> None:
        await asyncio.sleep(0.05)

    poster = BackgroundPoster(connections(1), write)
    for _ in range(2):
        poster.post()
    first, second = await poster.finish()
    assert first >= 0.05
    assert second >= 0.1
    assert await poster.finish() == []


async def test_finish_after_failure_raises_command_error() -> None:
    async def write(connection: http_load.Connection) -> None:
        raise ConnectionError("gone")

    poster = BackgroundPoster(connections(1), write)
    poster.post()
    with pytest.raises(CommandError, match="a post got no response: gone"):
        await poster.finish()


async def test_posting_without_rate_posts_nothing() -> None:
    async def write(connection: http_load.Connection) -> None:
        raise AssertionError("no post was wanted")

    async with posting(BackgroundPoster(connections(1), write), 0), posting(None, 5):
        await asyncio.sleep(0.01)


async def test_posting_posts_at_constant_rate() -> None:
    seen = asyncio.Event()
    posts: list[float] = []

    async def write(connection: http_load.Connection) -> None:
        posts.append(asyncio.get_running_loop().time())
        if len(posts) == 3:
            seen.set()

    begun = asyncio.get_running_loop().time()
    async with posting(BackgroundPoster(connections(1), write), 50):
        await seen.wait()
    assert posts[2] - begun >= 3 / 50
