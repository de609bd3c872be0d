"""The Redis client: checks at the start, Sentinels, a cluster, and connections whose server fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import MovedError

from services.platform.config import Settings
from services.platform.redis.client import Redis
from services.platform.redis.connection import Endpoint, ReplyError, command, connect
from services.platform.redis.shared_versions import SharedEntry, SharedVersions
from services.platform.rpc.errors import RoostError
from services.timeline.store import CAPACITY, TRIM_ABOVE
from services.timeline.store.redis.store import RedisHomeTimelines
from tests import redis_servers
from tests.ports import free_port
from tests.redis_servers import Server
from tests.waiting import wait_until_async

pytestmark = pytest.mark.cluster

NOW_MS = 1_800_000_000_000


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Redis]:
    redis = await Redis.open(Settings(redis_url=url, redis_timeout_s=5))
    try:
        yield redis
    finally:
        await redis.close()


async def eventually(asked: Any, expected: Any) -> None:
    async def found() -> bool:
        return bool(await asked() == expected)

    await wait_until_async(found)


async def warm(store: RedisHomeTimelines, user_id: int, ids: list[int]) -> bool:
    build = await store.open_build(user_id, NOW_MS, "hybrid")
    return build is not None and await store.close_build(build, ids, 0) is not None


async def test_open_unreachable_server_error_names_address() -> None:
    port = free_port()
    for url in (
        f"redis://127.0.0.1:{port}/0",
        f"redis+cluster://127.0.0.1:{port}",
        f"redis+sentinel://127.0.0.1:{port}/m",
    ):
        with pytest.raises(RoostError, match=f"127.0.0.1:{port}.* cannot be reached") as refusal:
            await Redis.open(Settings(redis_url=url))
        assert refusal.value.code.name == "UNAVAILABLE"


async def test_open_unsafe_eviction_policy_is_rejected(tmp_path: Path) -> None:
    with redis_servers.server(tmp_path, "--maxmemory-policy", "allkeys-random") as server:
        with pytest.raises(RoostError, match="set maxmemory-policy to allkeys-lru"):
            await Redis.open(Settings(redis_url=server.url, redis_timeout_s=5))
        server.client.config_set("maxmemory-policy", "allkeys-lru")
        async with opened(server.url):
            pass


async def test_open_password_is_required_and_sent(tmp_path: Path) -> None:
    with redis_servers.server(tmp_path) as server:
        server.client.config_set("requirepass", "open sesame")
        with pytest.raises(RoostError, match="rejects the connection"):
            await Redis.open(Settings(redis_url=server.url, redis_timeout_s=5))
        async with opened(f"redis://:open%20sesame@127.0.0.1:{server.port}/2") as redis:
            await redis.client.set("key", "value")
            (value,) = await (await redis.node("").reads()).execute(command("GET", "key"), 1)
            assert value == b"value"
        server.client.auth("open sesame")


async def test_execute_pipelined_commands_reply_in_order_with_errors_inline(tmp_path: Path) -> None:
    with redis_servers.server(tmp_path) as server:
        pipe = await connect(Endpoint(port=server.port), 5)
        asked = [pipe.execute(command("ECHO", str(i)) + command("ECHO", "again"), 2) for i in range(1_000)]
        assert [await answer for answer in asked] == [[b"%d" % i, b"again"] for i in range(1_000)]
        refused, big = await pipe.execute(command("NO", "SUCH") + command("ECHO", b"x" * 1_000_000), 2)
        assert isinstance(refused, ReplyError)
        assert len(big) == 1_000_000
        # A cancelled caller's reply must not go to another caller.
        gone, stays = pipe.execute(command("ECHO", "gone"), 1), pipe.execute(command("ECHO", "stays"), 1)
        gone.cancel()
        assert await stays == [b"stays"]
        server.kill()
        with pytest.raises(RoostError, match="does not answer"):
            await pipe.execute(command("PING"), 1)
        pipe.abort()


async def test_dedicated_aborted_transaction_leaves_no_watch(tmp_path: Path) -> None:
    with redis_servers.server(tmp_path) as server:
        async with opened(server.url) as redis:
            node = redis.node("")
            with pytest.raises(ZeroDivisionError):
                async with node.dedicated() as pipe:
                    await pipe.execute(command("WATCH", "key"), 1)
                    raise ZeroDivisionError
            server.client.set("key", "changed")
            async with node.dedicated() as pipe:
                assert (await pipe.execute(command("MULTI") + command("GET", "key") + command("EXEC"), 3))[-1] == [
                    b"changed"
                ]


@pytest.mark.slow
async def test_cluster_moved_slot_leaves_homes_cold_and_writable(tmp_path: Path) -> None:
    with redis_servers.cluster(tmp_path) as servers:
        async with opened(f"redis+cluster://127.0.0.1:{servers[0].port}") as redis:
            store, entries = RedisHomeTimelines(redis), SharedVersions(redis)
            assert len(redis.nodes()) == 3
            readers = list(range(1, 301))
            assert all([await warm(store, reader, [5]) for reader in readers[:200]])
            assert await store.append([(7, readers), (6, readers), (8, [1])]) == [200, 200, 1]
            assert list((await _home(store, 2)).ids) == [5, 6, 7]
            for tweet_id in range(10, 10 + TRIM_ABOVE, 8):
                await store.append([(i, [1, 2, 3, 4, 5]) for i in range(tweet_id, tweet_id + 8)])
            assert all([len((await _home(store, reader)).ids) < CAPACITY + 32 for reader in range(1, 6)])
            assert all([(await _home(store, reader)).floor for reader in range(1, 6)])

            await entries.fill_users({i: (1, b"%d" % i) for i in readers})
            assert await entries.users(readers) == [SharedEntry(1, b"%d" % i) for i in readers]
            assert await entries.put_user(7, 2, b"")
            assert await entries.change_relations(readers, 9)
            assert await entries.relation_version(300) == 9

            # Homes of a slot that moves are cold on the new node; others are not affected.
            slot = servers[0].client.cluster("KEYSLOT", "{2}:m")
            await asyncio.to_thread(_move_slot, servers, int(slot))
            await eventually(lambda: _is_cold(store, 2), True)
            await eventually(lambda: warm(store, 2, [5]), True)
            await eventually(lambda: _ids(store, 2), [5])
            await store.clear()
            assert all([await _is_cold(store, reader) for reader in readers[:200]])


@pytest.mark.slow
async def test_fail_over_leaves_homes_cold_and_writable(tmp_path: Path) -> None:
    with redis_servers.server(tmp_path / "a") as first, redis_servers.server(tmp_path / "b") as second:
        second.client.replicaof("127.0.0.1", str(first.port))
        redis_servers.wait_for(lambda: second.client.info("replication")["master_link_status"] == "up")
        with redis_servers.sentinels(tmp_path, first, "homes") as watchers:
            url = "redis+sentinel://" + ",".join(f"127.0.0.1:{each.port}" for each in watchers) + "/homes/0"
            async with opened(url) as redis:
                store, entries = RedisHomeTimelines(redis), SharedVersions(redis)
                assert await warm(store, 1, [5])
                assert await entries.put_user(1, 1, b"text")
                assert await store.append([(6, [1])]) == [1]
                # Not WAIT, which covers only the writes of its own connection.
                redis_servers.wait_for(
                    lambda: _offset(second, "slave_repl_offset") >= _offset(first, "master_repl_offset")
                )
                # The demoted master still answers for a while, but does not receive writes to the new one.
                watchers[0].client.execute_command("SENTINEL", "FAILOVER", "homes")
                await eventually(lambda: _port(redis), second.port)
                # The replica has list and marker, but may lack the last writes.
                assert second.client.exists("{1}:m", "{1}:h") == 2
                assert await store.read(1) is None
                assert await entries.users([1]) == [None]
                await eventually(lambda: warm(store, 1, [5, 6]), True)
                assert await _ids(store, 1) == [5, 6]


def _offset(server: Server, field: str) -> int:
    return int(server.client.info("replication")[field])


def _move_slot(servers: list[Server], slot: int) -> None:
    ids = [each.client.cluster("MYID") for each in servers]
    source = next(each for each in servers if _owns(each, "{2}:m"))
    target = next(each for each in servers if each is not source)
    source_id, target_id = ids[servers.index(source)], ids[servers.index(target)]
    target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    for key in source.client.cluster("GETKEYSINSLOT", slot, 100):
        source.client.migrate("127.0.0.1", target.port, [key], 0, 5_000)
    for each in servers:
        each.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)


def _owns(server: Server, key: str) -> bool:
    try:
        server.client.get(key)
    except MovedError:
        return False
    return True


async def _home(store: RedisHomeTimelines, user_id: int) -> Any:
    home = await store.read(user_id)
    assert home is not None
    return home


async def _is_cold(store: RedisHomeTimelines, user_id: int) -> bool:
    return await store.read(user_id) is None


async def _ids(store: RedisHomeTimelines, user_id: int) -> list[int]:
    home = await store.read(user_id)
    return list(home.ids) if home is not None else []


async def _port(redis: Redis) -> int:
    try:
        (answer,) = await (await redis.node("").reads()).execute(command("CONFIG", "GET", "port"), 1)
    except RoostError:
        return 0
    return int(answer[1])
