"""The rules of writes: published events, the edit window, and which services a write depends on."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from roost.event.v1 import event_pb2
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as pb

from services.platform.ids.snowflake import timestamp_ms
from services.platform.rpc import errors
from services.tweet.writer import MAX_EDITS
from tests.unit.services.tweet.conftest import ANN, BOB, CAT, WINDOW_S, Bench, acting, refused


async def edit(bench: Bench, user: int, tweet_id: int, text: str) -> tweet_pb2.Tweet:
    with acting(user):
        tweet: tweet_pb2.Tweet = (
            await bench.tweets.UpdateTweet(pb.UpdateTweetRequest(tweet_id=tweet_id, text=text))
        ).tweet
    return tweet


async def retweet(bench: Bench, user: int, tweet_id: int) -> tweet_pb2.Tweet:
    with acting(user):
        tweet: tweet_pb2.Tweet = (await bench.tweets.Retweet(pb.RetweetRequest(tweet_id=tweet_id))).tweet
    return tweet


async def unretweet(bench: Bench, user: int, tweet_id: int) -> None:
    with acting(user):
        await bench.tweets.Unretweet(pb.UnretweetRequest(tweet_id=tweet_id))


async def tweet_of_age(bench: Bench, age_s: float = 0, text: str = "hello") -> tweet_pb2.Tweet:
    """Posts a tweet as ANN and sets the service's clock to `age_s` seconds after it."""
    tweet = await bench.post(text=text)
    bench.now_s = timestamp_ms(tweet.id) / 1000 + age_s
    return tweet


async def event_bodies(bench: Bench) -> list[Any]:
    """Returns the bodies of the events published so far."""
    return [getattr(event, str(event.WhichOneof("body"))) for event in await bench.events()]


