"""Search, suggestions and trends over HTTP: results for each reader, order, pages, and hidden tweets and users."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from roost.identity.v1 import user_service_pb2 as identity
from roost.search.v1 import search_service_pb2 as pb
from roost.search.v1.search_service_pb2_grpc import SearchServiceStub
from roost.tweet.v1 import tweet_service_pb2 as tweet

from services.platform.process import Wire
from tests.cluster import backend, environment
from tests.conftest import SETTLE_WITHIN_S, WIRES, MeshFactory
from tests.functional.conftest import Person, Web

TESTS = Path(__file__).resolve().parents[2]


async def ask(web: Web, path: str, reader: Person | None = None, **options: Any) -> Any:
    answer = await web.call("POST" if "json" in options else "GET", path, reader, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def found(web: Web, query: str, reader: Person | None = None, order: str = "latest", **params: Any) -> list[str]:
    """Returns the ids of a search's results, in order."""
    page = await ask(web, "/v1/search/tweets", reader, params={"query": query, "order": order, **params})
    return [one["id"] for one in page["tweets"]]


async def eventually(look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Polls until `look()` returns `wanted`. The contract promises a second on an idle machine; the timeout is
    SETTLE_WITHIN_S.
    """
    async with asyncio.timeout(SETTLE_WITHIN_S):
        while (_seen := await look()) != wanted:
            await asyncio.sleep(0.01)


async def is_found(web: Web, query: str, *ids: str) -> None:
    await eventually(lambda: found(web, query), list(ids))


async def weighed(web: Web, author: Person) -> None:
    """Waits until the texts of all earlier tweets have scores. Until then the newest tweets count as the best texts."""
    marker = f"marker{time.monotonic_ns()}"
    short, long = await web.post(author, marker), await web.post(author, f"{marker} and some words more")
    await eventually(lambda: found(web, marker, order="top"), [short, long])


async def indexed(web: Web, *authors: Person) -> None:
    """Waits until all earlier tweets of these users are indexed. The events of one user's tweets are applied in order, so
    a marker tweet that is found proves it; those of other users, and of the users themselves, may come later.
    """
    for author in authors:
        marker = f"marker{time.monotonic_ns()}"
        await is_found(web, marker, await web.post(author, marker))


async def users_found(web: Web, query: str) -> list[str]:
    """Returns the names of the users that a search finds, in order."""
    return [user["username"] for user in (await ask(web, "/v1/search/users", params={"query": query}))["users"]]


async def test_search_new_tweet_is_found(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    first = await web.post(alice, "Good morning from the #Kitchen, @bob! $TSLA")
    second = await web.post(bob, "good Évening, alice")
    await is_found(web, "good", second, first)
    for query, ids in {
        "good morning": [first],
        '"morning from the"': [first],
        '"from morning"': [],
        "#kitchen": [first],
        "kitchen": [first],
        "@BOB": [first],
        "$tsla": [first],
        f"from:{bob.username} good": [second],
        f"from:{alice.username}": [first],
        "from:nobody good": [],
        "evening": [second],
        "goo": [],
        "!?": [],
    }.items():
        assert await found(web, query) == ids, query
        assert sorted(await found(web, query, order="top")) == sorted(ids), query


async def test_search_alternative_request_bodies_are_accepted(web: Web) -> None:
    alice = await web.sign_up("alice")
    both, one = await web.post(alice, "red green #paint"), await web.post(alice, "red blue")
    await is_found(web, "red", one, both)
    for path in ("/search/tweets", "/tweets/search"):
        for body, ids in (
            ({"keywords": ["red"], "tags": []}, [one, both]),
            ({"keywords": ["red", "green"]}, [both]),
            ({"keywords": [], "tags": ["paint"]}, [both]),
            ({"tags": ["#Paint"], "q": "red"}, [both]),
            ({"keywords": ["red"], "tags": ["rust"]}, []),
        ):
            page = await ask(web, path, json={"order": "latest", **body})
            assert [tweet["id"] for tweet in page["tweets"]] == ids, body
        refused = await web.call("POST", path, json={"keywords": [], "tags": []})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")
    second = await ask(web, "/search/tweets?q=red&order=latest&page=2&limit=1")
    assert [tweet["id"] for tweet in second["tweets"]] == [both]
    refused = await web.call("GET", "/v1/search/tweets", params={"q": " ".join("abcdefghijklmnopq")})
    assert (refused.status_code, refused.json()["violations"][0]["field"]) == (400, "query")


async def test_search_pages_have_every_match_once(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    posted = [await web.post(alice if n % 2 else bob, f"number {n}") for n in range(25)]
    # Events are in order for each author alone, so both last tweets must be found.
    for last in (23, 24):
        await is_found(web, f"number {last}", posted[last])
    await web.call("POST", f"/v1/users/{alice.id}/block", bob)
    for order, reader, wanted in (
        ("latest", None, posted[::-1]),
        ("latest", bob, posted[::-1][::2]),
        ("top", None, sorted(posted)),
        ("top", bob, sorted(posted[::2])),
    ):
        # A tweet that is indexed after the first page would move the ranks of the others.
        await indexed(web, alice)
        seen: list[str] = []
        cursor = ""
        while True:
            params = {"query": "number", "order": order, "page_size": 4, "cursor": cursor}
            page = await ask(web, "/v1/search/tweets", reader, params=params)
            seen += [tweet["id"] for tweet in page["tweets"]]
            assert len(page["tweets"]) == 4 or not page["next_cursor"]
            # Later tweets do not change the pages after the first one.
            await web.post(alice, "number late")
            if not (cursor := page["next_cursor"]):
                break
            elsewhere = await web.call(
                "GET", "/v1/search/tweets", reader, params={**params, "query": "x", "cursor": cursor}
            )
            assert elsewhere.status_code == 400
        assert [one for one in (seen if order == "latest" else sorted(seen)) if one in posted] == wanted


async def test_search_deleted_blocked_and_suspended_are_hidden(web: Web) -> None:
    alice, bob, carol = [await web.sign_up(name) for name in ("alice", "bob", "carol")]
    hers, his, deleted = [
        await web.post(*post) for post in ((alice, "secret #plan"), (bob, "secret #plan"), (bob, "secret"))
    ]
    await is_found(web, "secret", deleted, his, hers)

    assert (await web.call("DELETE", f"/v1/tweets/{deleted}", bob)).status_code == 200
    assert await found(web, "secret") == [his, hers], "hidden at once, before the index applies the deletion"

    await web.call("POST", f"/v1/users/{bob.id}/block", alice)
    for reader, ids in ((alice, [hers]), (bob, [his]), (carol, [his, hers]), (None, [his, hers])):
        assert await found(web, "secret", reader) == await found(web, "secret", reader, order="top") == ids
        assert await found(web, "#plan", reader) == ids
        tagged = await ask(web, "/tags/plan/tweets", reader)
        assert [tweet["id"] for tweet in tagged["tweets"]] == ids
        mixed = await ask(web, "/search?query=secret&order=latest", reader)
        assert [tweet["id"] for tweet in mixed["tweets"]] == ids
    for reader, other in ((alice, bob), (bob, alice)):
        assert (await ask(web, f"/v1/search/users?query={other.username}", reader))["users"] == []
        assert (await ask(web, f"/v1/search/suggest?query={other.username}", reader))["users"] == []

    await web.mesh.process.channel("moderation").unary_unary(
        "/roost.identity.v1.UserService/SuspendUser",
        request_serializer=identity.SuspendUserRequest.SerializeToString,
        response_deserializer=identity.SuspendUserResponse.FromString,
    )(identity.SuspendUserRequest(user_id=int(bob.id), action_id=1))
    assert await found(web, "secret", carol) == [hers]
    assert (await ask(web, f"/v1/search/users?query={bob.username}", carol))["users"] == []
    assert (await ask(web, f"/v1/search/suggest?query={bob.username}", carol))["users"] == []

    # They stay hidden after the index has applied all events.
    await indexed(web, carol)
    assert await found(web, "secret", carol) == [hers]
    await web.mesh.process.channel("moderation").unary_unary(
        "/roost.identity.v1.UserService/ReinstateUser",
        request_serializer=identity.ReinstateUserRequest.SerializeToString,
        response_deserializer=identity.ReinstateUserResponse.FromString,
    )(identity.ReinstateUserRequest(user_id=int(bob.id), action_id=1))
    await eventually(lambda: found(web, "secret", carol), [his, hers])
    await eventually(lambda: users_found(web, bob.username), [bob.username])


async def test_search_moderator_remove_and_restore_follow(web: Web) -> None:
    alice = await web.sign_up("alice")
    removed = await web.post(alice, "removed #again")
    await is_found(web, "removed", removed)
    moderation = web.mesh.process.channel("moderation")
    for name, ids in (("Remove", []), ("Restore", [removed])):
        request = getattr(tweet, f"{name}TweetRequest")(tweet_id=int(removed), action_id=1)
        await moderation.unary_unary(
            f"/roost.tweet.v1.TweetService/{name}Tweet",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(tweet, f"{name}TweetResponse").FromString,
        )(request)
        await indexed(web, alice)
        assert await found(web, "removed #again") == ids


async def test_search_edited_tweet_matches_new_text_only(web: Web) -> None:
    alice = await web.sign_up("alice")
    edited = await web.post(alice, "before #old")
    await is_found(web, "before", edited)
    assert (await web.call("PATCH", f"/v1/tweets/{edited}", alice, json={"text": "after #new"})).status_code == 200
    await is_found(web, "after #new", edited)
    assert await found(web, "before") == await found(web, "#old") == []


async def test_search_retweets_return_original_once(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    original = await web.post(alice, "worth repeating")
    assert (await web.call("POST", f"/v1/tweets/{original}/retweets", bob)).status_code == 200
    await indexed(web, bob)
    assert await found(web, "repeating") == [original]


async def test_search_one_route_returns_tweets_and_users(web: Web) -> None:
    walter = await web.sign_up("walter")
    about = await web.post(walter, "all about walter")
    await is_found(web, "walter", about)
    await eventually(lambda: users_found(web, "walter"), [walter.username])
    for wanted, tweets, users in (("", 1, 1), ("tweets", 1, 0), ("users", 0, 1)):
        page = await ask(web, "/search", params={"q": "walter"} | ({"type": wanted} if wanted else {}))
        assert (len(page["tweets"]), len(page["users"])) == (tweets, users)
    more = await web.post(walter, "walter again")
    await is_found(web, "walter", more, about)
    first = await ask(web, "/search?q=walter&order=latest&limit=1")
    assert ([tweet["id"] for tweet in first["tweets"]], len(first["users"])) == ([more], 1)
    params = {"q": "walter", "order": "latest", "limit": 1, "cursor": first["next_cursor"]}
    second = await ask(web, "/search", params=params)
    assert ([tweet["id"] for tweet in second["tweets"]], second["users"]) == ([about], [])


async def test_suggest_prefix_returns_users_and_tags(web: Web) -> None:
    alice, bob = await web.sign_up("pyotr"), await web.sign_up("bob")
    first = await web.post(alice, "#python #PyPI")
    await web.post(bob, "#Python")
    gone = await web.post(bob, "#pygone")
    await is_found(web, "#pygone", gone)
    await indexed(web, alice)
    await eventually(lambda: users_found(web, alice.username), [alice.username])
    assert await ask(web, "/v1/search/suggest?query=PY&limit=2") | {"users": []} == {
        "users": [],
        "tags": ["Python", "pygone"],
    }
    await web.call("DELETE", f"/v1/tweets/{gone}", bob)
    await web.call("DELETE", f"/v1/tweets/{first}", alice)
    await indexed(web, alice, bob)
    for query, users, tags in (
        ("py", [alice.username], ["Python"]),
        ("#py", [], ["Python"]),
        ("@py", [alice.username], []),
        ("#", [], []),
    ):
        answer = await ask(web, "/v1/search/suggest", params={"query": query})
        assert ([user["username"] for user in answer["users"]], answer["tags"]) == (users, tags), query


async def test_search_mentions_and_tags_list_newest_first(web: Web) -> None:
    alice, bob, carol = [await web.sign_up(name) for name in ("Alice", "bob", "carol")]
    first = await web.post(bob, f"hello @{alice.username} #news")
    second = await web.post(carol, f"@{alice.username.upper()}, look! #News")
    await web.post(carol, "alice without a sign, and no news")
    await indexed(web, bob, carol)

    async def mentions(reader: Person) -> list[str]:
        return [tweet["id"] for tweet in (await ask(web, "/v1/timelines/mentions", reader))["tweets"]]

    assert await mentions(alice) == [second, first]
    assert await mentions(bob) == []
    tagged = await ask(web, "/v1/tags/NEWS/tweets?page_size=1")
    assert [tweet["id"] for tweet in tagged["tweets"]] == [second]
    rest = await ask(web, "/tags/news/tweets", params={"cursor": tagged["next_cursor"]})
    assert [tweet["id"] for tweet in rest["tweets"]] == [first]
    assert (await web.call("GET", "/v1/tags/other/tweets", params={"cursor": tagged["next_cursor"]})).status_code == 400
    await web.call("POST", f"/v1/users/{bob.id}/mute", alice)
    assert await mentions(alice) == [second, first], "a mute hides from home and notifications"
    await web.call("POST", f"/v1/users/{bob.id}/block", alice)
    assert await mentions(alice) == [second]
    assert (await web.call("GET", "/v1/timelines/mentions")).status_code == 401


async def test_search_followed_author_ranks_first(web: Web) -> None:
    alice, bob, reader = [await web.sign_up(name) for name in ("alice", "bob", "reader")]
    hers, his = await web.post(alice, "best tea in town"), await web.post(bob, "best tea in town")
    await is_found(web, "tea", his, hers)
    assert await found(web, "tea", reader, order="top") == [his, hers]
    await web.call("POST", f"/v1/users/{alice.id}/follow", reader)
    assert await found(web, "tea", reader, order="top") == [hers, his]
    assert await found(web, "tea", reader) == [his, hers], "`latest` is not ranked"


@pytest.mark.parametrize("path", ["/v1/search/tweets", "/v1/search"])
async def test_search_without_order_ranks_best_first(web: Web, path: str) -> None:
    alice, bob, reader = [await web.sign_up(name) for name in ("alice", "bob", "reader")]
    word = f"coffee{reader.id}"
    hers, his = await web.post(alice, f"best {word} in town"), await web.post(bob, f"best {word} in town")
    await web.call("POST", f"/v1/users/{alice.id}/follow", reader)
    await is_found(web, word, his, hers)
    for order, ids in (({}, [hers, his]), ({"order": "top"}, [hers, his]), ({"order": "latest"}, [his, hers])):
        page = await ask(web, path, reader, params={"query": word, **order})
        assert [tweet["id"] for tweet in page["tweets"]] == ids, order


async def test_search_minus_excludes(web: Web) -> None:
    alice, bob = await web.sign_up("alice"), await web.sign_up("bob")
    sail, row, both = [
        await web.post(*post)
        for post in ((alice, "boats sail #sea"), (bob, "boats row"), (bob, "sail and row boats, well-known"))
    ]
    await is_found(web, "boats", both, row, sail)
    for query, ids in {
        "boats -sail": [row],
        'boats -"sail and"': [row, sail],
        "boats -#sea": [both, row],
        f"boats -from:{bob.username}": [sail],
        "boats -from:nobody": [both, row, sail],
        "boats well-known": [both],
        "boats - sail": [both, sail],
    }.items():
        for order in ("latest", "top"):
            assert sorted(await found(web, query, order=order), reverse=True) == ids, (query, order)
    for path in ("/v1/search/tweets", "/v1/search", "/v1/search/users"):
        refused = await web.call("GET", path, params={"query": "-sail"})
        assert (refused.status_code, refused.json()["violations"][0]["field"]) == (400, "query")
    await eventually(lambda: users_found(web, f"-sail {alice.username}"), [alice.username])


async def test_search_without_accents_matches_names_and_texts(web: Web) -> None:
    lodz, orsted = await web.sign_up("first"), await web.sign_up("second")
    await web.call("PATCH", "/v1/users/me", lodz, json={"display_name": "Łukasz z Łodzi"})
    await web.call("PATCH", "/v1/users/me", orsted, json={"display_name": "Ørsted مُحَمَّد"})
    tweet_id = await web.post(lodz, "Łódź, Đà Nẵng, Ærø #Łódź2026")
    await is_found(web, "łódź", tweet_id)
    for query in ("lodz", '"da nang"', "aero", "Lódz"):
        assert await found(web, query) == [tweet_id], query

    for query, wanted in (("lukasz", lodz), ("łukasz", lodz), ("orsted", orsted), ("محمد", orsted)):
        await eventually(lambda query=query: users_found(web, query), [wanted.username])  # type: ignore[misc]
    assert (await ask(web, "/v1/search/suggest", params={"query": "lod"}))["tags"] == ["Łódź2026"]


async def test_search_users_most_followed_first_pages_reach_all(web: Web) -> None:
    people = [await web.sign_up(f"person{n:02}") for n in range(12)]
    for person in people:
        await web.call("PATCH", "/v1/users/me", person, json={"display_name": "User"})
    # The newest user has the most followers.
    for follower, followee in ((0, 11), (1, 11), (2, 11), (0, 10), (1, 10), (0, 5)):
        await web.call("POST", f"/v1/users/{people[followee].id}/follow", people[follower])
    wanted = [people[n].username for n in (11, 10, 5, 0, 1, 2, 3, 4, 6, 7, 8, 9)]

    async def usernames(query: str = "user") -> list[str]:
        seen: list[str] = []
        cursor = ""
        while True:
            params = {"query": query, "page_size": 3, "cursor": cursor}
            page = await ask(web, "/v1/search/users", params=params)
            seen += [user["username"] for user in page["users"]]
            if not (cursor := page["next_cursor"]):
                return seen

    await eventually(usernames, wanted)
    assert await usernames("person") == wanted
    suggested = await ask(web, "/v1/search/suggest", params={"query": "use", "limit": 2})
    assert [user["username"] for user in suggested["users"]] == wanted[:2]
    await web.call("DELETE", f"/v1/users/{people[11].id}/follow", people[0])
    await web.call("DELETE", f"/v1/users/{people[11].id}/follow", people[1])
    await eventually(usernames, [people[n].username for n in (10, 5, 11, 0, 1, 2, 3, 4, 6, 7, 8, 9)])


async def test_search_users_name_prefix_matches(own_web: Web) -> None:
    names = {"anna": "Anna Livia", "ann": "Zed", "hannah": "Anna Two", "joe_ann": "Joe"}
    people = {name: await own_web.sign_up(name) for name in names}
    for name, display_name in names.items():
        await own_web.call("PATCH", "/v1/users/me", people[name], json={"display_name": display_name})
    await own_web.call("POST", f"/v1/users/{people['hannah'].id}/follow", people["anna"])

    async def usernames(query: str, path: str = "/search/users") -> list[str]:
        page = await ask(own_web, path, params={"query": query})
        return [user["username"] for user in page["users"]]

    # Order: exact username, usernames with the prefix, words in names; the most followed first in each group.
    await eventually(lambda: usernames("ANN"), ["ann", "anna", "hannah", "joe_ann"])
    # Events of different users arrive in any order.
    await eventually(lambda: usernames("livia"), ["anna"])
    for query, wanted in {
        "@anna": ["anna", "hannah"],
        "anna liv": ["anna"],
        "livia an": ["anna"],
        "nna": [],
        "anna three": [],
        "ann*": ["ann", "anna", "hannah", "joe_ann"],
        "  ": [],
    }.items():
        assert await usernames(query) == wanted, query
        assert await usernames(query, "/v1/search/suggest") == wanted, query
    first = await ask(own_web, "/v1/search/users?query=ann&page_size=3")
    second = await ask(
        own_web, "/v1/search/users", params={"query": "ann", "page_size": 3, "cursor": first["next_cursor"]}
    )
    assert [user["username"] for user in second["users"]] == ["joe_ann"]
    assert second["next_cursor"] == ""

    assert (await own_web.call("DELETE", "/v1/users/me", people["ann"])).status_code == 200
    assert await usernames("ann") == ["anna", "hannah", "joe_ann"], "hidden at once"


async def test_trending_tags_need_three_users(own_web: Web) -> None:
    people = [await own_web.sign_up(f"person{n}") for n in range(4)]

    async def trending(path: str = "/tags/trending") -> list[tuple[str, int]]:
        return [(tag["tag"], tag["tweets"]) for tag in (await ask(own_web, path))["tags"]]

    for n in range(30):
        await own_web.post(people[0], f"buy #spam {n}")
    await own_web.post(people[1], "#spam")
    for person in people[:3]:
        await own_web.post(person, "did you feel the #Earthquake?")
    await eventually(trending, [("Earthquake", 3)])
    last = [await own_web.post(person, "#four") for person in people][-1]
    await eventually(trending, [("four", 4), ("Earthquake", 3)])
    first = await ask(own_web, "/v1/tags/trending?page_size=1")
    assert [tag["tag"] for tag in first["tags"]] == ["four"]
    second = await ask(own_web, "/v1/tags/trending", params={"page_size": 1, "cursor": first["next_cursor"]})
    assert ([tag["tag"] for tag in second["tags"]], second["next_cursor"]) == (["Earthquake"], "")
    await own_web.call("DELETE", f"/v1/tweets/{last}", people[3])
    await own_web.call("POST", f"/v1/users/{people[0].id}/block", people[3])
    await eventually(lambda: trending("/v1/tags/trending?limit=100"), [("four", 3), ("Earthquake", 3)])


async def test_trending_tweets_rank_by_reacting_users(own_web: Web) -> None:
    alice, bob, carol, dave = [await own_web.sign_up(name) for name in ("alice", "bob", "carol", "dave")]
    quiet, liked, retweeted = [await own_web.post(alice, text) for text in ("quiet", "liked", "retweeted")]

    async def trending(reader: Person | None = None) -> list[str]:
        return [tweet["id"] for tweet in (await ask(own_web, "/tweets/trending", reader))["tweets"]]

    await own_web.call("POST", f"/v1/tweets/{quiet}/likes", bob)
    for person in (bob, carol):
        await own_web.call("POST", f"/v1/tweets/{liked}/likes", person)
    await eventually(trending, [liked])
    for person in (bob, carol, dave):
        await own_web.call("POST", f"/v1/tweets/{retweeted}/retweets", person)
    await eventually(trending, [retweeted, liked])
    await own_web.call("POST", f"/v1/users/{alice.id}/block", dave)
    assert await trending(dave) == []
    await own_web.call("DELETE", f"/v1/tweets/{liked}/likes", carol)
    await eventually(trending, [retweeted])
    await own_web.call("DELETE", f"/v1/tweets/{retweeted}", alice)
    assert await trending() == []


async def test_search_best_pages_reach_every_match_boosted_first(own_web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boosted tweets rank before newer and shorter ones, even if there are more of those than MATCHES_PER_LIST."""
    monkeypatch.setattr("services.search.best.MATCHES_PER_LIST", 3)
    friend, stranger, reader = [await own_web.sign_up(name) for name in ("friend", "stranger", "reader")]
    hers = await own_web.post(friend, "boats and more")
    tagged = await own_web.post(stranger, "#boats today")
    trending = await own_web.post(stranger, "boats and more")
    others = [await own_web.post(stranger, "boats today") for _ in range(11)]
    await own_web.call("POST", f"/v1/users/{friend.id}/follow", reader)
    for person in (friend, reader):
        await own_web.call("POST", f"/v1/tweets/{trending}/likes", person)
    await indexed(own_web, friend)
    await weighed(own_web, stranger)

    async def trends() -> list[str]:
        return [tweet["id"] for tweet in (await ask(own_web, "/tweets/trending"))["tweets"]]

    await eventually(trends, [trending])
    first = await found(own_web, "boats", reader, order="top", page_size=100)
    assert set(first[:3]) == {hers, tagged, trending}
    assert first[3:] == others[::-1]
    for size in (1, 4, 7, 14):
        seen: list[str] = []
        cursor = ""
        while True:
            params = {"query": "boats", "page_size": size, "cursor": cursor}
            page = await ask(own_web, "/v1/search/tweets", reader, params=params)
            seen += [tweet["id"] for tweet in page["tweets"]]
            if not (cursor := page["next_cursor"]):
                break
            assert len(page["tweets"]) == size
        assert seen == first, size
    # Deletions between pages do not move other tweets.
    page = await ask(own_web, "/v1/search/tweets", reader, params={"query": "boats", "page_size": 4})
    for gone in first[:2]:
        await own_web.call("DELETE", f"/v1/tweets/{gone}", friend if gone == hers else stranger)
    await indexed(own_web, stranger)
    params = {"query": "boats", "page_size": 100, "cursor": page["next_cursor"]}
    rest = await ask(own_web, "/v1/search/tweets", reader, params=params)
    assert [tweet["id"] for tweet in rest["tweets"]] == first[4:]


async def test_suggest_and_trends_after_delete_and_edit_are_updated(own_web: Web) -> None:
    people = [await own_web.sign_up(f"person{n}") for n in range(4)]
    dead = [await own_web.post(people[0], f"#topic{n:02} #topic{n:02}x") for n in range(20)]
    living = await own_web.post(people[0], "#topical")
    await is_found(own_web, "#topical", living)
    for tweet_id in dead:
        await own_web.call("DELETE", f"/v1/tweets/{tweet_id}", people[0])
    await indexed(own_web, people[0])
    assert (await ask(own_web, "/v1/search/suggest?query=topi"))["tags"] == ["topical"]

    typos = [await own_web.post(person, "#typo") for person in people[:3]]

    async def trending() -> list[tuple[str, int]]:
        return [(tag["tag"], tag["tweets"]) for tag in (await ask(own_web, "/tags/trending"))["tags"]]

    await eventually(trending, [("typo", 3)])
    for person, tweet_id, tag in zip(people, typos, ("Fixed", "fixed", "Fixed"), strict=False):
        await own_web.call("PATCH", f"/v1/tweets/{tweet_id}", person, json={"text": f"#{tag}"})
    await eventually(trending, [("Fixed", 3)])
    await is_found(own_web, "#fixed", *typos[::-1])
    assert (await ask(own_web, "/v1/search/suggest?query=ty"))["tags"] == []
    assert (await ask(own_web, "/v1/search/suggest?query=fi"))["tags"] == ["Fixed"]


async def test_search_after_reindex_returns_same_results(own_web: Web) -> None:
    own_web = own_web
    admin, alice = await own_web.admin(), await own_web.sign_up("alice")
    posted = [await own_web.post(alice, f"word {n}") for n in range(5)]
    await own_web.call("DELETE", f"/v1/tweets/{posted[0]}", alice)
    await indexed(own_web, alice)
    assert (await own_web.call("POST", "/admin/v1/search/reindex", alice, json={})).status_code == 403
    async with asyncio.timeout(SETTLE_WITHIN_S):
        # Only one index is built at a time: the first build of a new mesh may still run.
        while not (await ask(own_web, "/admin/v1/search/reindex", admin, json={}))["started"]:
            await asyncio.sleep(0.1)
    late = await own_web.post(alice, "word late")
    await is_found(own_web, "word", late, *posted[:0:-1])
    building = True
    while building:
        building = (await ask(own_web, "/admin/v1/search/reindex", admin))["building"]
        assert await found(own_web, "word") == [late, *posted[:0:-1]]


@pytest.mark.parametrize("wire", WIRES)
async def test_search_over_both_wires_returns_results(start_mesh: MeshFactory, wire: Wire) -> None:
    mesh = await start_mesh(wire=wire)
    alice, bob = await mesh.people("alice", "bob")
    posted = await mesh.post(alice, "over the #wire to @bob")
    search = SearchServiceStub(mesh.process.channel(""))

    async def look() -> list[int]:
        return [one.id for one in (await search.SearchTweets(pb.SearchTweetsRequest(query="wire"))).tweets]

    await eventually(look, [posted])

    async def both() -> list[int]:
        return [user.id for user in (await search.Search(pb.SearchRequest(query="bob"))).users]

    async def suggested() -> list[int]:
        return [user.id for user in (await search.Suggest(pb.SuggestRequest(query="al"))).users]

    # Events of different users arrive in any order.
    await eventually(both, [bob])
    await eventually(suggested, [alice])


KILLED = """
import asyncio, os, pathlib, signal, sys
from roost.search.v1 import search_service_pb2 as pb
from roost.search.v1.search_service_pb2_grpc import SearchServiceStub
from tests.conftest import Mesh, mesh_settings, start_process

async def main():
    process = await start_process(mesh_settings(pathlib.Path(sys.argv[1])), wire="inprocess")
    mesh = Mesh(process, "inprocess")
    search = SearchServiceStub(process.channel(""))
    (author,) = await mesh.people("author")
    posted = []
    # At the kill some changes are committed to the index, and others are only in its overlay in memory.
    for n in range(60):
        posted.append(await mesh.post(author, f"survivor {n}"))
        await asyncio.sleep(0.03)
    await mesh.delete(author, posted.pop(7))
    while len((await search.SearchTweets(pb.SearchTweetsRequest(query="survivor", page_size=100))).tweets) < 59:
        await asyncio.sleep(0.001)
    print(*posted, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_search_after_kill_returns_same_results(start_mesh: MeshFactory, tmp_path: Path) -> None:
    """Changes that the index had not committed are consumed again from the log, after the position in the index."""
    folder = tmp_path / "killed"
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, folder],
        cwd=TESTS,
        env=os.environ | environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    posted = [int(word) for word in killed.stdout.split() if word.isdigit()]
    assert len(posted) == 59, killed.stderr
    mesh = await start_mesh(data_dir=folder)
    search = SearchServiceStub(mesh.process.channel(""))

    async def look() -> list[int]:
        page = await search.SearchTweets(
            pb.SearchTweetsRequest(query="survivor", page_size=100, order=pb.SEARCH_ORDER_LATEST)
        )
        return [one.id for one in page.tweets]

    if backend.name == "embedded":
        assert (folder / "search" / "state.json").exists(), "the index was written before the kill"
    await eventually(look, posted[::-1])

    async def look_for_author() -> list[str]:
        return [user.username for user in (await search.SearchUsers(pb.SearchUsersRequest(query="auth"))).users]

    await eventually(look_for_author, ["author"])


@pytest.mark.embedded
async def test_search_lost_index_is_rebuilt(start_mesh: MeshFactory, tmp_path: Path) -> None:
    folder = tmp_path / "lost"
    mesh = await start_mesh(data_dir=folder)
    (alice,) = await mesh.people("alice")
    posted = await mesh.post(alice, "derived state is disposable")
    await mesh.process.stop()
    for path in (folder / "search").rglob("*"):
        if path.is_file() and path.name != "lock":
            path.write_bytes(b"garbage")
    mesh = await start_mesh(data_dir=folder)
    search = SearchServiceStub(mesh.process.channel(""))

    async def look() -> list[int]:
        return [one.id for one in (await search.SearchTweets(pb.SearchTweetsRequest(query="disposable"))).tweets]

    await eventually(look, [posted])
