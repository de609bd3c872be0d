"""Likes and bookmarks over HTTP: counts, lists and flags on the next read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from roost.engagement.v1 import engagement_service_pb2 as pb
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceStub

from services.platform.process import Wire
from tests.conftest import WIRES, MeshFactory
from tests.functional.conftest import Person, Web

# More would wait for one another longer than a call's deadline if the machine is busy.
CONCURRENT_CALLS = 20


async def like(web: Web, person: Person, tweet_id: str) -> Any:
    answer = await web.call("POST", f"/v1/tweets/{tweet_id}/likes", person)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def likers(web: Web, tweet_id: str, reader: Person | None = None) -> list[str]:
    answer = await web.call("GET", f"/v1/tweets/{tweet_id}/likes", reader)
    assert answer.status_code == 200, answer.text
    return [user["username"] for user in answer.json()["users"]]


async def tweets(web: Web, path: str, reader: Person | None = None) -> list[str]:
    answer = await web.call("GET", path, reader)
    assert answer.status_code == 200, answer.text
    return [tweet["id"] for tweet in answer.json()["tweets"]]


async def test_like_is_counted_and_listed_on_next_read(web: Web) -> None:
    alice, bob, carol = [await web.sign_up(name) for name in ("alice", "bob", "carol")]
    first, second = await web.post(alice, "first"), await web.post(alice, "second")
    assert await like(web, bob, first) == {"liked": True, "likes": 1}
    assert await like(web, carol, first) == {"liked": True, "likes": 2}
    assert await like(web, carol, first) == {"liked": True, "likes": 2}
    await like(web, bob, second)
    for reader in (None, alice, bob):
        assert await likers(web, first, reader) == [carol.username, bob.username]
        assert await tweets(web, f"/v1/users/{bob.id}/likes", reader) == [second, first]
    assert await tweets(web, "/v1/users/me/likes", carol) == [first]

    undone = await web.call("DELETE", f"/v1/tweets/{first}/likes", bob)
    assert undone.json() == {"liked": False, "likes": 1}
    again = await web.call("DELETE", f"/like/{first}", bob)
    assert (again.status_code, again.json()) == (200, {"liked": False, "likes": 1})
    assert await likers(web, first) == [carol.username]
    assert await tweets(web, f"/v1/users/{bob.id}/likes") == [second]


async def test_like_body_with_other_user_is_refused(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    tweet = await web.post(alice, "liked")
    named = await web.call("POST", "/like", bob, json={"tweet_id": tweet, "user_id": bob.id})
    assert (named.status_code, named.json()["likes"]) == (200, 1)
    forged = await web.call("POST", "/like", bob, json={"tweet_id": tweet, "user_id": alice.id})
    assert forged.status_code == 403
    assert (await web.call("POST", "/like", json={"tweet_id": tweet})).status_code == 401
    assert (await web.call("POST", "/like", bob, json={})).status_code == 400
    assert await likers(web, tweet) == [bob.username]


async def test_like_concurrent_calls_count_once(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    tweet = await web.post(alice, "liked")
    answers = await asyncio.gather(
        *(web.call("POST", f"/v1/tweets/{tweet}/likes", bob) for _ in range(CONCURRENT_CALLS))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["likes"] for answer in answers} == {1}
    assert await likers(web, tweet) == [bob.username]
    assert (await web.call("GET", f"/v1/tweets/{tweet}")).json()["metrics"]["likes"] == 1


async def test_reactions_missing_or_deleted_tweet_returns_404(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    kept, deleted = await web.post(alice, "kept"), await web.post(alice, "deleted")
    for tweet in (kept, deleted):
        await like(web, bob, tweet)
        await web.call("POST", f"/v1/tweets/{tweet}/bookmark", bob)
    await web.call("DELETE", f"/v1/tweets/{deleted}", alice)
    for tweet in (deleted, "12345"):
        for verb, path in (("POST", "likes"), ("GET", "likes"), ("POST", "bookmark")):
            answer = await web.call(verb, f"/v1/tweets/{tweet}/{path}", bob)
            assert answer.status_code == 404, (verb, path)
    for path in ("likes", "bookmarks"):
        assert await tweets(web, f"/v1/users/me/{path}", bob) == [kept]
    assert (await web.call("GET", "/v1/users/12345/likes")).status_code == 404


@pytest.mark.parametrize("blocker", ["alice", "bob"])
async def test_block_refuses_likes_and_hides_users_from_each_other(web: Web, blocker: str) -> None:
    people = {name: await web.sign_up(name) for name in ("alice", "bob", "carol")}
    alice, bob, carol = people.values()
    blocked = bob if blocker == "alice" else alice
    tweet, carols = await web.post(alice, "hers"), await web.post(carol, "for all")
    for person in (alice, bob):
        await like(web, person, carols)
    await like(web, bob, tweet)
    block = f"/v1/users/{blocked.id}/block"
    await web.call("POST", block, people[blocker])

    refused = await web.call("POST", f"/v1/tweets/{tweet}/likes", bob)
    assert refused.status_code == 403
    assert (await web.call("POST", f"/v1/tweets/{tweet}/bookmark", bob)).status_code == 404
    assert (await web.call("GET", f"/v1/tweets/{tweet}/likes", bob)).status_code == 404
    assert (await web.call("GET", f"/v1/users/{alice.id}/likes", bob)).status_code == 404
    assert await tweets(web, "/v1/users/me/likes", bob) == [carols]
    assert await likers(web, tweet, alice) == []
    assert await likers(web, tweet, carol) == [bob.username]
    assert await likers(web, carols, bob) == [bob.username]
    assert await likers(web, carols, alice) == [alice.username]
    assert await likers(web, carols) == [bob.username, alice.username]

    await web.call("DELETE", block, people[blocker])
    assert await tweets(web, "/v1/users/me/likes", bob) == [tweet, carols]
    assert await likers(web, tweet, alice) == [bob.username]


async def test_bookmarks_of_other_user_are_refused(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    first, second = await web.post(alice, "first"), await web.post(alice, "second")
    for tweet in (second, first, second):
        answer = await web.call("POST", f"/v1/tweets/{tweet}/bookmark", bob)
        assert (answer.status_code, answer.json()) == (200, {"bookmarked": True})
    for path in (f"/v1/users/{bob.id}/bookmarks", "/v1/users/me/bookmarks"):
        assert await tweets(web, path, bob) == [first, second]
        assert (await web.call("GET", path)).status_code == 401
    assert (await web.call("GET", f"/v1/users/{bob.id}/bookmarks", alice)).status_code == 403
    for _ in range(2):
        answer = await web.call("DELETE", f"/v1/tweets/{first}/bookmark", bob)
        assert (answer.status_code, answer.json()) == (200, {"bookmarked": False})
    assert await tweets(web, "/v1/users/me/bookmarks", bob) == [second]


async def test_list_reactions_pages_hold_each_once(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    posted = [await web.post(alice, f"number {number}") for number in range(25)]
    order = posted[1::2] + posted[::2]
    for tweet in order:
        await like(web, bob, tweet)
        await web.call("POST", f"/v1/tweets/{tweet}/bookmark", bob)
    for path in ("/v1/users/me/likes", "/v1/users/me/bookmarks"):
        found, sizes, cursor = [], [], ""
        while True:
            page = (await web.call("GET", f"{path}?limit=10&cursor={cursor}", bob)).json()
            found += [tweet["id"] for tweet in page["tweets"]]
            sizes.append(len(page["tweets"]))
            cursor = page["next_cursor"]
            if not cursor:
                break
        assert found == order[::-1]
        assert sizes == [10, 10, 5]


async def test_reaction_counts_and_flags_show_on_next_read(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    tweet = await web.post(alice, "read often")
    path = f"/v1/tweets/{tweet}"
    await web.call("GET", path, bob)
    for verb, count in (("POST", 1), ("DELETE", 0), ("POST", 1)):
        await web.call(verb, f"{path}/likes", bob)
        await web.call(verb, f"{path}/bookmark", bob)
        seen = (await web.call("GET", path, bob)).json()
        assert (seen["metrics"]["likes"], seen["metrics"]["bookmarks"]) == (count, count)
        assert bool((seen.get("viewer") or {}).get("liked")) is bool(count)
        assert bool((seen.get("viewer") or {}).get("bookmarked")) is bool(count)
    others = (await web.call("GET", path, alice)).json()
    assert others["metrics"]["likes"] == 1
    assert not (others.get("viewer") or {}).get("liked")


async def test_like_reply_is_counted_and_listed(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    parent = await web.post(alice, "parent")
    answer = await web.call("POST", "/v1/tweets", bob, json={"text": "reply", "reply_to_id": parent})
    assert answer.status_code == 201, answer.text
    reply = answer.json()["id"]
    assert await like(web, alice, reply) == {"liked": True, "likes": 1}
    assert await likers(web, reply) == [alice.username]
    await web.call("DELETE", f"/v1/tweets/{parent}", alice)
    assert await tweets(web, "/v1/users/me/likes", alice) == [reply]


async def test_like_retweet_counts_for_original(web: Web) -> None:
    alice, bob, carol = [await web.sign_up(name) for name in ("alice", "bob", "carol")]
    original = await web.post(alice, "original")
    retweet = (await web.call("POST", f"/v1/tweets/{original}/retweets", bob)).json()["id"]
    assert retweet != original
    assert (await like(web, carol, retweet))["likes"] == 1
    assert (await like(web, carol, original))["likes"] == 1
    assert await likers(web, original) == await likers(web, retweet) == [carol.username]
    assert await tweets(web, "/v1/users/me/likes", carol) == [original]
    await web.call("DELETE", f"/v1/tweets/{retweet}", bob)
    assert await tweets(web, "/v1/users/me/likes", carol) == [original]


@pytest.mark.parametrize("wire", WIRES)
async def test_reactions_after_restart_are_kept(start_mesh: MeshFactory, tmp_path: Path, wire: Wire) -> None:
    mesh = await start_mesh(wire=wire, data_dir=tmp_path)
    alice, bob = await mesh.people("alice", "bob")
    tweet = await mesh.post(alice, "kept")
    stub = EngagementServiceStub(mesh.process.channel(""))
    with mesh.as_user(bob):
        assert (await stub.LikeTweet(pb.LikeTweetRequest(tweet_id=tweet))).likes == 1
        assert (await stub.BookmarkTweet(pb.BookmarkTweetRequest(tweet_id=tweet))).bookmarked
    await mesh.process.stop()

    mesh = await start_mesh(data_dir=tmp_path)
    stub = EngagementServiceStub(mesh.process.channel(""))
    assert [user.id for user in (await stub.ListLikes(pb.ListLikesRequest(tweet_id=tweet))).users] == [bob]
    with mesh.as_user(bob):
        (kept,) = (await stub.ListBookmarks(pb.ListBookmarksRequest(user_id=bob))).tweets
        assert (kept.id, kept.metrics.likes, kept.metrics.bookmarks) == (tweet, 1, 1)
        assert kept.viewer.liked
        assert kept.viewer.bookmarked
        assert (await stub.LikeTweet(pb.LikeTweetRequest(tweet_id=tweet))).likes == 1
