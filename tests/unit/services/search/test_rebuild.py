"""Rebuilds of the index: interrupted scans, concurrent changes, one build at a time."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from roost.event.v1.event_pb2 import TweetCreated, TweetDeleted

from services.platform.rpc import errors
from services.platform.rpc.reasons import Reason
from services.platform.transport.inprocess import InProcessChannel
from services.search import rebuild
from services.search.consumer import Indexer
from services.search.rebuild import RETRY_MAX_S, Rebuilder
from services.search.store import BuildStatus, Collection, Document, IndexChange, SearchIndex
from tests.unit.services.search.conftest import MemoryIndex, Owners, channel_to, event
from tests.waiting import wait_until


class FakeSleep:
    """Returns at once and records the requested seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def fake_sleep() -> FakeSleep:
    return FakeSleep()


@pytest.fixture
def rebuilder(channel: InProcessChannel, memory: MemoryIndex, fake_sleep: FakeSleep) -> Rebuilder:
    return Rebuilder(channel, cast(SearchIndex, memory), fake_sleep)


async def test_rebuild_indexes_live_documents_only(rebuilder: Rebuilder, owners: Owners, memory: MemoryIndex) -> None:
    for n in range(1, 8):
        owners.post(n, f"text {n}")
    owners.delete(3)
    owners.post(9, "", retweet_of_id=1)
    owners.sign_up(5, "ann", version=4)
    stale = Document(99, 0, 1, (), ("stale",))
    memory.documents[Collection.TWEETS, 99] = stale
    assert rebuilder.begin()
    await rebuilder.done()
    assert memory.words() == {n: ("text", str(n)) for n in (1, 2, 4, 5, 6, 7)}
    assert memory.documents[Collection.USERS, 5].version == 4


async def test_rebuild_interrupted_scan_resumes_after_last_id(
    rebuilder: Rebuilder, owners: Owners, memory: MemoryIndex, fake_sleep: FakeSleep
) -> None:
    for n in range(1, 8):
        owners.post(n, f"text {n}")
    owners.failures = 2
    rebuilder.begin()
    await rebuilder.done()
    assert owners.scanned == [0, 2, 4]
    assert memory.words().keys() == set(range(1, 8))
    assert len(fake_sleep.seconds) == 2


async def test_rebuild_concurrent_changes_win_over_scan(
    channel: InProcessChannel, owners: Owners, memory: MemoryIndex
) -> None:
    index = cast(SearchIndex, memory)
    indexer = Indexer(channel, index, lambda: 0.0)
    for n in range(1, 20):
        owners.post(n, f"text {n}")
    scan = owners.ScanTweets
    gone: set[int] = set()

    async def changing(request: Any, context: Any) -> Any:
        async for message in scan(request, context):
            last = message.cores[-1].head.id
            # One tweet is read by the scan, then deleted and indexed, then filled; another is outside the scan.
            owners.delete(last)
            owners.post(100 + last, "late")
            deleted = event(1, tweet_deleted=TweetDeleted(tweet_id=last))
            await indexer.apply([deleted, event(2, tweet_created=TweetCreated(tweet_id=100 + last))])
            gone.add(last)
            yield message

    owners.ScanTweets = changing  # type: ignore[method-assign]
    rebuilder = Rebuilder(channel_to(owners), index)
    rebuilder.begin()
    await rebuilder.done()
    assert gone
    assert memory.words().keys() == (set(range(1, 20)) - gone) | {100 + n for n in gone}


async def test_rebuild_second_begin_returns_false(rebuilder: Rebuilder, owners: Owners, memory: MemoryIndex) -> None:
    owners.post(1, "text")
    assert rebuilder.begin()
    assert not rebuilder.begin()
    await rebuilder.done()
    assert rebuilder.begin()
    await rebuilder.done()
    assert memory.finished == 2


async def test_rebuild_failures_retry_with_backoff(
    rebuilder: Rebuilder, memory: MemoryIndex, fake_sleep: FakeSleep
) -> None:
    finish, failures = memory.finish, 12

    async def failing() -> None:
        nonlocal failures
        failures -= 1
        if failures:
            raise OSError("no space left")
        await finish()

    memory.finish = failing  # type: ignore[method-assign]
    rebuilder.begin()
    await rebuilder.done()
    assert memory.finished == 1
    assert fake_sleep.seconds == sorted(fake_sleep.seconds)
    assert fake_sleep.seconds[-1] == RETRY_MAX_S


async def test_rebuilder_start_builds_only_unfilled_index(rebuilder: Rebuilder, memory: MemoryIndex) -> None:
    memory.position = 7
    await rebuilder.start()
    await rebuilder.done()
    assert memory.finished == 0
    memory.position = None
    await rebuilder.start()
    await rebuilder.done()
    assert memory.finished == 1
    await rebuilder.stop()


async def test_rebuilder_stop_keeps_index_in_use(rebuilder: Rebuilder, owners: Owners, memory: MemoryIndex) -> None:
    owners.post(1, "text")
    await memory.apply([IndexChange(Collection.TWEETS, 2, Document(2, 0, 1, (), ("used",)))])
    rebuilder.begin()
    await asyncio.sleep(0)
    await rebuilder.stop()
    assert memory.words() == {2: ("used",)}


async def test_rebuild_other_process_building_stops_attempt(
    rebuilder: Rebuilder, memory: MemoryIndex, fake_sleep: FakeSleep
) -> None:
    async def built_elsewhere() -> None:
        raise errors.already_exists("another process builds it", Reason.INDEX_BEING_BUILT)

    memory.begin = built_elsewhere  # type: ignore[method-assign]
    assert rebuilder.begin()
    await rebuilder.done()
    assert fake_sleep.seconds == []
    assert memory.finished == 0


async def test_rebuilder_dropped_or_unreachable_index_is_polled_again(
    rebuilder: Rebuilder, memory: MemoryIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "POLL_EVERY_S", 0.01)
    build_status, looks = memory.build_status, 0

    async def out_of_reach_first() -> BuildStatus:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise errors.unavailable("no server yet")
        return await build_status()

    memory.build_status = out_of_reach_first  # type: ignore[method-assign]
    await rebuilder.start()
    assert memory.finished == 0
    for built in (1, 2):
        await wait_until(lambda built=built: memory.finished >= built)  # type: ignore[misc]
        memory.position = None
    await rebuilder.stop()
