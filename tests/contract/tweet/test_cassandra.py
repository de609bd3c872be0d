"""Guarantees of the Cassandra tweet store beyond the port: between processes, after crashes, and for writes in any
order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from roost.tweet.v1 import tweet_pb2, tweet_service_pb2

from services.tweet.store import Claim
from tests.contract.tweet.conftest import Opened, event, make_core
from tests.waiting import run_ready_tasks

pytestmark = pytest.mark.cluster

ANN, BOB, CAT = 1, 2, 3
REPLY: dict[str, Any] = {"reply_to_id": 1, "reply_to_author_id": ANN}
QUOTE: dict[str, Any] = {"quote_of_id": 1, "quote_of_author_id": ANN}
RETWEET: dict[str, Any] = {"retweet_of_id": 1, "retweet_of_author_id": ANN}
CLAIM = Claim("k", b"body", 0)
# The tables that only batches write.
BATCHED = (
    *("tweets_by_id", "tweets_by_author", "author_months", "tweets_by_hour", "tweet_hours"),
    *("links_by_tweet", "retweets_by_user"),
)


@pytest.fixture
async def other(opened: Opened) -> AsyncIterator[Opened]:
    """Another process on the same tweets."""
    other = Opened(opened.backend, opened.folder / "other")
    other.folder.mkdir()
    other.stores = await opened.backend.open(other.folder, opened.folder)
    yield other
    await other.stores.close()


async def read_everything(opened: Opened) -> tuple[Any, ...]:
    """Returns the results of all reads of the tweets that these tests create."""
    stores = opened.stores
    return (
        [core for viewer in (0, BOB) for core in (await stores.tweets.batch_get(range(1, 20), viewer)).cores],
        [await opened.ids_of(author) for author in (ANN, BOB, CAT)],
        await stores.lists.batch_count([ANN, BOB, CAT]),
        await stores.links.find_retweets(BOB, [1, 2]),
        await stores.links.list_replies(1, 0, 10),
        await stores.links.list_quotes(1, 0, 10),
        await stores.links.list_retweeters(1, 0, 10),
        await stores.lists.list_recent(0, 20),
        await stores.tweets.list_revisions(1),
        await stores.tweets.scan(0, 20),
    )


async def test_read_caused_by_event_sees_change(opened: Opened, other: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    writer: Any = opened.stores
    await opened.post(1, ANN)
    await other.stores.tweets.batch_get([1], 0)
    read: list[asyncio.Task[Any]] = []
    outbox, change = writer.tweets._writer._outbox, writer.tweets._writer._shared.change
    publish = outbox.publish

    def published(records: Any) -> None:
        read.append(asyncio.create_task(other.stores.tweets.batch_get([1], 0)))
        publish(records)

    async def change_late(*values: Any) -> bool:
        # A read that an earlier publish started would end before this change.
        await run_ready_tasks()
        await asyncio.gather(*read)
        return bool(await change(*values))

    monkeypatch.setattr(outbox, "publish", published)
    monkeypatch.setattr(writer.tweets._writer._shared, "change", change_late)
    await opened.delete(1)
    assert [core.head.deleted for core in (await read[0]).cores] == [True]


async def history(opened: Opened) -> AsyncIterator[None]:
    """Runs a history of every kind of write, one step at a time."""
    stores = opened.stores
    await opened.post(1, ANN)
    yield
    await opened.post(2, ANN, conversation_id=1, **REPLY)
    yield
    await opened.post(3, BOB, **RETWEET)
    yield
    await opened.post(4, CAT, **QUOTE)
    yield
    await opened.edit(1, ANN, 2, "second")
    yield
    await stores.tweets.remove(1, 7, 0, event("tweet.deleted", 1))
    yield
    await stores.tweets.restore(1, 7, event("tweet.restored", 1))
    yield
    await opened.edit(1, ANN, 3, "third")
    yield
    await opened.delete(3, 10)
    yield
    await opened.post(5, BOB, **RETWEET)
    yield
    await stores.tweets.remove(4, 8, 0, event("tweet.deleted", 4))
    yield
    await opened.delete(2, 20)
    yield
    await opened.delete(1, 30)
    yield
    assert await stores.purge.purge(25, 10) == 2
    yield


async def test_read_in_another_process_sees_write(opened: Opened, other: Opened) -> None:
    before = await read_everything(other)
    async for _ in history(opened):
        seen = await read_everything(other)
        assert seen == await read_everything(opened)
        assert seen != before
        before = seen
    assert before == await read_everything_reopened(opened)


async def read_everything_reopened(opened: Opened) -> tuple[Any, ...]:
    """Returns the results of a process with empty caches."""
    await opened.reopen()
    return await read_everything(opened)


@pytest.mark.parametrize("seed", range(4))
async def test_batches_replayed_in_any_order_reach_same_state(opened: Opened, seed: int) -> None:
    keyspace = opened.stores.keyspace  # type: ignore[attr-defined]
    written: list[list[Any]] = []
    batch = keyspace.batch

    async def record_batch(steps: Any) -> None:
        written.append(list(steps))
        await batch(written[-1])

    keyspace.batch = record_batch
    async for _ in history(opened):
        pass
    keyspace.batch = batch
    before = await read_everything_reopened(opened)
    keyspace = opened.stores.keyspace  # type: ignore[attr-defined]
    for table in BATCHED:
        await keyspace.write(f"TRUNCATE {table}")
    assert await read_everything_reopened(opened) != before
    keyspace = opened.stores.keyspace  # type: ignore[attr-defined]
    for steps in random.Random(seed).choices(written, k=len(written)) + random.Random(seed).sample(
        written, len(written)
    ):
        await keyspace.batch(steps)
    # As the service's consumer does with events that the log delivers again.
    await opened.stores.finish_side_effects(range(1, 10))  # type: ignore[attr-defined]
    assert await read_everything_reopened(opened) == before


async def test_claimed_key_without_tweet_is_completed_by_another_process(opened: Opened, other: Opened) -> None:
    """The process died between its claim and its batch."""
    await opened.post(1, ANN)
    left = await left_by_a_crash(opened, make_core(2, BOB, "first", **REPLY), CLAIM)
    assert left == []
    assert await other.stores.tweets.find_claimed(BOB, CLAIM) == 2
    assert await other.post(3, BOB, CLAIM, **REPLY) == 2
    assert (await read_everything(other))[4] == [2]
    assert await other.topics() == [("tweet.created", 1), ("tweet.created", 2)]


async def test_claimed_retweet_without_tweet_is_completed_by_another_process(opened: Opened, other: Opened) -> None:
    await opened.post(1, ANN)
    left = await left_by_a_crash(opened, make_core(2, BOB, **RETWEET), None)
    assert left == []
    assert await other.post(3, BOB, **RETWEET) == 2
    assert await other.stores.links.find_retweets(BOB, [1]) == {1: 2}
    assert await other.stores.lists.batch_count([BOB]) == {BOB: 1}


async def left_by_a_crash(opened: Opened, core: tweet_pb2.TweetCore, claim: Claim | None) -> list[int]:
    """Runs `create` up to the batch, which is never sent. Returns the author's ids afterwards."""
    keyspace = opened.stores.keyspace  # type: ignore[attr-defined]
    batch = keyspace.batch

    async def die(_: Any) -> None:
        raise ConnectionResetError

    keyspace.batch = die
    with pytest.raises(ConnectionResetError):
        await opened.stores.tweets.create(core, core.head.id, event("tweet.created", core.head.id), claim)
    keyspace.batch = batch
    return await opened.ids_of(core.head.author_id)


