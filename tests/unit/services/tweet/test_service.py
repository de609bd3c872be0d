"""TweetService with its SQLite store and fakes of the services that it calls: posts, reads, pages, moderation."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from roost.event.v1 import event_pb2
from roost.identity.v1 import user_pb2
from roost.tweet.v1 import tweet_service_pb2 as pb

from services.platform.ids.snowflake import timestamp_ms
from services.platform.rpc import errors
from services.shared.hydration.fill_page import MAX_READS, READ_IDS
from services.tweet import writer
from tests.unit.services.tweet.conftest import ANN, BOB, CAT, GRACE_S, Bench, acting, refused


async def test_create_tweet_is_returned_by_later_reads(bench: Bench) -> None:
    tweet = await bench.post(text="cafe\u0301")
    assert (tweet.text, tweet.author_id, tweet.author.username) == ("caf\u00e9", ANN, "user1")
    assert tweet.conversation_id == tweet.id
    assert tweet.created_at.ToMilliseconds() == timestamp_ms(tweet.id)
    assert await bench.get(tweet.id) == tweet
    assert await bench.get(tweet.id, BOB) == tweet
    assert list((await bench.list_user(ANN)).tweets) == [tweet]
    assert list((await bench.list_recent()).tweets) == [tweet]


async def test_create_tweet_publishes_tweet_created(bench: Bench) -> None:
    tweet = await bench.post()
    (event,) = await bench.events()
    assert event.tweet_created == event_pb2.TweetCreated(tweet_id=tweet.id, author_id=ANN)
    assert (event.key, event.traceparent) == (ANN, "00-trace")
    assert event.occurred_at.ToSeconds() == int(bench.now_s)
    assert event.event_id > tweet.id


@pytest.mark.parametrize("text", ["", " ", "\u200b", "a\x00", "a" * 281])
async def test_create_tweet_invalid_text_stores_nothing(bench: Bench, text: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        await bench.post(text=text)
    assert [violation.field for violation in errors.from_rpc(caught.value).violations] == ["text"]
    assert await bench.stored() == 0


async def test_create_tweet_with_media_is_unimplemented(bench: Bench) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        await bench.post(media_ids=[5])
    assert await bench.stored() == 0


async def test_create_tweet_without_user_is_unauthenticated(bench: Bench) -> None:
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await bench.post(author=0)


async def test_create_tweet_repeated_idempotency_key_returns_first_tweet(bench: Bench) -> None:
    first = await bench.post(idempotency_key="k")
    assert await bench.post(idempotency_key="k") == first
    assert await bench.post(idempotency_key="k", user_id=ANN) == first
    assert (await bench.post(BOB, idempotency_key="k")).id != first.id
    with refused(grpc.StatusCode.ALREADY_EXISTS) as caught:
        await bench.post(text="another", idempotency_key="k")
    assert errors.from_rpc(caught.value).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await bench.stored() == 2


async def test_create_tweet_concurrent_repeats_create_one_tweet(bench: Bench) -> None:
    with acting(ANN):
        calls = [bench.tweets.CreateTweet(pb.CreateTweetRequest(text="x", idempotency_key="k")) for _ in range(100)]
    answers = await asyncio.gather(*calls)
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert await bench.stored() == 1


@pytest.mark.parametrize("trouble", ["down", "slow", "unknown"])
async def test_create_tweet_identity_failure_returns_author_id_only(
    bench: Bench, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "AUTHOR_WAIT_S", 0.05 if trouble == "slow" else writer.AUTHOR_WAIT_S)
    match trouble:
        case "down":
            bench.people.down = True
        case "slow":
            bench.people.silent = True
        case "unknown":
            bench.people.known.clear()
    tweet = await bench.post()
    assert tweet.author == user_pb2.UserRef(id=ANN)
    assert await bench.stored() == 1


async def test_get_tweet_identity_failure_is_unavailable(bench: Bench) -> None:
    tweet = await bench.post()
    bench.people.down = True
    with refused(grpc.StatusCode.UNAVAILABLE):
        await bench.get(tweet.id)
    with refused(grpc.StatusCode.UNAVAILABLE):
        await bench.list_recent()


async def test_delete_tweet_by_author_hides_tweet(bench: Bench) -> None:
    tweet = await bench.post()
    for _ in range(2):
        await bench.delete(ANN, tweet.id)
        for reader in (0, ANN, BOB):
            with refused(grpc.StatusCode.NOT_FOUND):
                await bench.get(tweet.id, reader)
    assert not (await bench.list_user(ANN)).tweets
    assert not (await bench.list_recent()).tweets
    assert [event.WhichOneof("body") for event in await bench.events()] == ["tweet_created", "tweet_deleted"]


async def test_delete_tweet_by_another_user_is_refused(bench: Bench) -> None:
    tweet = await bench.post()
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await bench.delete(BOB, tweet.id)
    bench.people.blocks.add((ANN, BOB))
    with refused(grpc.StatusCode.NOT_FOUND):
        await bench.delete(BOB, tweet.id)
    with refused(grpc.StatusCode.NOT_FOUND):
        await bench.delete(BOB, 404)
    await bench.delete(ANN, tweet.id)
    with refused(grpc.StatusCode.NOT_FOUND):
        await bench.delete(CAT, tweet.id)


async def test_batch_get_tweets_keeps_order_and_omits_hidden_tweets(bench: Bench) -> None:
    one, two, three = await bench.post(), await bench.post(BOB), await bench.post(CAT)
    bench.people.blocks.add((BOB, ANN))
    with acting(ANN):
        response = await bench.tweets.BatchGetTweets(pb.BatchGetTweetsRequest(ids=[three.id, 404, two.id, one.id]))
    assert list(response.tweets) == [three, one]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 10, 11])
async def test_list_pages_contain_each_tweet_once_and_last_page_has_no_cursor(bench: Bench, count: int) -> None:
    posted = [(await bench.post(text=str(n))).id for n in range(count)]
    for pages in (bench.list_recent, lambda **fields: bench.list_user(ANN, **fields)):
        seen: list[int] = []
        cursor, asked = "", 0
        while True:
            page = await pages(page_size=5, cursor=cursor)
            seen += [tweet.id for tweet in page.tweets]
            cursor, asked = page.next_cursor, asked + 1
            if not cursor:
                break
        assert seen == posted[::-1]
        assert asked == max(1, -(-count // 5)), "the last page that holds something is the last"


async def test_list_recent_fills_page_past_hidden_tweets(bench: Bench) -> None:
    posted = [(await bench.post(BOB if n % 8 else ANN, str(n))).id for n in range(80)]
    bench.people.blocks.add((CAT, BOB))
    page = await bench.list_recent(CAT, page_size=6)
    assert len(page.tweets) == 6
    rest = await bench.list_recent(CAT, page_size=6, cursor=page.next_cursor)
    assert [tweet.id for tweet in page.tweets] + [tweet.id for tweet in rest.tweets] == posted[72::-8]
    assert rest.next_cursor == ""


@pytest.mark.slow
async def test_list_recent_stops_after_max_rounds_and_returns_cursor(bench: Bench) -> None:
    first = await bench.post(ANN)
    for _ in range(MAX_READS + 1):
        await asyncio.gather(*(bench.post(BOB, str(n)) for n in range(READ_IDS)))
    bench.people.suspended.add(BOB)
    seen: list[int] = []
    cursor, asked = "", 0
    while asked == 0 or cursor:
        page = await bench.list_recent(cursor=cursor)
        seen += [tweet.id for tweet in page.tweets]
        cursor, asked = page.next_cursor, asked + 1
    assert seen == [first.id]
    assert asked == 2


async def test_list_cursor_of_another_list_is_refused(bench: Bench) -> None:
    for _ in range(3):
        await bench.post(ANN)
        await bench.post(BOB)
    cursor = (await bench.list_user(ANN, page_size=1)).next_cursor
    assert (await bench.list_user(ANN, page_size=1, cursor=cursor)).tweets
    for stolen in (cursor, cursor[:-1], "x"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await bench.list_user(BOB, cursor=stolen)
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            await bench.list_recent(cursor=stolen)


async def test_list_user_tweets_of_hidden_or_unknown_user_is_not_found(bench: Bench) -> None:
    await bench.post(ANN)
    assert not (await bench.list_user(BOB)).tweets, "known, but silent"
    with refused(grpc.StatusCode.NOT_FOUND):
        await bench.list_user(404)
    bench.people.blocks.add((ANN, BOB))
    with refused(grpc.StatusCode.NOT_FOUND):
        await bench.list_user(ANN, reader=BOB)
    assert (await bench.list_user(ANN, reader=CAT)).tweets
    bench.people.suspended.add(ANN)
    with refused(grpc.StatusCode.NOT_FOUND):
        await bench.list_user(ANN)


async def test_list_user_tweets_exclude_keeps_plain_tweets(bench: Bench) -> None:
    tweet = await bench.post(ANN)
    every = [pb.TWEET_KIND_REPLIES, pb.TWEET_KIND_RETWEETS]
    assert list((await bench.list_user(ANN, exclude=every)).tweets) == [tweet]


async def test_purge_after_grace_removes_deleted_tweet(bench: Bench) -> None:
    tweet = await bench.post()
    await bench.delete(ANN, tweet.id)
    purge = pb.PurgeDeletedTweetsRequest(max_tweets=10)
    bench.now_s += GRACE_S
    assert (await bench.operator.PurgeDeletedTweets(purge)).purged == 0
    bench.now_s += 1
    assert (await bench.operator.PurgeDeletedTweets(purge)).purged == 1
    assert await bench.stored() == 0


async def test_scan_tweets_streams_all_tweets_including_deleted(bench: Bench) -> None:
    posted = [(await bench.post(text=str(n))).id for n in range(5)]
    await bench.delete(ANN, posted[2])
    cores = [core async for part in bench.operator.ScanTweets(pb.ScanTweetsRequest()) for core in part.cores]
    assert [core.head.id for core in cores] == posted
    assert [core.head.deleted for core in cores] == [False, False, True, False, False]
    later = [
        c async for part in bench.operator.ScanTweets(pb.ScanTweetsRequest(after_id=posted[3])) for c in part.cores
    ]
    assert [core.head.id for core in later] == posted[4:]


async def test_remove_and_restore_hide_and_show_tweet(bench: Bench) -> None:
    tweet = await bench.post()
    for _ in range(2):
        await bench.moderation.RemoveTweet(pb.RemoveTweetRequest(tweet_id=tweet.id, action_id=7))
        with refused(grpc.StatusCode.NOT_FOUND):
            await bench.get(tweet.id, ANN)
    for _ in range(2):
        await bench.moderation.RestoreTweet(pb.RestoreTweetRequest(tweet_id=tweet.id, action_id=7))
        assert await bench.get(tweet.id) == tweet
    with refused(grpc.StatusCode.NOT_FOUND):
        await bench.moderation.RemoveTweet(pb.RemoveTweetRequest(tweet_id=404, action_id=7))
    kinds = [event.WhichOneof("body") for event in await bench.events()]
    assert kinds == ["tweet_created", "tweet_deleted", "tweet_restored"]
