"""Fixtures for the contract tests of the home timeline store, on the backend of this run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.platform.config import Settings
from services.platform.redis.client import Redis
from services.timeline.store import HomeTimelineStore
from services.timeline.store.memory import EmbeddedHomeTimelines
from services.timeline.store.redis.store import RedisHomeTimelines
from tests.cluster import backend


@pytest.fixture
async def store() -> AsyncIterator[HomeTimelineStore]:
    """An empty store of the backend."""
    if backend.name == "embedded":
        memory = EmbeddedHomeTimelines(10_000)
        yield memory
        await memory.close()
        return
    redis = await Redis.open(Settings(**backend.new().settings))
    yield RedisHomeTimelines(redis)
    await redis.close()