async def test_edit_not_applied_is_completed_by_another_process(opened: Opened, other: Opened) -> None:
    await opened.post(1, ANN)
    keyspace = opened.stores.keyspace  # type: ignore[attr-defined]
    batch = keyspace.batch

    async def die(_: Any) -> None:
        raise ConnectionResetError

    keyspace.batch = die
    with pytest.raises(ConnectionResetError):
        await opened.edit(1, ANN, 2, "second")
    keyspace.batch = batch
    assert text_of((await other.stores.tweets.batch_get([1])).cores[0]) == "hello"
    assert [revision.text for revision in await other.stores.tweets.list_revisions(1)] == ["hello", "second"]
    for process in (other, opened):
        assert text_of((await process.stores.tweets.batch_get([1])).cores[0]) == "second"
    assert [topic for topic, _ in await other.topics()] == ["tweet.created", "tweet.edited"]
    assert await other.edit(1, ANN, 3, "third")


def text_of(core: tweet_pb2.TweetCore) -> str:
    return tweet_pb2.Tweet.FromString(core.core).text


@pytest.mark.parametrize("hide", ["delete", "remove"])
async def test_retweet_concurrent_with_hide_of_original_is_not_counted(
    opened: Opened, other: Opened, hide: str
) -> None:
    """The original is hidden after the check and before the retweet is written."""
    await opened.post(1, ANN)
    keyspace = opened.stores.keyspace  # type: ignore[attr-defined]
    batch = keyspace.batch

    async def late(steps: Any) -> None:
        keyspace.batch = batch
        if hide == "delete":
            await other.delete(1)
        else:
            await other.stores.tweets.remove(1, 7, 0, event("tweet.deleted", 1))
        await batch(steps)

    keyspace.batch = late
    assert await opened.post(2, BOB, **RETWEET) == 2
    for process in (opened, other):
        assert await process.stores.lists.batch_count([ANN, BOB]) == {}
    if hide == "remove":
        await other.stores.tweets.restore(1, 7, event("tweet.restored", 1))
        for process in (opened, other):
            assert await process.stores.lists.batch_count([ANN, BOB]) == {ANN: 1, BOB: 1}


