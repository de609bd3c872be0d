"""The tweet service over its own channel, with fakes of the services that it calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from roost.event.v1 import event_pb2
from roost.graph.v1 import graph_service_pb2 as graph
from roost.graph.v1.graph_service_pb2_grpc import GraphServiceServicer, GraphServiceStub
from roost.identity.v1 import user_pb2
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceServicer, UserServiceStub
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as pb
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.common import errors
from services.common.checker import Checker
from services.common.context import Actor, Call, current_call
from services.common.cursor import Cursors
from services.common.hydrate import Hydrator
from services.common.inprocess import InProcessChannel
from services.common.interceptors.endpoint import endpoints_of
from services.common.people import PeopleLists
from services.common.snowflake import Snowflake, timestamp_ms, wall_clock_ms
from services.tweet.lists import MAX_ROUNDS, ROUND_IDS, Lists
from services.tweet.service import TweetServicer
from services.tweet.store.embedded import EmbeddedTweetStore
from services.tweet.writes import AUTHOR_WAIT_S, Writes

ANN, BOB, CAT = 1, 2, 3
GRACE_S = 100
WINDOW_S = 60


@dataclass
class People(UserServiceServicer, GraphServiceServicer):
    """Identity and graph at once: everybody is active, unless told otherwise."""

    known: set[int] = field(default_factory=lambda: {ANN, BOB, CAT})
    suspended: set[int] = field(default_factory=set)
    blocks: set[tuple[int, int]] = field(default_factory=set)
    down: bool = False
    delay_s: float = 0

    async def BatchGetUserRefs(self, request: Any, context: Any) -> Any:
        await asyncio.sleep(self.delay_s)
        if self.down:
            raise errors.unavailable("identity is down")
        response = identity.BatchGetUserRefsResponse()
        for user_id in self.known.intersection(request.ids):
            state = user_pb2.USER_STATE_SUSPENDED if user_id in self.suspended else user_pb2.USER_STATE_ACTIVE
            ref = user_pb2.UserRef(id=user_id, username=f"user{user_id}").SerializeToString()
            response.refs.add(user_id=user_id, ref=ref, state=state)
        return response

    async def GetVisibilityFilter(self, request: Any, context: Any) -> Any:
        return graph.GetVisibilityFilterResponse(
            blocked_ids=[target for by, target in self.blocks if by == request.user_id],
            blocked_by_ids=[i for i in request.candidate_ids if (i, request.user_id) in self.blocks],
        )


@dataclass
class Bench:
    people: People
    store: EmbeddedTweetStore
    now_s: float = 2_000_000_000.0

    def __post_init__(self) -> None:
        endpoints: dict[str, Any] = {}
        channel: Any = InProcessChannel(endpoints, "tweet")
        hydrator = Hydrator(channel)
        cursors = Cursors(b"k" * 32)
        ids = Snowflake(0, wall_clock_ms)
        writes = Writes(self.store, hydrator, ids, lambda: self.now_s, WINDOW_S)
        people = PeopleLists(UserServiceStub(channel), GraphServiceStub(channel).GetVisibilityFilter, cursors)
        lists = Lists(self.store, hydrator, people, cursors)
        servicer = TweetServicer(self.store, writes, lists, hydrator, lambda: self.now_s, GRACE_S)
        endpoints |= endpoints_of(
            {
                "roost.tweet.v1.TweetService": servicer,
                "roost.identity.v1.UserService": self.people,
                "roost.graph.v1.GraphService": self.people,
            }
        )
        self.tweets: Any = TweetServiceStub(InProcessChannel(endpoints, "", Checker()))
        self.operator: Any = TweetServiceStub(InProcessChannel(endpoints, "operator", Checker()))
        self.moderation: Any = TweetServiceStub(InProcessChannel(endpoints, "moderation", Checker()))

    async def post(self, author: int = ANN, text: str = "hello", **fields: Any) -> tweet_pb2.Tweet:
        with acting(author):
            tweet: tweet_pb2.Tweet = (await self.tweets.CreateTweet(pb.CreateTweetRequest(text=text, **fields))).tweet
        return tweet

    async def delete(self, user: int, tweet_id: int) -> None:
        with acting(user):
            await self.tweets.DeleteTweet(pb.DeleteTweetRequest(tweet_id=tweet_id))

    async def get(self, tweet_id: int, reader: int = 0) -> tweet_pb2.Tweet:
        with acting(reader):
            tweet: tweet_pb2.Tweet = (await self.tweets.GetTweet(pb.GetTweetRequest(tweet_id=tweet_id))).tweet
        return tweet

    async def list_user(self, user_id: int, reader: int = 0, **fields: Any) -> pb.ListUserTweetsResponse:
        with acting(reader):
            page: pb.ListUserTweetsResponse = await self.tweets.ListUserTweets(
                pb.ListUserTweetsRequest(user_id=user_id, **fields)
            )
        return page

    async def list_recent(self, reader: int = 0, **fields: Any) -> pb.ListRecentTweetsResponse:
        with acting(reader):
            page: pb.ListRecentTweetsResponse = await self.tweets.ListRecentTweets(pb.ListRecentTweetsRequest(**fields))
        return page

    async def events(self) -> list[event_pb2.Event]:
        rows = await self.store.db.read(lambda c: c.execute("SELECT payload FROM outbox ORDER BY seq").fetchall())
        return [event_pb2.Event.FromString(payload) for (payload,) in rows]

    async def stored(self) -> int:
        return len(await self.store.scan(0, 1_000))


@contextmanager
def acting(user_id: int) -> Iterator[None]:
    token = current_call.set(Call(actor=Actor(user_id), traceparent="00-trace"))
    try:
        yield
    finally:
        current_call.reset(token)


def refused(code: grpc.StatusCode) -> Any:
    return pytest.raises(grpc.aio.AioRpcError, match=code.name)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await EmbeddedTweetStore.open(tmp_path / "tweet.db")
    yield Bench(People(), store)
    await store.close()


async def test_a_post_answers_the_tweet_that_is_read_afterwards(bench: Bench) -> None:
    tweet = await bench.post(text="cafe\u0301")
    assert (tweet.text, tweet.author_id, tweet.author.username) == ("caf\u00e9", ANN, "user1")
    assert tweet.conversation_id == tweet.id
    assert tweet.created_at.ToMilliseconds() == timestamp_ms(tweet.id)
    assert await bench.get(tweet.id) == tweet
    assert await bench.get(tweet.id, BOB) == tweet
    assert list((await bench.list_user(ANN)).tweets) == [tweet]
    assert list((await bench.list_recent()).tweets) == [tweet]


async def test_a_post_publishes_what_fan_out_needs(bench: Bench) -> None:
    tweet = await bench.post()
    (event,) = await bench.events()
    assert event.tweet_created == event_pb2.TweetCreated(tweet_id=tweet.id, author_id=ANN)
    assert (event.key, event.traceparent) == (ANN, "00-trace")
    assert event.occurred_at.ToSeconds() == int(bench.now_s)
    assert event.event_id > tweet.id


@pytest.mark.parametrize("text", ["", " ", "\u200b", "a\x00", "a" * 281])
async def test_a_text_that_may_not_stand_stores_nothing(bench: Bench, text: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as caught:
        await bench.post(text=text)
    assert [violation.field for violation in errors.from_rpc(caught.value).violations] == ["text"]
    assert await bench.stored() == 0


async def test_what_is_not_served_yet_stores_nothing(bench: Bench) -> None:
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        await bench.post(media_ids=[5])
    assert await bench.stored() == 0


async def test_nobody_posts_without_signing_in(bench: Bench) -> None:
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        await bench.post(author=0)


async def test_a_repeat_with_the_same_key_answers_the_same_tweet(bench: Bench) -> None:
    first = await bench.post(idempotency_key="k")
    assert await bench.post(idempotency_key="k") == first
    assert await bench.post(idempotency_key="k", user_id=ANN) == first
    assert (await bench.post(BOB, idempotency_key="k")).id != first.id
    with refused(grpc.StatusCode.ALREADY_EXISTS) as caught:
        await bench.post(text="another", idempotency_key="k")
    assert errors.from_rpc(caught.value).reason == "IDEMPOTENCY_KEY_REUSED"
    assert await bench.stored() == 2


async def test_a_hundred_repeats_at_once_make_one_tweet(bench: Bench) -> None:
    with acting(ANN):
        calls = [bench.tweets.CreateTweet(pb.CreateTweetRequest(text="x", idempotency_key="k")) for _ in range(100)]
    answers = await asyncio.gather(*calls)
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert await bench.stored() == 1


@pytest.mark.parametrize("trouble", ["down", "slow", "unknown"])
async def test_posting_does_not_depend_on_identity(bench: Bench, trouble: str) -> None:
    match trouble:
        case "down":
            bench.people.down = True
        case "slow":
            bench.people.delay_s = 4 * AUTHOR_WAIT_S
        case "unknown":
            bench.people.known.clear()
    tweet = await bench.post()
    assert tweet.author == user_pb2.UserRef(id=ANN)
    assert await bench.stored() == 1


async def test_reading_does_depend_on_identity(bench: Bench) -> None:
    tweet = await bench.post()
    bench.people.down = True
    with refused(grpc.StatusCode.UNAVAILABLE):
        await bench.get(tweet.id)
    with refused(grpc.StatusCode.UNAVAILABLE):
        await bench.list_recent()


async def test_deleting_ones_own(bench: Bench) -> None:
    tweet = await bench.post()
    for _ in range(2):
        await bench.delete(ANN, tweet.id)
        for reader in (0, ANN, BOB):
            with refused(grpc.StatusCode.NOT_FOUND):
                await bench.get(tweet.id, reader)
    assert not (await bench.list_user(ANN)).tweets
    assert not (await bench.list_recent()).tweets
    assert [event.WhichOneof("body") for event in await bench.events()] == ["tweet_created", "tweet_deleted"]


async def test_deleting_anothers(bench: Bench) -> None:
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


async def test_several_are_read_in_order_without_the_hidden(bench: Bench) -> None:
    one, two, three = await bench.post(), await bench.post(BOB), await bench.post(CAT)
    bench.people.blocks.add((BOB, ANN))
    with acting(ANN):
        response = await bench.tweets.BatchGetTweets(pb.BatchGetTweetsRequest(ids=[three.id, 404, two.id, one.id]))
    assert list(response.tweets) == [three, one]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 10, 11])
async def test_pages_hold_everything_once_and_the_last_one_says_so(bench: Bench, count: int) -> None:
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


async def test_a_page_looks_past_what_is_hidden(bench: Bench) -> None:
    posted = [(await bench.post(BOB if n % 8 else ANN, str(n))).id for n in range(80)]
    bench.people.blocks.add((CAT, BOB))
    page = await bench.list_recent(CAT, page_size=6)
    assert len(page.tweets) == 6
    rest = await bench.list_recent(CAT, page_size=6, cursor=page.next_cursor)
    assert [tweet.id for tweet in page.tweets] + [tweet.id for tweet in rest.tweets] == posted[72::-8]
    assert rest.next_cursor == ""


@pytest.mark.slow
async def test_a_page_gives_up_looking_and_can_be_gone_on_with(bench: Bench) -> None:
    first = await bench.post(ANN)
    await asyncio.gather(*(bench.post(BOB, str(n)) for n in range((MAX_ROUNDS + 1) * ROUND_IDS)))
    bench.people.suspended.add(BOB)
    seen: list[int] = []
    cursor, asked = "", 0
    while asked == 0 or cursor:
        page = await bench.list_recent(cursor=cursor)
        seen += [tweet.id for tweet in page.tweets]
        cursor, asked = page.next_cursor, asked + 1
    assert seen == [first.id]
    assert asked == 2


async def test_cursors_belong_to_their_list(bench: Bench) -> None:
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


async def test_user_timelines_of_the_hidden_and_the_unknown(bench: Bench) -> None:
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


async def test_kinds_can_be_left_out(bench: Bench) -> None:
    tweet = await bench.post(ANN)
    every = [pb.TWEET_KIND_REPLIES, pb.TWEET_KIND_RETWEETS]
    assert list((await bench.list_user(ANN, exclude=every)).tweets) == [tweet]


async def test_deleted_tweets_are_purged_after_the_grace(bench: Bench) -> None:
    tweet = await bench.post()
    await bench.delete(ANN, tweet.id)
    purge = pb.PurgeDeletedTweetsRequest(max_tweets=10)
    bench.now_s += GRACE_S
    assert (await bench.operator.PurgeDeletedTweets(purge)).purged == 0
    bench.now_s += 1
    assert (await bench.operator.PurgeDeletedTweets(purge)).purged == 1
    assert await bench.stored() == 0


async def test_a_scan_streams_everything_also_what_is_deleted(bench: Bench) -> None:
    posted = [(await bench.post(text=str(n))).id for n in range(5)]
    await bench.delete(ANN, posted[2])
    cores = [core async for part in bench.operator.ScanTweets(pb.ScanTweetsRequest()) for core in part.cores]
    assert [core.head.id for core in cores] == posted
    assert [core.head.deleted for core in cores] == [False, False, True, False, False]
    later = [
        c async for part in bench.operator.ScanTweets(pb.ScanTweetsRequest(after_id=posted[3])) for c in part.cores
    ]
    assert [core.head.id for core in later] == posted[4:]


async def test_a_moderator_removes_and_restores(bench: Bench) -> None:
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
