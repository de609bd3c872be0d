"""Replies and threads over HTTP: contents for each reader on the next read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from roost.graph.v1 import graph_service_pb2
from roost.tweet.v1 import reply_service_pb2, reply_service_pb2_grpc, tweet_service_pb2, tweet_service_pb2_grpc

from services.tweet.threads import MAX_DEPTH
from tests.conftest import Mesh
from tests.functional.conftest import Person, Web, unique


async def ok(web: Web, method: str, path: str, person: Person | None = None, **options: Any) -> Any:
    answer = await web.call(method, path, person, **options)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def status(web: Web, method: str, path: str, person: Person | None = None, **options: Any) -> int:
    return (await web.call(method, path, person, **options)).status_code


async def reply(web: Web, person: Person, tweet_id: str, text: str = "so true", **fields: Any) -> str:
    answer = await web.call("POST", f"/v1/tweets/{tweet_id}/replies", person, json={"text": text, **fields})
    assert answer.status_code == 201, answer.text
    reply_id: str = answer.json()["id"]
    return reply_id


async def replies(web: Web, tweet_id: str, reader: Person | None = None, page_size: int = 100) -> list[str]:
    """Returns the ids of all replies, read page by page."""
    found: list[str] = []
    cursor = ""
    while True:
        query = f"?page_size={page_size}&cursor={cursor}"
        page = await ok(web, "GET", f"/v1/tweets/{tweet_id}/replies{query}", reader)
        found += [tweet["id"] for tweet in page["tweets"]]
        assert len(page["tweets"]) <= page_size
        cursor = page["next_cursor"]
        if not cursor:
            return found


async def thread(
    web: Web, tweet_id: str, reader: Person | None = None, page_size: int = 100
) -> list[tuple[str, int, bool]]:
    """Returns (id, depth, is a tombstone) of every tweet of the thread, read page by page."""
    found: list[tuple[str, int, bool]] = []
    cursor = ""
    while True:
        query = f"?page_size={page_size}&cursor={cursor}"
        page = await ok(web, "GET", f"/v1/tweets/{tweet_id}/thread{query}", reader)
        for tweet, depth in zip(page["tweets"], page["depths"], strict=True):
            assert tweet["deleted"] == (tweet["author_id"] == "0") == (tweet["text"] == "")
            found.append((tweet["id"], depth, tweet["deleted"]))
        cursor = page["next_cursor"]
        if not cursor:
            return found


async def people(web: Web, *names: str) -> list[Person]:
    return [await web.sign_up(name) for name in names]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tweets/{}/replies", {"text": "so true"}),
        ("/tweets/{}/comments", {"content": "so true"}),
        ("/reply", {"content": "so true", "tweet_id": "{}"}),
        ("/v1/tweets", {"text": "so true", "reply_to_id": "{}"}),
    ],
)
async def test_create_reply_every_route_shows_reply_on_next_read(web: Web, path: str, body: dict[str, str]) -> None:
    alice, bob = await people(web, "alice", "bob")
    tweet_id = await web.post(alice, "hers")
    filled = {key: value.format(tweet_id) for key, value in body.items()}
    answer = await web.call("POST", path.format(tweet_id), bob, json=filled)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["text"], made["author"]["username"]) == ("so true", bob.username)
    assert (made["reply_to_id"], made["conversation_id"]) == (tweet_id, tweet_id)
    assert (await ok(web, "GET", f"/v1/tweets/{made['id']}", bob)) == made
    assert await replies(web, tweet_id) == [made["id"]]
    assert await thread(web, tweet_id) == [(tweet_id, 0, False), (made["id"], 1, False)]
    assert (await ok(web, "GET", f"/v1/tweets/{tweet_id}"))["metrics"]["replies"] == 1
    assert [tweet["id"] for tweet in (await ok(web, "GET", f"/v1/users/{bob.id}/tweets"))["tweets"]] == [made["id"]]
    # The home timeline shows all replies of the reader.
    assert await web.home(bob) == [made["id"]]


async def test_create_reply_invalid_target_or_body_is_refused(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    tweet_id = await web.post(alice, "hers")
    body = {"text": "so true"}
    assert await status(web, "POST", "/v1/tweets/404/replies", bob, json=body) == 404
    assert await status(web, "POST", f"/v1/tweets/{tweet_id}/replies", json=body) == 401
    assert await status(web, "POST", f"/v1/tweets/{tweet_id}/replies", bob, json={}) == 400
    assert await status(web, "POST", "/reply", bob, json=body) == 400
    assert await status(web, "POST", f"/v1/tweets/{tweet_id}/replies", bob, json=body | {"user_id": alice.id}) == 403
    assert await status(web, "POST", f"/v1/tweets/{tweet_id}/replies", bob, json={"text": "x" * 281}) == 400
    await ok(web, "DELETE", f"/v1/tweets/{tweet_id}", alice)
    assert await status(web, "POST", f"/v1/tweets/{tweet_id}/replies", bob, json=body) == 404


async def test_create_reply_repeated_key_makes_one_reply(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    tweet_id, other_id = await web.post(alice, "one"), await web.post(alice, "two")
    headers = {"idempotency-key": "k"}

    async def post(target: str, text: str) -> Any:
        return await web.call("POST", f"/v1/tweets/{target}/replies", bob, json={"text": text}, headers=headers)

    answers = await asyncio.gather(*(post(tweet_id, "so true") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await replies(web, tweet_id)) == 1
    assert (await post(tweet_id, "not so")).status_code == 409
    assert (await post(other_id, "so true")).status_code == 409
    # Keys of tweets and keys of replies are separate.
    answer = await web.call("POST", "/v1/tweets", bob, json={"text": "so true"}, headers=headers)
    assert answer.status_code == 201
    assert answer.json()["reply_to_id"] == "0"


@pytest.mark.parametrize("spelling", ["/v1/replies/{}", "/reply/{}"])
async def test_edit_and_delete_reply_follow_rules_of_tweets(web: Web, spelling: str) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    tweet_id = await web.post(alice, "hers")
    reply_id = await reply(web, bob, tweet_id, "first")
    path = spelling.format(reply_id)
    await thread(web, tweet_id, carol)
    changed = await ok(web, "PATCH", path, bob, json={"content": "second"})
    assert (changed["text"], changed["original_text"], changed["edited"]) == ("second", "first", True)
    for listing in ("replies", "thread"):
        page = await ok(web, "GET", f"/v1/tweets/{tweet_id}/{listing}", carol)
        assert page["tweets"][-1] == changed
    for number in range(4):
        await ok(web, "PATCH", path, bob, json={"text": str(number)})
    assert (await web.call("PATCH", path, bob, json={"text": "once more"})).json()["code"] == "edit_limit"
    assert await status(web, "PATCH", path, alice, json={"text": "mine"}) == 403
    assert await status(web, "DELETE", path, alice) == 403
    await ok(web, "DELETE", path, bob)
    await ok(web, "DELETE", path, bob)
    assert await status(web, "GET", f"/v1/tweets/{reply_id}", bob) == 404
    assert await status(web, "PATCH", path, bob, json={"text": "back"}) == 404
    assert await replies(web, tweet_id) == []
    assert await thread(web, tweet_id) == [(tweet_id, 0, False), (reply_id, 1, True)]
    assert (await ok(web, "GET", f"/v1/tweets/{tweet_id}"))["metrics"]["replies"] == 0


async def test_edit_and_delete_reply_of_other_tweet_return_404(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    tweet_id, other_id = await web.post(alice, "hers"), await web.post(alice, "another")
    reply_id = await reply(web, alice, tweet_id)
    for path in (f"/v1/replies/{tweet_id}", f"/tweets/{other_id}/comments/{tweet_id}", "/reply/404"):
        assert await status(web, "DELETE", path, alice) == 404
    for target in (tweet_id, "404"):
        assert await status(web, "PATCH", f"/reply/{target}", alice, json={"text": "x"}) == 404
    assert await status(web, "DELETE", f"/tweets/{other_id}/comments/{reply_id}", alice) == 404
    assert await status(web, "DELETE", f"/tweets/{tweet_id}/comments/{reply_id}", bob) == 403
    assert await replies(web, tweet_id) == [reply_id], "nothing happened so far"
    await ok(web, "DELETE", f"/tweets/{tweet_id}/comments/{reply_id}", alice)
    assert await replies(web, tweet_id) == []


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
async def test_list_replies_is_newest_first_without_hidden_replies(web: Web, page_size: int) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    tweet_id = await web.post(alice, "hers")
    made = [await reply(web, (alice, bob, carol)[n % 3], tweet_id, str(n)) for n in range(9)]
    await reply(web, alice, made[0], "no direct one")
    await ok(web, "DELETE", f"/v1/replies/{made[3]}", alice)
    await ok(web, "POST", f"/v1/users/{bob.id}/block", carol)
    live = [i for i in made if i != made[3]]
    assert await replies(web, tweet_id, alice, page_size) == live[::-1]
    bobs = made[1::3]
    assert await replies(web, tweet_id, carol, page_size) == [i for i in live[::-1] if i not in bobs]


async def test_list_replies_and_thread_of_hidden_tweet_return_404(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    tweet_id = await web.post(alice, "hers")
    await reply(web, alice, tweet_id)
    paths = [f"/v1/tweets/{tweet_id}/{name}" for name in ("replies", "thread", "quotes", "retweets")]
    for path in paths:
        assert await status(web, "GET", path, bob) == 200
        assert await status(web, "GET", path.replace(tweet_id, "404"), bob) == 404
    await ok(web, "POST", f"/v1/users/{bob.id}/block", alice)
    assert [await status(web, "GET", path, bob) for path in paths] == [404] * 4
    assert [await status(web, "GET", path) for path in paths] == [200] * 4
    await ok(web, "DELETE", f"/v1/tweets/{tweet_id}", alice)
    assert [await status(web, "GET", path, alice) for path in paths] == [404] * 4


async def test_thread_shows_ancestors_and_replies_in_order(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    root = await web.post(alice, "root")
    one = await reply(web, bob, root, "one")
    two = await reply(web, alice, root, "two")
    below = await reply(web, alice, one, "below one")
    lowest = await reply(web, bob, below, "lowest")
    under_two = await reply(web, bob, two, "under two")
    every = [(root, 0), (one, 1), (below, 2), (lowest, 3), (two, 1), (under_two, 2)]
    for page_size in (1, 2, 3, 5, 6, 7):
        assert await thread(web, root, page_size=page_size) == [(i, depth, False) for i, depth in every]
    assert await thread(web, below) == [(i, depth, False) for i, depth in every[:4]]
    assert await thread(web, below, page_size=1) == [(i, depth, False) for i, depth in every[:4]]
    page = await ok(web, "GET", f"/tweets/{root}/thread?limit=2", bob)
    assert [tweet["text"] for tweet in page["tweets"]] == ["root", "one"]
    assert {tweet["conversation_id"] for tweet in page["tweets"]} == {root}
    assert await status(web, "GET", f"/v1/tweets/{one}/thread?cursor={page['next_cursor']}", bob) == 400
    assert await status(web, "GET", f"/v1/tweets/{root}/thread?page_size=101", bob) == 400


@pytest.mark.slow
async def test_thread_longer_than_max_depth_is_cut(web: Web) -> None:
    (alice,) = await people(web, "alice")
    chain = [await web.post(alice, "0")]
    for number in range(1, MAX_DEPTH + 3):
        chain.append(await reply(web, alice, chain[-1], str(number)))
    assert [i for i, _, _ in await thread(web, chain[0])] == chain[: MAX_DEPTH + 1]
    lowest = await thread(web, chain[-1])
    assert lowest[0] == (chain[0], 0, False)
    assert lowest[1:] == [(i, chain.index(i), False) for i in chain[-len(lowest) + 1 :]]
    assert len(lowest) == 100


async def test_thread_deleted_and_hidden_tweets_are_tombstones(web: Web) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    root = await web.post(alice, "root")
    middle = await reply(web, bob, root, "middle")
    leaf = await reply(web, carol, middle, "leaf")
    whole = [(root, 0, False), (middle, 1, False), (leaf, 2, False)]
    assert await thread(web, root, carol) == whole

    await ok(web, "POST", f"/v1/users/{bob.id}/block", carol)
    for tweet_id in (root, leaf):
        assert await thread(web, tweet_id, carol) == [(root, 0, False), (middle, 1, True), (leaf, 2, False)]
    assert await thread(web, root, bob) == [(root, 0, False), (middle, 1, False), (leaf, 2, True)]
    assert await thread(web, root, alice) == whole
    await ok(web, "DELETE", f"/v1/users/{bob.id}/block", carol)
    assert await thread(web, root, carol) == whole

    await ok(web, "DELETE", f"/v1/replies/{middle}", bob)
    for reader in (alice, bob, carol, None):
        assert await thread(web, leaf, reader) == [(root, 0, False), (middle, 1, True), (leaf, 2, False)]
    tombstone = (await ok(web, "GET", f"/v1/tweets/{root}/thread", alice))["tweets"][1]
    assert (tombstone["reply_to_id"], tombstone["author_id"]) == (root, "0")
    await ok(web, "DELETE", f"/v1/tweets/{root}", alice)
    assert await thread(web, leaf) == [(root, 0, True), (middle, 1, True), (leaf, 2, False)]


async def test_deleted_parent_hides_reply_at_home_and_not_in_thread(web: Web) -> None:
    alice, bob, carol = await people(web, "alice", "bob", "carol")
    for followee in (alice, bob):
        await ok(web, "POST", f"/v1/users/{followee.id}/follow", carol)
    root = await web.post(alice, "root")
    answer = await reply(web, bob, root)
    await web.mesh.settled()
    assert await web.home(carol) == [answer, root]
    await ok(web, "DELETE", f"/v1/tweets/{root}", alice)
    assert await web.home(carol) == []
    assert await web.home(bob) == [answer], "one's own replies stay"
    assert await thread(web, answer, carol) == [(root, 0, True), (answer, 1, False)]
    assert await status(web, "GET", f"/v1/tweets/{root}/replies", carol) == 404


@pytest.mark.parametrize("blocker", ["alice", "bob"])
async def test_block_refuses_replies_both_ways(web: Web, blocker: str) -> None:
    alice, bob = await people(web, "alice", "bob")
    hers, his = await web.post(alice, "hers"), await web.post(bob, "his")
    old = await reply(web, bob, hers)
    one, other = (alice, bob) if blocker == "alice" else (bob, alice)
    await ok(web, "POST", f"/v1/users/{other.id}/block", one)
    for person, target in ((alice, his), (bob, hers)):
        for path in (f"/v1/tweets/{target}/replies", f"/tweets/{target}/comments"):
            assert await status(web, "POST", path, person, json={"text": "so true"}) == 403
        assert await status(web, "POST", "/reply", person, json={"text": "x", "tweet_id": target}) == 403
    assert await replies(web, hers, alice) == []
    assert await replies(web, hers) == [old]
    # Users can delete their own replies after a block.
    await ok(web, "DELETE", f"/v1/replies/{old}", bob)
    assert await replies(web, hers) == []


async def test_reply_to_retweet_belongs_to_original(web: Web) -> None:
    alice, bob = await people(web, "alice", "bob")
    root = await web.post(alice, "root")
    shared = (await ok(web, "POST", f"/v1/tweets/{root}/retweets", bob))["id"]
    answer = await reply(web, bob, shared)
    assert (await ok(web, "GET", f"/v1/tweets/{answer}"))["reply_to_id"] == root
    assert await replies(web, shared) == await replies(web, root) == [answer]
    assert await thread(web, shared) == await thread(web, root) == [(root, 0, False), (answer, 1, False)]
    await ok(web, "DELETE", f"/tweets/{shared}/comments/{answer}", bob)


async def test_list_quotes_and_retweeters_is_newest_first(web: Web) -> None:
    alice, *others = await people(web, "alice", "bob", "carol", "dave")
    root = await web.post(alice, "root")
    quotes = []
    for person in others:
        body = {"text": "look", "quote_of_id": root}
        quotes.append((await ok(web, "POST", "/v1/tweets", person, json=body))["id"])
        await ok(web, "POST", f"/v1/tweets/{root}/retweets", person)
        found = await ok(web, "GET", f"/v1/tweets/{root}/retweets", person)
        assert found["users"][0]["id"] == person.id, "on the next read"

    async def pages(name: str, field: str, reader: Person | None) -> list[str]:
        found: list[str] = []
        cursor = ""
        while True:
            page = await ok(web, "GET", f"/v1/tweets/{root}/{name}?page_size=1&cursor={cursor}", reader)
            found += [one["id"] for one in page[field]]
            cursor = page["next_cursor"]
            if not cursor:
                return found

    bob, carol, dave = others
    assert await pages("quotes", "tweets", alice) == quotes[::-1]
    assert await pages("retweets", "users", alice) == [dave.id, carol.id, bob.id]
    await ok(web, "POST", f"/v1/users/{carol.id}/block", bob)
    assert await pages("quotes", "tweets", bob) == [quotes[2], quotes[0]]
    assert await pages("retweets", "users", bob) == [dave.id, bob.id]
    assert await pages("retweets", "users", carol) == [dave.id, carol.id]
    await ok(web, "DELETE", f"/v1/tweets/{quotes[2]}", dave)
    await ok(web, "DELETE", f"/v1/tweets/{root}/retweets", dave)
    assert await pages("quotes", "tweets", None) == [quotes[1], quotes[0]]
    assert await pages("retweets", "users", None) == [carol.id, bob.id]


async def test_replies_and_threads_over_grpc_return_typed_messages(shared_mesh: Mesh) -> None:
    mesh, bob_name = shared_mesh, unique("bob")
    alice, bob = await mesh.people(unique("alice"), bob_name)
    channel = mesh.process.channel("")
    stub: Any = reply_service_pb2_grpc.ReplyServiceStub(channel)
    tweets: Any = tweet_service_pb2_grpc.TweetServiceStub(channel)
    root = await mesh.post(alice, "root")
    with mesh.as_user(bob):
        made = (await stub.CreateReply(reply_service_pb2.CreateReplyRequest(tweet_id=root, text="one"))).tweet
        assert (made.reply_to_id, made.author.username) == (root, bob_name)
        changed = await stub.UpdateReply(reply_service_pb2.UpdateReplyRequest(reply_id=made.id, text="two"))
        assert changed.tweet.original_text == "one"
        page = await stub.ListReplies(reply_service_pb2.ListRepliesRequest(tweet_id=root))
        assert list(page.tweets) == [changed.tweet]
        await tweets.Retweet(tweet_service_pb2.RetweetRequest(tweet_id=root))
        people = await tweets.ListRetweeters(tweet_service_pb2.ListRetweetersRequest(tweet_id=root))
        assert [user.username for user in people.users] == [bob_name]
        quote = await tweets.CreateTweet(tweet_service_pb2.CreateTweetRequest(text="look", quote_of_id=root))
        quotes = await tweets.ListQuotes(tweet_service_pb2.ListQuotesRequest(tweet_id=root))
        assert list(quotes.tweets) == [quote.tweet]
        await mesh.graph.Block(graph_service_pb2.BlockRequest(user_id=alice))
    with mesh.as_user(alice):
        thread = await stub.GetThread(reply_service_pb2.GetThreadRequest(tweet_id=root))
    assert [(tweet.id, tweet.deleted) for tweet in thread.tweets] == [(root, False), (made.id, True)]
    assert list(thread.depths) == [0, 1]
    with mesh.as_user(bob):
        await stub.DeleteReply(reply_service_pb2.DeleteReplyRequest(reply_id=made.id, tweet_id=root))


@pytest.mark.slow
async def test_thread_read_while_others_reply_holds_every_acknowledged_reply(web: Web) -> None:
    """Each write runs beside three reads of the same thread, which must not make its cache miss the reply."""
    alice, bob = await people(web, "alice", "bob")
    root = await web.post(alice, "root")

    async def write(person: Person) -> None:
        for number in range(15):
            made, *_ = await asyncio.gather(
                reply(web, person, root, str(number)), *(thread(web, root) for _ in range(3))
            )
            assert made in [i for i, _, _ in await thread(web, root, person)]
            assert made in await replies(web, root, person)

    await asyncio.gather(write(alice), write(bob))
    assert len(await replies(web, root)) == 30
