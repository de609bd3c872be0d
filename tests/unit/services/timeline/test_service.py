"""Tests reads of home timelines: warm, built or pulled, what takes effect at the next read, and where pages end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from roost.graph.v1 import graph_service_pb2 as graph
from roost.timeline.v1 import timeline_service_pb2 as pb

from services.platform.rpc.context import current_call
from tests.unit.services.timeline.conftest import MARGIN_S, READER, Timeline, World
from tests.waiting import wait_until

ANN, BOB, CAT = 2, 3, 4
CELEBRITY, NORMAL = graph.TIER_CELEBRITY, graph.TIER_NORMAL
# Far longer than a page waits for a build here.
READ_WITHIN_S = 2.0


def raises_code(code: grpc.StatusCode) -> Any:
    return pytest.raises(grpc.aio.AioRpcError, match=code.name)


async def past_the_margin(timeline: Timeline) -> None:
    """Advances the clock so that follows and tier changes are old and the home timeline is built after them."""
    timeline.world.now_s += 2 * MARGIN_S
    await timeline.operator.RebuildHomeTimeline(pb.RebuildHomeTimelineRequest(user_id=READER))
    timeline.world.now_s += 2 * MARGIN_S
    timeline.world.pulled.clear()
    timeline.world.calls.clear()


async def tiers_received(timeline: Timeline) -> None:
    """Waits until the tier stream is delivered."""
    while not timeline.world.news.empty():
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)


async def test_read_cold_home_starts_build(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10, 20)
    world.post(READER, 15)
    assert (await timeline.read())[::2] == ([20, 15, 10], "built")
    assert (await timeline.read())[::2] == ([20, 15, 10], "warm")


async def test_read_warm_home_pulls_reader_only(timeline: Timeline, world: World) -> None:
    for author in range(2, 40):
        world.follow(author)
        world.post(author, author * 10)
    await past_the_margin(timeline)
    ids, _, label = await timeline.read()
    assert (len(ids), label) == (20, "warm")
    assert world.pulled == [[READER]]
    assert world.calls["StreamFollowingIds"] == 0
    assert world.calls["GetVisibilityFilter"] == 1


async def test_pushed_tweet_shows_without_pull(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    await past_the_margin(timeline)
    world.post(ANN, 30)
    assert await timeline.whole() == []
    assert await timeline.append(30) == [1]
    assert await timeline.whole() == [30]


async def test_append_counts_warm_homes_and_is_idempotent(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 30, 31)
    await timeline.read()
    assert await timeline.append(30, 31, 30) == [1, 1, 1]
    assert await timeline.append(30, reader=99) == [0]
    assert await timeline.whole() == [31, 30]


async def test_append_too_many_ids_is_invalid(timeline: Timeline) -> None:
    entries = [pb.HomeEntry(tweet_id=1, user_ids=range(1, 1001)) for _ in range(10)]
    await timeline.fanout.AppendHomeEntries(pb.AppendHomeEntriesRequest(entries=entries))
    entries.append(pb.HomeEntry(tweet_id=1, user_ids=[1]))
    with raises_code(grpc.StatusCode.INVALID_ARGUMENT):
        await timeline.fanout.AppendHomeEntries(pb.AppendHomeEntriesRequest(entries=entries))


async def test_append_from_other_caller_is_denied(timeline: Timeline) -> None:
    with raises_code(grpc.StatusCode.PERMISSION_DENIED):
        await timeline.stub.AppendHomeEntries(pb.AppendHomeEntriesRequest())


async def test_own_tweet_shows_at_next_read(timeline: Timeline, world: World) -> None:
    await past_the_margin(timeline)
    world.post(READER, 40)
    assert (await timeline.read())[::2] == ([40], "warm")


async def test_follow_and_unfollow_take_effect_at_next_read(timeline: Timeline, world: World) -> None:
    world.post(ANN, 10)
    world.post(BOB, 20)
    world.follow(BOB)
    await past_the_margin(timeline)
    world.follow(ANN)
    assert (await timeline.read())[::2] == ([20, 10], "warm")
    world.unfollow(BOB)
    assert (await timeline.read())[::2] == ([10], "warm")
    world.follow(BOB)
    assert (await timeline.read())[::2] == ([20, 10], "warm")


async def test_deletes_blocks_mutes_and_suspensions_take_effect_at_next_read(timeline: Timeline, world: World) -> None:
    for author in (ANN, BOB, CAT, 5, 6):
        world.follow(author)
        world.post(author, author * 10)
    await past_the_margin(timeline)
    assert len(await timeline.whole()) == 5
    world.delete(20)
    world.mutes.add((READER, BOB))
    world.blocks |= {(READER, CAT), (5, READER)}
    world.relations_changed()
    world.suspended.add(6)
    assert (await timeline.read())[::2] == ([], "warm")
    world.mutes.clear()
    world.blocks.clear()
    world.relations_changed()
    world.suspended.clear()
    assert await timeline.whole() == [60, 50, 40, 30]


async def test_reply_shows_if_reader_follows_both_authors(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(BOB, 5)
    world.post(ANN, 10, reply_to_id=5, reply_to_author_id=BOB)
    world.post(READER, 6)
    world.post(ANN, 11, reply_to_id=6, reply_to_author_id=READER)
    world.post(READER, 12, reply_to_id=5, reply_to_author_id=BOB)
    await past_the_margin(timeline)
    assert await timeline.whole() == [12, 11, 6]
    world.follow(BOB)
    assert await timeline.whole() == [12, 11, 10, 6, 5]
    world.delete(5)
    assert await timeline.whole() == [12, 11, 6]


async def test_celebrities_are_pulled_and_other_authors_pushed(timeline: Timeline, world: World) -> None:
    world.classify(ANN, CELEBRITY)
    await tiers_received(timeline)
    world.follow(ANN)
    world.follow(BOB)
    world.post(ANN, 10)
    await past_the_margin(timeline)
    world.post(ANN, 20)
    world.post(BOB, 30)
    ids, _, label = await timeline.read()
    assert (ids, label) == ([20, 10], "warm")
    assert [sorted(asked) for asked in world.pulled] == [[READER, ANN]]


async def test_demoted_author_is_still_pulled_into_older_homes(timeline: Timeline, world: World) -> None:
    world.classify(ANN, CELEBRITY)
    await tiers_received(timeline)
    world.follow(ANN)
    await past_the_margin(timeline)
    world.post(ANN, 10)
    world.classify(ANN, NORMAL)
    await tiers_received(timeline)
    world.now_s += 1_000
    assert (await timeline.read())[::2] == ([10], "warm")
    await past_the_margin(timeline)
    assert await timeline.whole() == [10]
    assert world.pulled == [[READER]]


@pytest.mark.parametrize("mode", ["push"])
async def test_mode_push_pulls_reader_only(timeline: Timeline, world: World) -> None:
    world.classify(ANN, CELEBRITY)
    await tiers_received(timeline)
    world.follow(ANN)
    world.post(ANN, 10)
    await past_the_margin(timeline)
    assert (await timeline.read())[::2] == ([10], "warm")
    assert world.pulled == [[READER]]


@pytest.mark.parametrize("mode", ["pull"])
async def test_mode_pull_stores_no_home(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    for _ in range(2):
        assert (await timeline.read())[::2] == ([10], "pull")
    answer = await timeline.operator.RebuildHomeTimeline(pb.RebuildHomeTimelineRequest(user_id=READER))
    assert not answer.warm
    assert await timeline.append(10) == [0]


async def test_stale_tiers_pull_everything(timeline: Timeline, world: World, monkeypatch: Any) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    await past_the_margin(timeline)
    monkeypatch.setattr(timeline.service.workers[0], "fresh", lambda: False)
    world.post(ANN, 20)
    assert (await timeline.read())[::2] == ([20, 10], "pull")


async def test_many_late_followees_rebuild_old_home(timeline: Timeline, world: World) -> None:
    await past_the_margin(timeline)
    for author in range(100, 140):
        world.follow(author)
        world.post(author, author)
    assert (await timeline.read())[2] == "built"
    # Young now, so it stays although all followees are late.
    assert (await timeline.read())[2] == "warm"
    assert len(await timeline.whole()) == 40


async def test_page_continues_after_last_page(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, *range(1, 46))
    ids, page, _ = await timeline.read(size=20)
    world.post(READER, 100)
    more, page, _ = await timeline.read(page.next_cursor, 20)
    last, end, _ = await timeline.read(page.next_cursor, 20)
    assert ids + more + last == list(range(45, 0, -1))
    assert end.next_cursor == ""


@pytest.mark.parametrize("many", [0, 19, 20, 21, 40])
async def test_last_page_has_no_cursor(timeline: Timeline, world: World, many: int) -> None:
    world.follow(ANN)
    world.post(ANN, *range(1, many + 1))
    # Deleted tweets after it do not make a next page.
    world.post(READER, *range(1001, 1004))
    for tweet_id in range(1001, 1004):
        world.delete(tweet_id)
    pages = 0
    cursor = ""
    while True:
        ids, page, _ = await timeline.read(cursor, 20)
        pages += 1
        assert ids or not many
        if not (cursor := page.next_cursor):
            break
    assert pages == max((many + 19) // 20, 1)


async def test_pages_continue_below_floor_up_to_800(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, *range(1, 1001))
    await past_the_margin(timeline)
    assert await timeline.whole() == list(range(1000, 200, -1))
    # The list ends at 169; tweets from below it replace the deleted ones.
    for tweet_id in range(900, 1001):
        world.delete(tweet_id)
    assert (await timeline.read())[2] == "warm"
    assert await timeline.whole() == list(range(899, 99, -1))


async def test_cursor_of_other_reader_is_invalid(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, *range(1, 46))
    _, page, _ = await timeline.read()
    for wrong in (page.next_cursor[:-1], "x" * 40):
        with raises_code(grpc.StatusCode.INVALID_ARGUMENT):
            await timeline.read(wrong)
    with raises_code(grpc.StatusCode.INVALID_ARGUMENT):
        await timeline.read(page.next_cursor, reader=ANN)


async def test_unfinished_build_returns_partial_page_and_continues(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    world.post(READER, 5)
    # Not late: only builds ask for ANN.
    world.now_s += 2 * MARGIN_S
    world.answering.clear()
    ids, page, label = await timeline.read()
    assert (ids, page.partial, label) == ([5], True, "pull")
    assert page.next_cursor
    assert (await timeline.read(page.next_cursor))[1].partial
    assert await timeline.append(20) == [1]
    world.post(ANN, 20)
    world.answering.set()
    ids, page, label = await timeline.read(page.next_cursor)
    assert (ids, page.partial, label) == ([20, 10, 5], False, "built")
    assert (await timeline.read())[2] == "warm"
    assert world.calls["StreamFollowingIds"] == 2, "one build, and one look at the followees for the pages"


async def test_concurrent_cold_reads_share_one_build(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    answers = await asyncio.gather(*(timeline.read() for _ in range(8)))
    assert {(tuple(ids), label) for ids, _, label in answers} == {((10,), "built")}
    assert sum(ANN in asked for asked in world.pulled) == 9, "one build; each page pulls the late followee"


async def test_build_survives_cancelled_reader(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    world.answering.clear()
    reading = asyncio.create_task(timeline.read())
    await wait_until(lambda: any(ANN in asked for asked in world.pulled))
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    world.answering.set()
    assert (await timeline.read())[2] == "built"


async def test_build_survives_deadline_of_first_reader(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    world.now_s += 2 * MARGIN_S
    world.answering.clear()
    time_of = asyncio.get_running_loop().time
    deadline = time_of() + READ_WITHIN_S
    with timeline.as_user(READER):
        assert (await timeline.stub.ListHomeTimeline(pb.ListHomeTimelineRequest(), timeout=READ_WITHIN_S)).partial
    await wait_until(lambda: time_of() > deadline)
    world.answering.set()
    assert (await timeline.read())[0] == [10]
    assert sum(ANN in asked for asked in world.pulled) == 1


@pytest.mark.parametrize("method", ["BatchListAuthorTweetIds", "BatchGetTweetCores", "GetVisibilityFilter"])
async def test_read_owner_unavailable_fails(timeline: Timeline, world: World, method: str) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    await past_the_margin(timeline)
    world.down = method
    with raises_code(grpc.StatusCode.UNAVAILABLE):
        await timeline.read()
    world.down = ""
    assert await timeline.whole() == [10]


async def test_failed_build_leaves_home_cold(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    world.down = "BatchListAuthorTweetIds"
    with raises_code(grpc.StatusCode.UNAVAILABLE):
        await timeline.read()
    assert await timeline.append(10) == [0]
    world.down = ""
    assert (await timeline.read())[::2] == ([10], "built")


async def test_rebuild_returns_entry_count(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10, 20)
    await timeline.read()
    answer = await timeline.operator.RebuildHomeTimeline(pb.RebuildHomeTimelineRequest(user_id=READER))
    assert (answer.entries, answer.warm) == (2, True)
    assert (await timeline.read())[2] == "warm"


async def test_rebuild_supersedes_build_in_progress(timeline: Timeline, world: World) -> None:
    world.follow(ANN)
    world.post(ANN, 10)
    # Not late: only builds ask for ANN.
    world.now_s += 2 * MARGIN_S
    world.answering.clear()
    assert (await timeline.read())[1].partial
    rebuilding = asyncio.ensure_future(
        timeline.operator.RebuildHomeTimeline(pb.RebuildHomeTimelineRequest(user_id=READER))
    )
    await wait_until(lambda: sum(ANN in asked for asked in world.pulled) == 2)
    world.answering.set()
    assert (await rebuilding).warm
    assert (await timeline.read())[::2] == ([10], "warm")


async def test_read_without_token_is_unauthenticated(timeline: Timeline) -> None:
    assert not current_call.get().actor.user_id
    with raises_code(grpc.StatusCode.UNAUTHENTICATED):
        await timeline.stub.ListHomeTimeline(pb.ListHomeTimelineRequest())
    with raises_code(grpc.StatusCode.PERMISSION_DENIED), timeline.as_user(READER):
        await timeline.stub.RebuildHomeTimeline(pb.RebuildHomeTimelineRequest(user_id=READER))
