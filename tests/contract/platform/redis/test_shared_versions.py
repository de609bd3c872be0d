"""Entries and versions shared through Redis: conflicts, staleness, and operation without Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from services.platform.config import Settings
from services.platform.redis.client import Redis
from services.platform.redis.shared_versions import FILL_TTL_MS, PUT_TTL_MS, TOMBSTONE, SharedEntry, SharedVersions
from services.platform.rpc import errors
from services.platform.versions import Kind, key_of
from tests import redis_servers
from tests.cluster import Namespace
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

# For a loaded machine; tests of the timeout itself set a shorter one.
PATIENT_S = 5.0

Open = Callable[..., Awaitable[SharedVersions]]


@pytest.fixture
async def share() -> AsyncIterator[Open]:
    """Opens SharedVersions on a Redis URL, as another process would."""
    opened: list[SharedVersions] = []

    async def of(redis: str, timeout_s: float = PATIENT_S) -> SharedVersions:
        opened.append(SharedVersions(await Redis.open(Settings(redis_url=redis, redis_timeout_s=timeout_s))))
        return opened[-1]

    yield of
    for entries in opened:
        await entries.close()
        await entries._redis.close()


@pytest.fixture
async def entries(namespace: Namespace, share: Open) -> SharedVersions:
    return await share(namespace.settings["redis_url"])


async def test_users_put_entries_are_returned_in_request_order(entries: SharedVersions) -> None:
    assert await entries.users([1, 2]) == [None, None]
    assert await entries.put_user(1, 5, b"one")
    assert await entries.put_user(3, 1, b"")
    expected = [SharedEntry(1, b""), None, SharedEntry(5, b"one"), SharedEntry(5, b"one")]
    assert await entries.users([3, 2, 1, 1]) == expected
    assert await entries.users([]) == []


async def test_users_beyond_one_command_are_read_in_several(entries: SharedVersions) -> None:
    await entries.fill_users({i: (i, str(i).encode()) for i in range(1, 1_300)})
    assert await entries.users(range(1, 1_300)) == [SharedEntry(i, str(i).encode()) for i in range(1, 1_300)]


async def test_put_user_only_higher_version_replaces_entry(entries: SharedVersions) -> None:
    for version, stands in ((5, 5), (4, 5), (6, 6), (6, 6), (TOMBSTONE, TOMBSTONE), (7, TOMBSTONE)):
        assert await entries.put_user(1, version, b"by %d" % version)
        assert await entries.users([1]) == [SharedEntry(stands, b"by %d" % stands)]


async def test_fill_users_existing_entry_is_kept(entries: SharedVersions) -> None:
    await entries.put_user(1, TOMBSTONE, b"")
    await entries.put_user(3, 3, b"now")
    await entries.fill_users({1: (9, b"before"), 2: (1, b"two"), 3: (9, b"before")})
    expected = [SharedEntry(TOMBSTONE, b""), SharedEntry(1, b"two"), SharedEntry(3, b"now")]
    assert await entries.users([1, 2, 3]) == expected


async def test_fill_users_entry_is_replaced_by_put_and_expires_sooner(namespace: Namespace, share: Open) -> None:
    entries = await share(namespace.settings["redis_url"])
    await entries.fill_users({1: (1, b"old")})
    (key,) = await entries._redis.client.keys("u:*")
    assert 0 < await entries._redis.client.pttl(key) <= FILL_TTL_MS
    await entries.put_user(1, 2, b"new")
    assert await entries.users([1]) == [SharedEntry(2, b"new")]
    assert FILL_TTL_MS < await entries._redis.client.pttl(key) <= PUT_TTL_MS


async def test_put_user_concurrent_writers_highest_version_wins(namespace: Namespace, share: Open) -> None:
    some, others = await share(namespace.settings["redis_url"]), await share(namespace.settings["redis_url"])
    chance = random.Random(1)
    for user_id in range(1, 11):
        versions = list(range(1, 9))
        chance.shuffle(versions)
        changes = [chance.choice((some, others)).put_user(user_id, v, b"%d" % v) for v in versions]
        fills = [others.fill_users({user_id: (v, b"%d" % v)}) for v in (1, 2)]
        await asyncio.gather(*changes, *fills)
        assert await some.users([user_id]) == [SharedEntry(8, b"8")]


async def test_versions_are_stable_until_changed(namespace: Namespace, share: Open) -> None:
    some, others = await share(namespace.settings["redis_url"]), await share(namespace.settings["redis_url"])
    first = await asyncio.gather(*(each.relation_version(7) for each in (some, others) * 10))
    # The first reader created the version for all.
    assert len({*first}) == 1
    assert first[0]
    assert await others.change_relations([7, 8], 12_345)
    assert await some.relation_version(7) == await others.relation_version(8) == 12_345
    thread = await some.thread_version(7)
    assert thread not in (None, 12_345)
    assert await some.change([key_of(Kind.THREAD, 7)], 6)
    assert await others.thread_version(7) == 6


async def test_change_failed_publish_is_retried_until_accepted(
    namespace: Namespace, share: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = await share(namespace.settings["redis_url"]), await share(namespace.settings["redis_url"])
    before = await there.tweet_versions([1, 2, 3])
    with monkeypatch.context() as patch:
        attempts: list[str] = []

        def unreachable(tag: str) -> None:
            attempts.append(tag)
            unreachable_node(tag)

        patch.setattr(here._redis, "node", unreachable)
        assert not await here.change([key_of(Kind.TWEET, 1), key_of(Kind.TWEET, 2)], 7)
        # Another process changes the version meanwhile: the retried one must differ from both.
        assert await there.change([key_of(Kind.TWEET, 1)], 8)
        await wait_until(lambda: len(attempts) >= 3)
        assert await there.tweet_versions([1, 2, 3]) == [8, *before[1:]]
    async with asyncio.timeout(30):
        while (marks := await there.tweet_versions([1, 2, 3]))[0] == 8 or marks[1] == before[1]:
            await asyncio.sleep(0.02)
    assert 7 not in marks
    assert marks[2] == before[2]


def unreachable_node(tag: str) -> None:
    raise errors.unavailable(f"no way to the server of {tag!r}", reason="CACHE_UNAVAILABLE")


async def test_users_after_restart_from_old_snapshot_are_unknown(tmp_path: Path, share: Open) -> None:
    with redis_servers.server(tmp_path) as server:
        entries = await share(server.url)
        await entries.put_user(1, 1, b"text")
        before = await entries.relation_version(7)
        server.client.save()
        await entries.put_user(1, TOMBSTONE, b"")
        await entries.change_relations([7], 2)
        server.kill()
        server.start()
        assert server.client.keys("u:*")
        await _reachable(entries)
        assert await entries.users([1]) == [None]
        assert await entries.relation_version(7) != before
        # Entries can be filled again at once.
        await entries.fill_users({1: (3, b"now")})
        assert await entries.users([1]) == [SharedEntry(3, b"now")]


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_shared_versions_without_redis_return_none_or_false(how: str, tmp_path: Path, share: Open) -> None:
    with redis_servers.server(tmp_path) as server:
        entries = await share(server.url, 2.0)
        await entries.put_user(1, 1, b"text")
        getattr(server, how)()
        # 250 calls: 500 s of timeouts, if the circuit breaker did not reject all but a few without waiting.
        async with asyncio.timeout(120):
            for _ in range(50):
                assert await entries.users([1]) == [None]
                assert await entries.relation_version(7) is None
                assert not await entries.put_user(1, 2, b"")
                assert not await entries.change_relations([7], 2)
                await entries.fill_users({1: (1, b"")})
        if how == "pause":
            server.resume()
        else:
            server.start()
        await _reachable(entries)
        assert await entries.put_user(1, 3, b"text")
        assert await entries.users([1]) == [SharedEntry(3, b"text")]


async def test_put_user_out_of_memory_deletes_stale_entry(tmp_path: Path, share: Open) -> None:
    with redis_servers.server(tmp_path, "--maxmemory-policy", "noeviction") as server:
        entries = await share(server.url)
        await entries.put_user(1, 1, b"text")
        mark = await entries.relation_version(7)
        server.client.config_set("maxmemory", 1)
        assert await entries.put_user(1, TOMBSTONE, b"")
        assert await entries.users([1]) == [None]
        assert await entries.change_relations([7], 1)
        assert await entries.relation_version(7) is None
        server.client.config_set("maxmemory", 0)
        assert await entries.relation_version(7) not in (None, mark)


async def _reachable(entries: SharedVersions) -> None:
    async with asyncio.timeout(20):
        while await entries.thread_version(0) is None:
            await asyncio.sleep(0.05)
