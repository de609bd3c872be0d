"""Edits, replies, quotes and retweets over HTTP: results, counts and refusals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from roost.tweet.v1 import tweet_service_pb2, tweet_service_pb2_grpc

from services.platform.ids.snowflake import timestamp_ms
from tests.conftest import MeshFactory
from tests.functional.conftest import Person, Web, open_web

# More would wait for one another longer than a call's deadline if the machine is busy.
CONCURRENT_CALLS = 20


async def ok(web: Web, method: str, path: str, person: Person | None = None, **options: Any) -> Any:
    answer = await web.call(method, path, person, **options)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def post(web: Web, person: Person, text: str = "hello", **fields: Any) -> dict[str, Any]:
    tweet: dict[str, Any] = await ok(web, "POST", "/v1/tweets", person, json={"text": text, **fields})
    return tweet


async def get(web: Web, tweet_id: str, person: Person | None = None) -> dict[str, Any]:
    tweet: dict[str, Any] = await ok(web, "GET", f"/v1/tweets/{tweet_id}", person)
    return tweet


async def retweet(web: Web, person: Person, tweet_id: str) -> dict[str, Any]:
    tweet: dict[str, Any] = await ok(web, "POST", f"/v1/tweets/{tweet_id}/retweets", person)
    return tweet


async def counts(web: Web, tweet_id: str) -> tuple[int, int, int]:
    metrics = (await get(web, tweet_id))["metrics"]
    return metrics["replies"], metrics["retweets"], metrics["quotes"]


async def own_ids(web: Web, person: Person) -> list[str]:
    page = await ok(web, "GET", f"/v1/users/{person.id}/tweets")
    return [tweet["id"] for tweet in page["tweets"]]


async def tweets_of(web: Web, person: Person) -> int:
    count: int = (await ok(web, "GET", f"/v1/users/{person.id}"))["metrics"]["tweets"]
    return count


def edit(web: Web, person: Person, tweet_id: str, text: str) -> Any:
    return web.call("PATCH", f"/v1/tweets/{tweet_id}", person, json={"text": text})


def refused(answer: httpx.Response, status: int, reason: str) -> bool:
    return (answer.status_code, answer.json()["code"]) == (status, reason.lower())


async def people(web: Web, *names: str) -> list[Person]:
    return [await web.sign_up(name) for name in names]


# --- edits ------------------------------------------------------------------------------------------------------------


async def test_edit_tweet_shows_on_next_read_and_keeps_revisions(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    first = await post(web, alice, "one #one")
    assert (first["edited"], first["original_text"], first.get("edited_at")) == (False, "", None)
    for text in ("two #two", "three"):
        changed = await ok(web, "PUT", f"/tweet/{first['id']}", alice, json={"content": text})
        assert changed == await get(web, first["id"], alice)
        assert (changed["text"], changed["edited"], changed["original_text"]) == (text, True, "one #one")
        assert changed["edited_at"] > changed["created_at"] == first["created_at"]
        assert [tag["tag"] for tag in changed["entities"]["hashtags"]] == (["two"] if "#" in text else [])
    versions = (await ok(web, "GET", f"/v1/tweets/{first['id']}/revisions", bob))["revisions"]
    assert [(v["version"], v["text"]) for v in versions] == [(1, "one #one"), (2, "two #two"), (3, "three")]
    assert versions[0]["created_at"] == first["created_at"]
    assert (await ok(web, "GET", "/v1/timelines/home", alice))["tweets"][0]["text"] == "three"


async def test_revisions_unedited_tweet_has_one(web: Web) -> None:
    (alice,) = await people(web, "alice")
    tweet = await post(web, alice, "only")
    versions = (await ok(web, "GET", f"/v1/tweets/{tweet['id']}/revisions"))["revisions"]
    assert versions == [{"version": 1, "text": "only", "created_at": tweet["created_at"]}]
    await ok(web, "DELETE", f"/v1/tweets/{tweet['id']}", alice)
    assert (await web.call("GET", f"/v1/tweets/{tweet['id']}/revisions")).status_code == 404


async def test_edit_tweet_sixth_edit_is_refused(web: Web) -> None:
    (alice,) = await people(web, "alice")
    tweet_id = await web.post(alice, "0")
    for number in range(1, 6):
        assert (await edit(web, alice, tweet_id, str(number))).status_code == 200
        assert (await edit(web, alice, tweet_id, str(number))).status_code == 200, "the same text is no edit"
    assert refused(await edit(web, alice, tweet_id, "6"), 400, "EDIT_LIMIT")
    assert (await edit(web, alice, tweet_id, "5")).status_code == 200
    versions = (await ok(web, "GET", f"/v1/tweets/{tweet_id}/revisions"))["revisions"]
    assert [v["text"] for v in versions] == list("012345")


async def test_edit_tweet_concurrent_edits_make_one_version_each(web: Web) -> None:
    (alice,) = await people(web, "alice")
    tweet_id = await web.post(alice, "first")
    answers = await asyncio.gather(*(edit(web, alice, tweet_id, f"text {number}") for number in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [400] * 7
    versions = (await ok(web, "GET", f"/v1/tweets/{tweet_id}/revisions"))["revisions"]
    assert [v["version"] for v in versions] == [1, 2, 3, 4, 5, 6]
    assert (await get(web, tweet_id))["text"] == versions[-1]["text"]


async def test_edit_tweet_by_other_user_or_of_retweet_is_refused(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    tweet_id = await web.post(alice, "hers")
    assert refused(await edit(web, bob, tweet_id, "his"), 403, "NOT_AUTHOR")
    shared = await retweet(web, bob, tweet_id)
    assert refused(await edit(web, bob, shared["id"], "his"), 400, "RETWEET")
    assert (await edit(web, alice, tweet_id, " ")).status_code == 400
    assert (await web.call("PATCH", f"/v1/tweets/{tweet_id}", json={"text": "x"})).status_code == 401
    await ok(web, "POST", f"/v1/users/{bob.id}/block", alice)
    assert (await edit(web, bob, tweet_id, "his")).status_code == 404
    await ok(web, "DELETE", f"/v1/tweets/{tweet_id}", alice)
    assert (await edit(web, alice, tweet_id, "again")).status_code == 404
    assert (await edit(web, alice, "404", "x")).status_code == 404


@pytest.fixture
async def late_web(start_mesh: MeshFactory) -> AsyncIterator[Web]:
    """A mesh in which a tweet can be edited only in the millisecond of its creation."""
    mesh = await start_mesh(edit_window_s=0)
    server, client = await open_web(mesh, mesh.process.settings)
    async with client:
        yield Web(mesh, client)
    await server.stop()


# --- replies and quotes -----------------------------------------------------------------------------------------------


async def test_reply_joins_conversation_and_is_counted(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    root = await post(web, alice, "root")
    reply = await post(web, bob, "reply", reply_to_id=root["id"])
    below = await post(web, alice, "below", reply_to_id=reply["id"])
    assert root["conversation_id"] == reply["conversation_id"] == below["conversation_id"] == root["id"]
    assert (reply["reply_to_id"], below["reply_to_id"]) == (root["id"], reply["id"])
    assert reply == await get(web, reply["id"], bob) | {"metrics": reply["metrics"]}
    assert (await counts(web, root["id"]), await counts(web, reply["id"])) == ((1, 0, 0), (1, 0, 0))
    await ok(web, "DELETE", f"/v1/tweets/{below['id']}", alice)
    assert (await counts(web, root["id"]), await counts(web, reply["id"])) == ((1, 0, 0), (0, 0, 0))
    assert await own_ids(web, bob) == [reply["id"]]
    narrowed = await ok(web, "GET", f"/v1/users/{bob.id}/tweets?exclude=replies")
    assert narrowed["tweets"] == []


async def test_quote_of_deleted_tweet_shows_tombstone(web: Web) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    original = await post(web, alice, "original")
    shared = await retweet(web, bob, original["id"])
    quote = await post(web, carol, "look", quote_of_id=shared["id"])
    assert quote["quote_of_id"] == original["id"], "quoting a retweet quotes its original"
    assert quote["quoted_tweet"]["text"] == "original"
    assert quote["quoted_tweet"]["author"]["username"] == alice.username
    assert quote["quoted_tweet"]["metrics"]["quotes"] == 1
    assert await counts(web, original["id"]) == (0, 1, 1)
    assert (await edit(web, alice, original["id"], "changed")).status_code == 200
    assert (await get(web, quote["id"]))["quoted_tweet"]["text"] == "changed"
    await ok(web, "POST", f"/v1/users/{bob.id}/block", alice)
    hidden = (await get(web, quote["id"], bob))["quoted_tweet"]
    assert (hidden["deleted"], hidden["text"], hidden["id"]) == (True, "", original["id"])
    await ok(web, "DELETE", f"/v1/tweets/{original['id']}", alice)
    left = await get(web, quote["id"])
    assert (left["text"], left["quoted_tweet"]["deleted"], left["quoted_tweet"]["text"]) == ("look", True, "")
    again = await web.call("POST", "/v1/tweets", carol, json={"text": "again", "quote_of_id": original["id"]})
    assert again.status_code == 404


async def test_create_reply_repeated_key_after_parent_deleted_returns_first_reply(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    root = await web.post(alice, "root")
    body, headers = {"text": "once", "reply_to_id": root}, {"idempotency-key": "k"}
    answers = await asyncio.gather(
        *(web.call("POST", "/v1/tweets", bob, json=body, headers=headers) for _ in range(CONCURRENT_CALLS))
    )
    assert {answer.status_code for answer in answers} == {201}
    (reply_id,) = {answer.json()["id"] for answer in answers}
    assert await counts(web, root) == (1, 0, 0)
    await ok(web, "DELETE", f"/v1/tweets/{root}", alice)
    again = await web.call("POST", "/v1/tweets", bob, json=body, headers=headers)
    assert again.json()["id"] == reply_id
    assert (await web.call("POST", "/v1/tweets", bob, json=body)).status_code == 404


async def test_entities_are_present_in_every_tweet(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    plain = await post(web, alice, "nothing")
    assert plain["entities"] == {"hashtags": [], "mentions": [], "urls": [], "cashtags": []}
    named = await post(web, alice, "é @bob #tag $CASH https://example.com")
    assert named["entities"]["mentions"] == [{"start": 2, "end": 6, "username": "bob"}]
    assert named["entities"]["hashtags"] == [{"start": 7, "end": 11, "tag": "tag"}]
    assert [url["url"] for url in named["entities"]["urls"]] == ["https://example.com"]
    assert (await retweet(web, bob, plain["id"]))["entities"] == plain["entities"]


# --- retweets ---------------------------------------------------------------------------------------------------------


async def test_retweet_concurrent_calls_make_one(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    tweet_id = await web.post(alice, "original")
    path = f"/v1/tweets/{tweet_id}/retweets"
    answers = await asyncio.gather(*(web.call("POST", path, bob) for _ in range(CONCURRENT_CALLS)))
    assert {answer.status_code for answer in answers} == {200}
    (retweet_id,) = {answer.json()["id"] for answer in answers}
    assert await counts(web, tweet_id) == (0, 1, 0)
    assert await own_ids(web, bob) == [retweet_id]
    assert await tweets_of(web, bob) == 1


async def test_retweet_undone_and_repeated_makes_new_retweet(web: Web) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    original = await web.post(alice, "original")
    first = await retweet(web, bob, original)
    assert (first["retweet_of_id"], first["text"], first["author_id"]) == (original, "", bob.id)
    assert (first["retweeted_tweet"]["text"], first["retweeted_tweet"]["viewer"]["retweeted"]) == ("original", True)
    assert (await retweet(web, bob, original))["id"] == first["id"]
    assert (await get(web, original, bob))["viewer"]["retweeted"] is True
    assert (await get(web, original, carol)).get("viewer") is None
    of_retweet = await retweet(web, carol, first["id"])
    assert of_retweet["retweet_of_id"] == original
    assert await counts(web, original) == (0, 2, 0)
    assert await counts(web, first["id"]) == (0, 0, 0)

    for _ in range(2):
        await ok(web, "DELETE", f"/tweets/{original}/retweets", bob)
        assert await counts(web, original) == (0, 1, 0)
    assert (await web.call("GET", f"/v1/tweets/{first['id']}")).status_code == 404
    assert (await get(web, original, bob)).get("viewer") is None
    second = await retweet(web, bob, original)
    assert second["id"] != first["id"]
    for _ in range(2):
        await ok(web, "DELETE", f"/v1/tweets/{second['id']}", bob)
        assert await counts(web, original) == (0, 1, 0)
    assert (await web.call("DELETE", f"/v1/tweets/{of_retweet['id']}", bob)).status_code == 403
    assert (await retweet(web, bob, original))["id"] not in (first["id"], second["id"])
    assert (await web.call("DELETE", "/v1/tweets/404/retweets", bob)).status_code == 404


async def test_retweet_own_tweet_is_listed_and_counted(web: Web) -> None:
    (alice,) = await people(web, "alice")
    original = await web.post(alice, "mine")
    shared = await retweet(web, alice, original)
    assert await web.home(alice) == [shared["id"], original]
    assert await tweets_of(web, alice) == 2
    await ok(web, "DELETE", f"/v1/tweets/{original}", alice)
    assert await web.home(alice) == await own_ids(web, alice) == []
    assert await tweets_of(web, alice) == 0


async def test_retweet_of_removed_and_restored_tweet_follows_original(web: Web) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    await ok(web, "POST", f"/v1/users/{bob.id}/follow", carol)
    original = await web.post(alice, "original")
    shared = (await retweet(web, bob, original))["id"]
    own = await web.post(bob, "his")
    await web.mesh.settled()
    assert await web.home(carol) == [own, shared]
    moderation = tweet_service_pb2_grpc.TweetServiceStub(web.mesh.process.channel("moderation"))
    for _ in range(2):
        await moderation.RemoveTweet(tweet_service_pb2.RemoveTweetRequest(tweet_id=int(original), action_id=7))
        assert await web.home(carol) == await own_ids(web, bob) == [own]
        assert await tweets_of(web, bob) == 1
        assert (await web.call("GET", f"/v1/tweets/{shared}")).status_code == 404
    for _ in range(2):
        await moderation.RestoreTweet(tweet_service_pb2.RestoreTweetRequest(tweet_id=int(original), action_id=7))
        assert await web.home(carol) == await own_ids(web, bob) == [own, shared]
        assert await tweets_of(web, bob) == 2
        assert await counts(web, original) == (0, 1, 0)
    await ok(web, "DELETE", f"/v1/tweets/{original}", alice)
    assert await web.home(carol) == await own_ids(web, bob) == [own]
    assert await tweets_of(web, bob) == 1
    # The retweet may still be taken back, which changes nothing that anybody sees.
    await ok(web, "DELETE", f"/v1/tweets/{shared}", bob)
    assert await tweets_of(web, bob) == 1
    assert (await web.call("POST", f"/v1/tweets/{original}/retweets", bob)).status_code == 404


# --- permissions and visibility --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocker", ["alice", "bob"])
async def test_block_refuses_reply_quote_and_retweet_both_ways(web: Web, blocker: str) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    original = await web.post(alice, "original")
    by_carol = await web.post(carol, "hers")
    shared = (await retweet(web, alice, by_carol))["id"]
    taken_back = await retweet(web, bob, original)
    by, of = (alice, bob) if blocker == "alice" else (bob, alice)
    await ok(web, "POST", f"/v1/users/{of.id}/block", by)
    for tweet_id in (original, shared):
        for body in ({"text": "x", "reply_to_id": tweet_id}, {"text": "x", "quote_of_id": tweet_id}):
            assert refused(await web.call("POST", "/v1/tweets", bob, json=body), 403, "BLOCKED")
        assert refused(await web.call("POST", f"/v1/tweets/{tweet_id}/retweets", bob), 403, "BLOCKED")
    assert await counts(web, by_carol) == (0, 1, 0)
    assert (await web.call("GET", f"/v1/tweets/{taken_back['id']}", bob)).status_code == 404
    await ok(web, "DELETE", f"/v1/tweets/{original}/retweets", bob)
    assert await counts(web, original) == (0, 0, 0)
    await ok(web, "DELETE", f"/v1/users/{of.id}/block", by)
    assert (await post(web, bob, "x", reply_to_id=original))["reply_to_id"] == original


@pytest.mark.parametrize("blocker", ["alice", "bob"])
async def test_block_hides_users_from_each_other_in_every_list(web: Web, blocker: str) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    original = await web.post(carol, "hers")
    own = await web.post(alice, "alice says #hello to @bob")
    for one in (alice, bob):
        await ok(web, "POST", f"/v1/users/{carol.id}/follow", one)
        await ok(web, "POST", f"/v1/users/{one.id}/follow", carol)
        await ok(web, "POST", f"/v1/tweets/{original}/likes", one)
        await ok(web, "POST", f"/v1/tweets/{original}/retweets", one)
    reply = (await post(web, alice, "a reply", reply_to_id=original))["id"]
    by, of = (alice, bob) if blocker == "alice" else (bob, alice)
    await ok(web, "POST", f"/v1/users/{of.id}/block", by)
    lists_of_people = [
        f"/v1/users/{carol.id}/followers",
        f"/v1/users/{carol.id}/following",
        f"/v1/tweets/{original}/likes",
        f"/v1/tweets/{original}/retweets",
        f"/v1/search/users?query={alice.username}",
        "/v1/users/suggestions",
    ]
    for path in lists_of_people:
        found = (await ok(web, "GET", path, bob))["users"]
        assert alice.id not in [user["id"] for user in found], path
    suggested = (await ok(web, "GET", f"/v1/search/suggest?query={alice.username}", bob))["users"]
    assert suggested == []
    for path in (f"/v1/tweets/{original}/replies", "/v1/tags/hello/tweets", "/v1/search/tweets?query=hello"):
        found = (await ok(web, "GET", path, bob))["tweets"]
        assert not {own, reply} & {tweet["id"] for tweet in found}, path
    hidden = [f"/v1/users/{alice.id}/{name}" for name in ("followers", "following", "likes", "tweets")]
    hidden += [
        f"/v1/tweets/{own}{name}"
        for name in ("", "/likes", "/retweets", "/replies", "/quotes", "/thread", "/revisions")
    ]
    for path in hidden:
        assert (await web.call("GET", path, bob)).status_code == 404, path
        assert (await web.call("GET", path, carol)).status_code == 200, path


async def test_reply_quote_and_retweet_missing_target_return_404(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    gone = await web.post(alice, "gone")
    await ok(web, "DELETE", f"/v1/tweets/{gone}", alice)
    for tweet_id in (gone, "404"):
        for body in ({"text": "x", "reply_to_id": tweet_id}, {"text": "x", "quote_of_id": tweet_id}):
            assert (await web.call("POST", "/v1/tweets", bob, json=body)).status_code == 404
        assert (await web.call("POST", f"/v1/tweets/{tweet_id}/retweets", bob)).status_code == 404
    assert await tweets_of(web, bob) == 0


async def test_home_replies_depend_on_followed_parent_author(web: Web) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    await ok(web, "POST", f"/v1/users/{bob.id}/follow", carol)
    root = await web.post(alice, "root")
    reply = (await post(web, bob, "reply", reply_to_id=root))["id"]
    await web.mesh.settled()
    assert await web.home(carol) == [], "carol does not follow alice"
    assert await web.home(bob) == [reply]
    await ok(web, "POST", f"/v1/users/{alice.id}/follow", carol)
    assert await web.home(carol) == [reply, root], "a later follow shows earlier replies"
    to_carol = (await post(web, bob, "to her", reply_to_id=await web.post(carol, "hers")))["id"]
    await web.mesh.settled()
    assert (await web.home(carol))[0] == to_carol
    await ok(web, "DELETE", f"/v1/tweets/{root}", alice)
    assert reply not in await web.home(carol)
    assert reply in await web.home(bob), "one's own stay"


async def test_mute_hides_retweets_of_muted_author(web: Web) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    await ok(web, "POST", f"/v1/users/{bob.id}/follow", carol)
    original = await web.post(alice, "original")
    by_bob, by_carol = (await retweet(web, bob, original))["id"], (await retweet(web, carol, original))["id"]
    await web.mesh.settled()
    assert await web.home(carol) == [by_carol, by_bob]
    await ok(web, "POST", f"/v1/users/{alice.id}/mute", carol)
    assert await web.home(carol) == []
    await ok(web, "DELETE", f"/v1/users/{alice.id}/mute", carol)
    assert await web.home(carol) == [by_carol, by_bob]
    await ok(web, "POST", f"/v1/users/{carol.id}/block", alice)
    assert await web.home(carol) == []


async def test_edit_tweet_after_window_is_refused(late_web: Web) -> None:
    (alice,) = await people(late_web, "alice")
    tweet_id = await late_web.post(alice, "final")
    created_ms = timestamp_ms(int(tweet_id))
    while time.time_ns() // 1_000_000 <= created_ms:
        await asyncio.sleep(0.001)
    assert refused(await edit(late_web, alice, tweet_id, "more"), 400, "EDIT_WINDOW_CLOSED")
    assert (await edit(late_web, alice, tweet_id, "final")).status_code == 200, "nothing is changed"
    assert (await get(late_web, tweet_id))["edited"] is False
