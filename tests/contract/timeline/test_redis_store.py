"""Contract of the Redis store if Redis is unavailable, full or restarted, and beside another process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.platform.config import Settings
from services.platform.redis.client import Redis
from services.platform.rpc.errors import RoostError
from services.timeline.store.redis import store as module
from services.timeline.store.redis.store import RedisHomeTimelines
from tests import redis_servers
from tests.waiting import wait_until_async

pytestmark = pytest.mark.cluster

ANN, BOB = 1, 2
NOW_MS = 1_800_000_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[redis_servers.Server]:
    with redis_servers.server(tmp_path) as one:
        yield one


@pytest.fixture
async def redis(server: redis_servers.Server) -> AsyncIterator[Redis]:
    opened = await Redis.open(Settings(redis_url=server.url, redis_timeout_s=5))
    yield opened
    await opened.close()


async def warm(store: RedisHomeTimelines, user_id: int, ids: list[int]) -> bool:
    build = await store.open_build(user_id, NOW_MS, "hybrid")
    return build is not None and await store.close_build(build, ids, 0) is not None


async def test_redis_unavailable_homes_are_cold_and_appends_fail(server: redis_servers.Server, redis: Redis) -> None:
    store = RedisHomeTimelines(redis)
    assert await warm(store, ANN, [5])
    build = await store.open_build(BOB, NOW_MS, "hybrid")
    assert build is not None
    server.kill()
    assert await store.read(ANN) is None
    assert await store.open_build(ANN, NOW_MS, "hybrid") is None
    assert await store.close_build(build, [1], 0) is None
    await store.abandon_build(build)
    await store.drop(ANN)
    with pytest.raises(RoostError, match="Redis does not answer") as refusal:
        await store.append([(6, [ANN])])
    assert refusal.value.code.name == "UNAVAILABLE"
    server.start()
    await wait_until_async(lambda: warm(store, ANN, [5]))
    assert await store.append([(6, [ANN, BOB])]) == [1]


async def test_redis_restarted_from_snapshot_homes_are_cold(server: redis_servers.Server, redis: Redis) -> None:
    store = RedisHomeTimelines(redis)
    assert await warm(store, ANN, [5])
    build = await store.open_build(BOB, NOW_MS, "hybrid")
    assert build is not None
    server.client.save()
    # Acknowledged, and lost by the restart.
    assert await store.append([(6, [ANN, BOB])]) == [2]
    server.kill()
    server.start()
    assert server.client.llen("{1}:h") == 2
    await wait_until_async(lambda: _answers(store))
    assert await store.read(ANN) is None
    assert await store.close_build(build, [5], 0) is None
    assert await store.read(BOB) is None


async def test_append_out_of_memory_drops_home(server: redis_servers.Server, redis: Redis) -> None:
    store = RedisHomeTimelines(redis)
    assert await warm(store, ANN, [5])
    server.client.config_set("maxmemory", 1)
    assert await store.append([(6, [ANN, BOB])]) == [0]
    server.client.config_set("maxmemory", 0)
    assert await store.read(ANN) is None
    assert not server.client.exists("{1}:h", "{1}:m")


async def test_open_build_during_other_process_build_is_refused(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OTHERS_BUILD_MS", module.BUILDING_MS)
    ours, others = RedisHomeTimelines(redis), RedisHomeTimelines(redis)
    build = await others.open_build(ANN, NOW_MS, "hybrid")
    assert build is not None
    assert await ours.open_build(ANN, NOW_MS, "hybrid") is None
    assert await others.close_build(build, [5], 0) is not None
    home = await ours.read(ANN)
    assert home is not None
    assert list(home.ids) == [5]
    # But only for a limited time.
    build = await others.open_build(ANN, NOW_MS, "hybrid")
    monkeypatch.setattr(module, "OTHERS_BUILD_MS", 0)
    assert build is not None
    assert await warm(ours, ANN, [6])
    assert await others.close_build(build, [5], 0) is None
    home = await others.read(ANN)
    assert home is not None
    assert list(home.ids) == [6]


async def test_keys_expire_with_their_state(server: redis_servers.Server, redis: Redis) -> None:
    store = RedisHomeTimelines(redis)
    build = await store.open_build(ANN, NOW_MS, "hybrid")
    assert build is not None
    for key in ("{1}:h", "{1}:m"):
        assert 0 < server.client.pttl(key) <= module.BUILDING_MS
    await store.close_build(build, [5], 0)
    for key in ("{1}:h", "{1}:m"):
        assert module.BUILDING_MS < server.client.pttl(key) <= module.WARM_MS


async def _answers(store: RedisHomeTimelines) -> bool:
    try:
        await store.append([(7, [BOB + 1])])
    except RoostError:
        return False
    return True
