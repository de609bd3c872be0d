"""Freshness, blocks, mutes, deletes, idempotency, sessions and caching over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from gateway_http.ops import Ops
from gateway_http.server import HttpServer
from tests.conftest import SETTLE_WITHIN_S
from tests.functional.conftest import PASSWORD, Person, Web
from tests.waiting import WITHIN_S, wait_until_async


async def until_shown(web: Web, person: Person, tweet_id: str) -> None:
    """Waits until the tweet is in the user's home timeline. Raises TimeoutError after SETTLE_WITHIN_S."""
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while tweet_id not in await web.home(person):
            await asyncio.sleep(0.01)


async def test_post_shows_at_once_to_author_and_later_to_followers(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    await web.call("POST", f"/v1/users/{alice.id}/follow", bob)
    await web.home(bob)
    for number in range(20):
        tweet = await web.post(alice, f"number {number}")
        assert (await web.home(alice))[0] == tweet
        assert (await web.call("GET", f"/v1/tweets/{tweet}")).json()["author"]["username"] == alice.username
        await until_shown(web, bob, tweet)


async def test_delete_block_mute_and_unfollow_show_on_next_read(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    follow = f"/v1/users/{alice.id}/follow"
    await web.call("POST", follow, bob)
    first, second = await web.post(alice, "first"), await web.post(alice, "second")
    await web.mesh.settled()
    assert await web.home(bob) == [second, first]

    await web.call("DELETE", f"/v1/tweets/{second}", alice)
    assert await web.home(bob) == [first]
    assert (await web.call("GET", f"/v1/tweets/{second}")).status_code == 404

    await web.call("POST", f"/v1/users/{alice.id}/mute", bob)
    assert await web.home(bob) == []
    await web.call("DELETE", f"/v1/users/{alice.id}/mute", bob)
    assert await web.home(bob) == [first]

    await web.call("DELETE", follow, bob)
    assert await web.home(bob) == []
    await web.call("POST", follow, bob)
    assert await web.home(bob) == [first]

    await web.call("POST", f"/v1/users/{bob.id}/block", alice)
    assert await web.home(bob) == []
    assert (await web.call("GET", f"/v1/tweets/{first}", bob)).status_code == 404
    assert (await web.call("POST", follow, bob)).status_code == 403
    profile = (await web.call("GET", f"/v1/users/{alice.id}", bob)).json()
    assert profile["viewer"]["blocked_by"] is True
    assert not profile.get("bio")
    await web.call("DELETE", f"/v1/users/{bob.id}/block", alice)
    # Unblock restores no follow.
    assert await web.home(bob) == []
    assert (await web.call("GET", f"/v1/tweets/{first}", bob)).status_code == 200


async def test_create_tweet_repeated_key_makes_one_tweet(web: Web) -> None:
    alice = await web.sign_up("alice")
    headers = {"idempotency-key": "once"}
    answers = await asyncio.gather(
        *(web.call("POST", "/v1/tweets", alice, json={"text": "once"}, headers=headers) for _ in range(20))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = await web.call("POST", "/v1/tweets", alice, json={"text": "twice"}, headers=headers)
    assert other.status_code == 409
    assert len(await web.home(alice)) == 1


async def test_session_after_logout_is_refused(web: Web) -> None:
    alice = await web.sign_up("alice")
    taken = await web.client.post(
        "/v1/auth/signup", json={"username": alice.username.upper(), "email": "other@example.com", "password": PASSWORD}
    )
    assert taken.status_code == 409
    wrong = await web.client.post("/v1/auth/login", json={"username": alice.username, "password": "not the password"})
    unknown = await web.client.post("/v1/auth/login", json={"username": "nobody_here", "password": "not the password"})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json()["detail"] == unknown.json()["detail"]
    by_email = await web.client.post(
        "/v1/auth/login", json={"email": f"{alice.username.capitalize()}@example.com", "password": PASSWORD}
    )
    assert by_email.status_code == 200
    refreshed = await web.client.post("/v1/auth/refresh", json={"refresh_token": alice.refresh_token})
    assert refreshed.status_code == 200
    token = refreshed.json()["access_token"]
    headers = {"authorization": f"Bearer {token}"}
    assert (await web.client.get("/v1/users/me", headers=headers)).json()["email"] == f"{alice.username}@example.com"
    left = await web.client.post("/v1/auth/logout", json={"refresh_token": refreshed.json()["refresh_token"]})
    assert left.status_code == 200
    if not web.mesh.siblings:
        # The process that ended the session rejects its tokens at once.
        assert (await web.client.get("/v1/users/me", headers=headers)).status_code == 401

    async def is_rejected() -> bool:
        answers = [await web.client.get("/v1/users/me", headers=headers) for _ in web.mesh.processes]
        return {answer.status_code for answer in answers} == {401}

    # The others reject them when they have read the event.
    await wait_until_async(is_rejected)
    dead = await web.client.post("/v1/auth/refresh", json={"refresh_token": refreshed.json()["refresh_token"]})
    assert dead.status_code == 401


async def test_get_tweet_sends_etag_and_cache_control(web: Web) -> None:
    alice = await web.sign_up("alice")
    tweet = await web.post(alice, "cached")
    public = await web.call("GET", f"/v1/tweets/{tweet}")
    assert public.headers["cache-control"] == "public, max-age=30, stale-while-revalidate=30"
    again = await web.call("GET", f"/v1/tweets/{tweet}", headers={"if-none-match": public.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""
    private = await web.call("GET", f"/v1/tweets/{tweet}", alice)
    assert private.headers["cache-control"] == "private, no-cache"


async def test_probes_and_metrics_report_services_and_calls(web: Web) -> None:
    assert (await web.call("GET", "/livez")).status_code == 200
    ready = await web.call("GET", "/readyz")
    assert ready.status_code == 200
    text = ready.text
    for name in ("identity", "graph", "tweet", "engagement", "timeline", "fanout"):
        assert name in text
    await web.call("GET", "/v1/tweets")
    assert (await web.call("GET", "/metrics")).status_code == 404
    ops = HttpServer(Ops(web.mesh.process.health), "127.0.0.1", 0)
    await ops.start()
    async with httpx.AsyncClient(base_url=ops.url, timeout=WITHIN_S) as watcher:
        assert (await watcher.get("/readyz")).json() == ready.json()
        metrics = (await watcher.get("/metrics")).text
    await ops.stop()
    handled = 'grpc_server_handled_total{grpc_code="OK",grpc_method="ListRecentTweets"'
    assert handled in metrics


async def test_renames_edits_counts_and_flags_show_on_next_read(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    await web.call("POST", f"/v1/users/{alice.id}/follow", bob)
    tweet = await web.post(alice, "first words")
    await web.mesh.settled()

    async def seen() -> dict[str, Any]:
        (found,) = (await web.call("GET", "/v1/timelines/home", bob)).json()["tweets"]
        return dict(found)

    before = await seen()
    assert (before["text"], before["metrics"]["likes"], "viewer" in before) == ("first words", 0, False)
    await web.call("PATCH", "/v1/users/me", alice, json={"display_name": "Alice the First"})
    assert (await seen())["author"]["display_name"] == "Alice the First"
    await web.call("PATCH", f"/v1/tweets/{tweet}", alice, json={"text": "second words"})
    edited = await seen()
    assert (edited["text"], edited["edited"], edited["original_text"]) == ("second words", True, "first words")
    await web.call("POST", f"/v1/tweets/{tweet}/likes", bob)
    await web.call("POST", f"/v1/tweets/{tweet}/bookmark", bob)
    await web.call("POST", f"/v1/tweets/{tweet}/retweets", bob)
    await web.call("POST", "/reply", bob, json={"tweet_id": tweet, "text": "well said"})
    marked = (await web.call("GET", f"/v1/tweets/{tweet}", bob)).json()
    assert marked["viewer"] == {"liked": True, "retweeted": True, "bookmarked": True}
    assert marked["metrics"] == {"likes": 1, "retweets": 1, "replies": 1, "quotes": 0, "bookmarks": 1}
    await web.call("DELETE", f"/v1/tweets/{tweet}/likes", bob)
    assert (await web.call("GET", f"/v1/tweets/{tweet}", bob)).json()["viewer"]["liked"] is False


async def test_list_pages_hold_every_tweet_once(own_web: Web) -> None:
    alice, bob = await own_web.sign_up("alice"), await own_web.sign_up("bob")
    await own_web.call("POST", f"/v1/users/{alice.id}/follow", bob)
    posted = [await own_web.post(alice, f"number {number}") for number in range(25)]
    await own_web.mesh.settled()
    for path, person in (("/v1/timelines/home", bob), (f"/v1/users/{alice.id}/tweets", None), ("/v1/tweets", None)):
        found, cursor = [], ""
        for _ in range(10):
            page = (await own_web.call("GET", f"{path}?page_size=10&cursor={cursor}", person)).json()
            found.extend(tweet["id"] for tweet in page["tweets"])
            cursor = page["next_cursor"]
            if not cursor:
                break
        assert found == posted[::-1], path
    second = await own_web.call("GET", "/timeline?page=2&limit=10", bob)
    assert [tweet["id"] for tweet in second.json()["tweets"]] == posted[::-1][10:20]
    assert "deprecation" in second.headers
