"""The rules of the engagement service: who may like and bookmark which tweet, and who sees which list."""

from __future__ import annotations

from itertools import chain
from typing import Any

import grpc
import pytest

from services.platform.ids.snowflake import timestamp_ms
from services.shared.hydration import fill_page, user_pages
from tests.unit.services.engagement.conftest import Bench

ANN, BEN, CAT, DAN = 1, 2, 3, 4
NOBODY = 0
TWEET, RETWEET = 1_000, 2_000


async def refusal(awaitable: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await awaitable
    return refused.value.code()


async def test_like_and_unlike_repeats_return_same_count(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    assert (await bench.call(BEN, "LikeTweet", tweet_id=TWEET)).likes == 1
    for _ in range(2):
        answer = await bench.call(CAT, "LikeTweet", tweet_id=TWEET, user_id=CAT)
        assert (answer.liked, answer.likes) == (True, 2)
    for _ in range(2):
        answer = await bench.call(CAT, "UnlikeTweet", tweet_id=TWEET)
        assert (answer.liked, answer.likes) == (False, 1)


async def test_like_and_bookmark_own_tweet_succeeds(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    assert (await bench.call(ANN, "LikeTweet", tweet_id=TWEET)).liked
    assert (await bench.call(ANN, "BookmarkTweet", tweet_id=TWEET)).bookmarked
    assert not (await bench.call(ANN, "UnbookmarkTweet", tweet_id=TWEET)).bookmarked


async def test_reaction_for_another_user_is_refused(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    for method in ("LikeTweet", "UnlikeTweet", "BookmarkTweet", "UnbookmarkTweet"):
        code = await refusal(bench.call(BEN, method, tweet_id=TWEET, user_id=CAT))
        assert code == grpc.StatusCode.PERMISSION_DENIED, method
        assert await refusal(bench.call(NOBODY, method, tweet_id=TWEET)) == grpc.StatusCode.UNAUTHENTICATED, method
    assert await refusal(bench.call(BEN, "ListBookmarks", user_id=CAT)) == grpc.StatusCode.PERMISSION_DENIED
    assert (await bench.mesh("BatchGetCounts", ids=[TWEET])).counts == []


async def test_repeated_reactions_publish_one_event_per_change(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    for method in ("LikeTweet", "LikeTweet", "UnlikeTweet", "UnlikeTweet", "BookmarkTweet", "UnbookmarkTweet"):
        await bench.call(BEN, method, tweet_id=TWEET)
    liked, unliked = await bench.events()
    assert (liked.tweet_liked.tweet_id, liked.tweet_liked.user_id, liked.key) == (TWEET, BEN, BEN)
    assert (unliked.tweet_unliked.tweet_id, unliked.tweet_unliked.user_id, unliked.key) == (TWEET, BEN, BEN)
    assert liked.event_id < unliked.event_id
    assert liked.occurred_at.ToMilliseconds() == timestamp_ms(liked.event_id)
    assert liked.traceparent == "00-trace"


@pytest.mark.parametrize("method", ["LikeTweet", "BookmarkTweet"])
async def test_reaction_to_retweet_counts_for_original(bench: Bench, method: str) -> None:
    bench.world.post(TWEET, ANN)
    bench.world.post(RETWEET, BEN, retweet_of_id=TWEET, retweet_of_author_id=ANN)
    await bench.call(CAT, method, tweet_id=RETWEET)
    (count,) = (await bench.mesh("BatchGetCounts", ids=[TWEET, RETWEET])).counts
    assert count.tweet_id == TWEET
    (state,) = (await bench.mesh("BatchGetViewerStates", user_id=CAT, ids=[RETWEET, TWEET])).states
    assert (state.tweet_id, state.liked) == (TWEET, method == "LikeTweet")
    await bench.call(CAT, method.replace("Like", "Unlike").replace("Bookmark", "Unbookmark"), tweet_id=RETWEET)
    assert (await bench.mesh("BatchGetCounts", ids=[TWEET])).counts == []


async def test_list_likes_of_retweet_lists_likes_of_original(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    bench.world.post(RETWEET, BEN, retweet_of_id=TWEET, retweet_of_author_id=ANN)
    await bench.call(CAT, "LikeTweet", tweet_id=TWEET)
    assert await bench.pages(NOBODY, "ListLikes", tweet_id=RETWEET) == [[CAT]]


GONE = ["never was", "deleted", "retweet of deleted", "deleted retweet"]


def make_gone(bench: Bench, how: str) -> int:
    if how == "never was":
        return TWEET
    bench.world.post(TWEET, ANN)
    if how == "deleted":
        bench.world.delete(TWEET)
        return TWEET
    bench.world.post(RETWEET, BEN, retweet_of_id=TWEET, retweet_of_author_id=ANN)
    bench.world.delete(TWEET if how == "retweet of deleted" else RETWEET)
    return RETWEET


@pytest.mark.parametrize("how", GONE)
async def test_reaction_to_missing_tweet_is_not_found(bench: Bench, how: str) -> None:
    tweet_id = make_gone(bench, how)
    for method in ("LikeTweet", "BookmarkTweet", "ListLikes"):
        assert await refusal(bench.call(CAT, method, tweet_id=tweet_id)) == grpc.StatusCode.NOT_FOUND, method
    assert await bench.events() == []


@pytest.mark.parametrize("how", GONE)
async def test_undo_reaction_to_deleted_tweet_succeeds(bench: Bench, how: str) -> None:
    tweet_id = make_gone(bench, how)
    for method in ("UnlikeTweet", "UnbookmarkTweet"):
        if how == "never was":
            assert await refusal(bench.call(CAT, method, tweet_id=tweet_id)) == grpc.StatusCode.NOT_FOUND
        else:
            await bench.call(CAT, method, tweet_id=tweet_id)


@pytest.mark.parametrize("suspended", [ANN, BEN])
async def test_reaction_to_tweet_of_suspended_author_is_not_found(bench: Bench, suspended: int) -> None:
    bench.world.post(TWEET, ANN)
    bench.world.post(RETWEET, BEN, retweet_of_id=TWEET, retweet_of_author_id=ANN)
    await bench.call(CAT, "LikeTweet", tweet_id=TWEET)
    bench.world.suspended.add(suspended)
    # Suspension wins over a block: the error must not reveal the block.
    bench.world.blocks.add((suspended, CAT))
    for method in ("LikeTweet", "BookmarkTweet", "ListLikes"):
        assert await refusal(bench.call(CAT, method, tweet_id=RETWEET)) == grpc.StatusCode.NOT_FOUND, method
    assert (await bench.call(CAT, "UnlikeTweet", tweet_id=RETWEET)).likes == 0


@pytest.mark.parametrize("block", [(ANN, CAT), (CAT, ANN), (BEN, CAT), (CAT, BEN)])
async def test_like_blocked_is_refused_and_other_methods_are_not_found(bench: Bench, block: tuple[int, int]) -> None:
    bench.world.post(TWEET, ANN)
    bench.world.post(RETWEET, BEN, retweet_of_id=TWEET, retweet_of_author_id=ANN)
    await bench.call(CAT, "LikeTweet", tweet_id=TWEET)
    bench.world.blocks.add(block)
    assert await refusal(bench.call(CAT, "LikeTweet", tweet_id=RETWEET)) == grpc.StatusCode.PERMISSION_DENIED
    for method in ("BookmarkTweet", "ListLikes"):
        assert await refusal(bench.call(CAT, method, tweet_id=RETWEET)) == grpc.StatusCode.NOT_FOUND, method
    assert (await bench.call(CAT, "UnlikeTweet", tweet_id=RETWEET)).likes == 0
    assert (await bench.call(DAN, "LikeTweet", tweet_id=RETWEET)).likes == 1


async def test_like_by_muted_user_is_listed(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    bench.world.mutes |= {(ANN, BEN), (BEN, ANN)}
    await bench.call(BEN, "LikeTweet", tweet_id=TWEET)
    assert await bench.pages(ANN, "ListLikes", tweet_id=TWEET) == [[BEN]]
    assert await bench.pages(BEN, "ListLikedTweets", user_id=BEN) == [[TWEET]]


async def test_reaction_identity_failure_is_unavailable(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    bench.world.down = True
    for method in ("LikeTweet", "UnlikeTweet", "BookmarkTweet", "ListLikes"):
        assert await refusal(bench.call(BEN, method, tweet_id=TWEET)) == grpc.StatusCode.UNAVAILABLE, method
    bench.world.down = False
    assert (await bench.mesh("BatchGetCounts", ids=[TWEET])).counts == []


async def test_list_likes_is_newest_first_in_full_pages(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    for user_id in range(10, 17):
        await bench.call(user_id, "LikeTweet", tweet_id=TWEET)
    assert await bench.pages(NOBODY, "ListLikes", tweet_id=TWEET, page_size=3) == [[16, 15, 14], [13, 12, 11], [10]]
    # A last page that is exactly full has no cursor.
    assert await bench.pages(BEN, "ListLikes", tweet_id=TWEET, page_size=7) == [[16, 15, 14, 13, 12, 11, 10]]
    for user_id in range(20, 40):
        await bench.call(user_id, "LikeTweet", tweet_id=TWEET)
    assert [len(page) for page in await bench.pages(BEN, "ListLikes", tweet_id=TWEET)] == [20, 7]


async def test_list_likes_hidden_users_are_replaced(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    for user_id in range(10, 30):
        await bench.call(user_id, "LikeTweet", tweet_id=TWEET)
    bench.world.blocks |= {(BEN, 29), (27, BEN)}
    bench.world.suspended.add(25)
    pages = await bench.pages(BEN, "ListLikes", tweet_id=TWEET, page_size=4)
    assert pages[0] == [28, 26, 24, 23]
    assert list(chain.from_iterable(pages)) == [28, 26, *range(24, 9, -1)]
    (everybody,) = await bench.pages(NOBODY, "ListLikes", tweet_id=TWEET, page_size=100)
    assert everybody == [29, 28, 27, 26, *range(24, 9, -1)]


async def test_list_likes_mostly_hidden_stops_after_max_rounds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_pages, "MAX_ROUNDS", 2)
    bench.world.post(TWEET, ANN)
    for user_id in range(10, 20):
        await bench.call(user_id, "LikeTweet", tweet_id=TWEET)
    bench.world.suspended |= set(range(11, 20))
    pages = await bench.pages(BEN, "ListLikes", tweet_id=TWEET, page_size=2)
    assert pages[0] == []
    assert list(chain.from_iterable(pages)) == [10]


async def like_all(bench: Bench, method: str, user_id: int, tweet_ids: list[int]) -> None:
    for tweet_id in tweet_ids:
        bench.world.post(tweet_id, ANN)
        await bench.call(user_id, method, tweet_id=tweet_id)


LISTS = [("LikeTweet", "ListLikedTweets"), ("BookmarkTweet", "ListBookmarks")]


@pytest.mark.parametrize(("method", "listing"), LISTS)
async def test_list_tweets_is_ordered_by_newest_reaction(bench: Bench, method: str, listing: str) -> None:
    await like_all(bench, method, BEN, [1_005, 1_002, 1_009, 1_001, 1_007])
    await bench.call(BEN, method, tweet_id=1_005)
    assert await bench.pages(BEN, listing, user_id=BEN, page_size=2) == [[1_007, 1_001], [1_009, 1_002], [1_005]]
    assert await bench.pages(BEN, listing, user_id=BEN, page_size=5) == [[1_007, 1_001, 1_009, 1_002, 1_005]]
    assert await bench.pages(CAT, listing, user_id=CAT) == [[]]


@pytest.mark.parametrize(("method", "listing"), LISTS)
async def test_list_tweets_hidden_tweets_are_replaced(bench: Bench, method: str, listing: str) -> None:
    await like_all(bench, method, BEN, list(range(1_000, 1_020)))
    bench.world.delete(1_019)
    bench.world.heads[1_018].author_id = CAT
    bench.world.heads[1_017].author_id = DAN
    bench.world.heads[1_016].author_id = 50
    bench.world.blocks |= {(CAT, BEN), (BEN, DAN)}
    bench.world.suspended.add(50)
    pages = await bench.pages(BEN, listing, user_id=BEN, page_size=4)
    assert pages[0] == [1_015, 1_014, 1_013, 1_012]
    assert list(chain.from_iterable(pages)) == list(range(1_015, 999, -1))


@pytest.mark.parametrize(("method", "listing"), LISTS)
async def test_list_tweets_mostly_deleted_stops_after_max_rounds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str, listing: str
) -> None:
    monkeypatch.setattr(fill_page, "MAX_READS", 2)
    monkeypatch.setattr(fill_page, "READ_IDS", 3)
    await like_all(bench, method, BEN, list(range(1_000, 1_020)))
    for tweet_id in range(1_001, 1_020):
        bench.world.delete(tweet_id)
    pages = await bench.pages(BEN, listing, user_id=BEN, page_size=2)
    assert pages[0] == []
    assert list(chain.from_iterable(pages)) == [1_000]


async def test_list_liked_tweets_of_hidden_user_is_not_found(bench: Bench) -> None:
    await like_all(bench, "LikeTweet", BEN, [TWEET])
    assert await bench.pages(NOBODY, "ListLikedTweets", user_id=BEN) == [[TWEET]]
    assert await bench.pages(CAT, "ListLikedTweets", user_id=BEN) == [[TWEET]]
    assert await refusal(bench.call(CAT, "ListLikedTweets", user_id=500)) == grpc.StatusCode.NOT_FOUND
    bench.world.blocks |= {(BEN, CAT), (DAN, BEN)}
    for reader in (CAT, DAN):
        assert await refusal(bench.call(reader, "ListLikedTweets", user_id=BEN)) == grpc.StatusCode.NOT_FOUND
    bench.world.suspended.add(BEN)
    assert await refusal(bench.call(NOBODY, "ListLikedTweets", user_id=BEN)) == grpc.StatusCode.NOT_FOUND


async def test_list_cursor_of_another_list_or_owner_is_refused(bench: Bench) -> None:
    for user_id in (BEN, CAT):
        for method in ("LikeTweet", "BookmarkTweet"):
            await like_all(bench, method, user_id, [1_001, 1_002])
    cursors = {
        "ListLikes": {"tweet_id": 1_001},
        "ListLikedTweets": {"user_id": BEN},
        "ListBookmarks": {"user_id": BEN},
    }
    for method, fields in cursors.items():
        cursor = (await bench.call(BEN, method, page_size=1, **fields)).next_cursor
        assert cursor
        for other, others in cursors.items():
            if other != method:
                code = await refusal(bench.call(BEN, other, cursor=cursor, **others))
                assert code == grpc.StatusCode.INVALID_ARGUMENT, (method, other)
    bens = (await bench.call(BEN, "ListLikedTweets", user_id=BEN, page_size=1)).next_cursor
    assert (await bench.call(CAT, "ListLikedTweets", user_id=BEN, cursor=bens)).tweets[0].id == 1_001
    code = await refusal(bench.call(BEN, "ListLikedTweets", user_id=CAT, cursor=bens))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    bookmarks_cursor = (await bench.call(BEN, "ListBookmarks", user_id=BEN, page_size=1)).next_cursor
    code = await refusal(bench.call(CAT, "ListBookmarks", user_id=CAT, cursor=bookmarks_cursor))
    assert code == grpc.StatusCode.INVALID_ARGUMENT


async def test_batch_methods_accept_1000_ids_from_services_only(bench: Bench) -> None:
    bench.world.post(TWEET, ANN)
    await bench.call(BEN, "LikeTweet", tweet_id=TWEET)
    ids = list(range(1, 1_001))
    assert [one.likes for one in (await bench.mesh("BatchGetCounts", ids=ids)).counts] == [1]
    assert [one.liked for one in (await bench.mesh("BatchGetViewerStates", user_id=BEN, ids=ids)).states] == [True]
    assert (await bench.mesh("BatchGetViewerStates", user_id=CAT, ids=ids)).states == []
    assert await refusal(bench.mesh("BatchGetCounts", ids=[*ids, 1_001])) == grpc.StatusCode.INVALID_ARGUMENT
    assert await refusal(bench.call(BEN, "BatchGetCounts", ids=ids)) == grpc.StatusCode.PERMISSION_DENIED
    denied = await refusal(bench.call(BEN, "BatchGetViewerStates", user_id=BEN, ids=ids))
    assert denied == grpc.StatusCode.PERMISSION_DENIED