async def test_create_concurrent_processes_create_one_tweet(opened: Opened, other: Opened) -> None:
    await opened.post(1, ANN)
    both = (opened, other)
    keyed = await asyncio.gather(*(both[n % 2].post(n, BOB, CLAIM) for n in range(100, 140)))
    shared = await asyncio.gather(*(both[n % 2].post(n, CAT, **RETWEET) for n in range(200, 240)))
    assert (len(set(keyed)), len(set(shared))) == (1, 1)
    assert await opened.ids_of(BOB) == keyed[:1]
    assert await opened.ids_of(CAT) == shared[:1]
    edits = await asyncio.gather(*(both[n % 2].edit(1, ANN, 2, f"text {n}") for n in range(40)))
    assert edits.count(True) == 1
    assert [topic for topic, _ in await opened.topics()].count("tweet.created") == 3


async def test_delete_concurrent_with_restore_and_edit_is_final(opened: Opened, other: Opened) -> None:
    for tweet_id in range(1, 21):
        await opened.post(tweet_id, ANN)
        await opened.stores.tweets.remove(tweet_id, 7, 0, event("tweet.deleted", tweet_id))
        await asyncio.gather(
            opened.delete(tweet_id),
            other.stores.tweets.restore(tweet_id, 7, event("tweet.restored", tweet_id)),
            other.edit(tweet_id, ANN, 2, "edited"),
        )
        for process in (opened, other):
            assert (await process.stores.tweets.batch_get([tweet_id])).cores[0].head.deleted
            assert await process.stores.lists.batch_count([ANN]) == {}
            assert await process.ids_of(ANN) == []
            assert list(await process.stores.lists.list_recent(0, 5)) == []


async def test_list_ancestors_ends_at_purged_tweet(opened: Opened) -> None:
    await opened.post(1, ANN)
    for tweet_id in range(2, 101):
        await opened.post(tweet_id, BOB, reply_to_id=tweet_id - 1, reply_to_author_id=BOB)
    everything = list(range(99, 0, -1))
    assert await opened.stores.links.list_ancestors(100, 1_000) == everything
    assert await opened.stores.links.list_ancestors(100, 70) == everything[:70]
    for gone, first in ((3, 3), (40, 40), (99, 99)):
        await opened.delete(gone, 5)
        assert await opened.stores.purge.purge(6, 10) == 1
        assert await opened.stores.links.list_ancestors(100, 1_000) == list(range(99, first - 1, -1))
        assert tweet_service_pb2.TweetRevision() not in await opened.stores.tweets.list_revisions(gone)


async def test_lists_span_months_and_hours(opened: Opened) -> None:
    hour, month = 3_600_000 << 22, 30 * 24 * 3_600_000 << 22
    ids = sorted({n * month + m * hour + n for n in range(12) for m in range(7)} - {0})
    await asyncio.gather(*(opened.post(tweet_id, ANN) for tweet_id in ids))
    newest = ids[::-1]
    for _ in range(2):
        stores = opened.stores
        for before, limit in ((0, 5), (0, 1_000), (newest[10], 30), (newest[70], 3), (newest[70], 300)):
            expected = [i for i in newest if not before or i < before][:limit]
            assert list(await stores.lists.list_author(ANN, before, limit)) == expected
            assert list(await stores.lists.list_recent(before, limit)) == expected
        assert await stores.lists.batch_count([ANN]) == {ANN: len(ids)}
        assert [core.head.id for core in await stores.tweets.scan(0, 1_000)] == ids
        assert [core.head.id for core in await stores.tweets.scan(ids[30], 7)] == ids[31:38]
        await opened.reopen()