def reason(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> str:
    return errors.from_rpc(caught.value).reason


async def test_tweet_created_event_contains_links(bench: Bench) -> None:
    first = await bench.post(ANN)
    reply = await bench.post(BOB, reply_to_id=first.id, quote_of_id=first.id)
    shared = await retweet(bench, CAT, reply.id)
    assert (await event_bodies(bench))[1:] == [
        event_pb2.TweetCreated(
            tweet_id=reply.id,
            author_id=BOB,
            reply_to_id=first.id,
            reply_to_author_id=ANN,
            quote_of_id=first.id,
            quote_of_author_id=ANN,
        ),
        event_pb2.TweetCreated(tweet_id=shared.id, author_id=CAT, retweet_of_id=reply.id, retweet_of_author_id=BOB),
    ]
    assert [event.key for event in await bench.events()] == [ANN, BOB, CAT]


async def test_repeated_writes_publish_no_event(bench: Bench) -> None:
    first = await tweet_of_age(bench)
    for _ in range(3):
        await edit(bench, ANN, first.id, "changed")
        shared = await retweet(bench, BOB, first.id)
    for _ in range(3):
        await unretweet(bench, BOB, first.id)
        await bench.delete(BOB, shared.id)
    assert (await event_bodies(bench))[1:] == [
        event_pb2.TweetEdited(tweet_id=first.id, author_id=ANN, version=2),
        event_pb2.TweetCreated(tweet_id=shared.id, author_id=BOB, retweet_of_id=first.id, retweet_of_author_id=ANN),
        event_pb2.TweetDeleted(tweet_id=shared.id, author_id=BOB),
    ]


async def test_edit_after_window_is_refused(bench: Bench) -> None:
    tweet = await tweet_of_age(bench, WINDOW_S)
    changed = await edit(bench, ANN, tweet.id, "in time")
    assert changed.edited_at.ToMilliseconds() == timestamp_ms(tweet.id) + WINDOW_S * 1000
    bench.now_s += 0.01
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as caught:
        await edit(bench, ANN, tweet.id, "late")
    assert reason(caught) == "EDIT_WINDOW_CLOSED"
    assert await edit(bench, ANN, tweet.id, "in time") == changed, "a repeat is no edit"
    assert await bench.get(tweet.id) == changed


async def test_edit_beyond_limit_is_refused(bench: Bench) -> None:
    tweet = await tweet_of_age(bench, text="a")
    for text in ("b", "a", "b", "a", "b"):
        changed = await edit(bench, ANN, tweet.id, text)
        assert (changed.text, changed.original_text) == (text, "a")
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as caught:
        await edit(bench, ANN, tweet.id, "a")
    assert reason(caught) == "EDIT_LIMIT"
    response = await bench.tweets.ListTweetRevisions(pb.ListTweetRevisionsRequest(tweet_id=tweet.id))
    assert [revision.text for revision in response.revisions] == list("ababab")
    assert len(response.revisions) == MAX_EDITS + 1


@pytest.mark.parametrize("text", ["", " ", "a\x00", "a" * 281])
async def test_edit_invalid_text_is_refused(bench: Bench, text: str) -> None:
    tweet = await tweet_of_age(bench)
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await edit(bench, ANN, tweet.id, text)
    assert (await bench.get(tweet.id)).text == "hello"


async def test_edit_with_equal_normalized_text_is_no_edit(bench: Bench) -> None:
    tweet = await tweet_of_age(bench, text="caf\u00e9")
    assert not (await edit(bench, ANN, tweet.id, "cafe\u0301")).edited


@pytest.mark.parametrize("state", ["suspended", "unknown"])
async def test_reply_quote_retweet_of_hidden_author_is_not_found(bench: Bench, state: str) -> None:
    tweet = await bench.post(ANN)
    if state == "suspended":
        bench.people.suspended.add(ANN)
    else:
        bench.people.known.discard(ANN)
    for write in (
        bench.post(BOB, reply_to_id=tweet.id),
        bench.post(BOB, quote_of_id=tweet.id),
        retweet(bench, BOB, tweet.id),
    ):
        with refused(grpc.StatusCode.NOT_FOUND):
            await write
    assert await bench.stored() == 1


async def test_retweet_of_retweet_blocked_by_retweeter_is_refused(bench: Bench) -> None:
    tweet = await bench.post(ANN)
    shared = await retweet(bench, BOB, tweet.id)
    bench.people.blocks.add((BOB, CAT))
    with refused(grpc.StatusCode.PERMISSION_DENIED) as caught:
        await retweet(bench, CAT, shared.id)
    assert reason(caught) == "BLOCKED"
    assert (await retweet(bench, CAT, tweet.id)).retweet_of_id == tweet.id


async def test_reply_and_retweet_identity_failure_is_unavailable(bench: Bench) -> None:
    tweet = await bench.post(ANN)
    bench.people.down = True
    for write in (bench.post(BOB, reply_to_id=tweet.id), retweet(bench, BOB, tweet.id)):
        with refused(grpc.StatusCode.UNAVAILABLE):
            await write
    assert await bench.stored() == 1
    assert (await bench.post(BOB)).id, "a plain post does not depend on identity"


async def test_unretweet_of_hidden_tweet_succeeds(bench: Bench) -> None:
    tweet = await bench.post(ANN)
    shared = await retweet(bench, BOB, tweet.id)
    bench.people.blocks.add((ANN, BOB))
    await unretweet(bench, BOB, shared.id)
    assert [fact.tweet_id for fact in (await event_bodies(bench))[2:]] == [shared.id]
    await unretweet(bench, CAT, tweet.id)
    await bench.delete(ANN, tweet.id)
    await unretweet(bench, BOB, tweet.id)
    with refused(grpc.StatusCode.NOT_FOUND):
        await unretweet(bench, BOB, 404)


async def test_writes_without_user_are_unauthenticated(bench: Bench) -> None:
    tweet = await bench.post(ANN)
    for write in (edit(bench, 0, tweet.id, "x"), retweet(bench, 0, tweet.id), unretweet(bench, 0, tweet.id)):
        with refused(grpc.StatusCode.UNAUTHENTICATED):
            await write
