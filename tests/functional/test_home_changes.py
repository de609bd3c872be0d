"""Home pages after a change of something that they show: the next read shows it, although tweets are cached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from roost.fanout.v1 import fanout_service_pb2 as fanout
from roost.graph.v1 import graph_service_pb2 as graph
from roost.timeline.v1 import timeline_service_pb2 as timeline
from roost.tweet.v1 import tweet_service_pb2 as pb
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.engagement import server as engagement_server
from services.timeline.followees import FolloweeCache, FolloweeSet
from tests.conftest import SETTLE_WITHIN_S
from tests.functional.conftest import PASSWORD, Person, Web, module_mesh, open_web

HOME = "/v1/timelines/home"
MARGIN_S = 0.1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_quick(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Web]:
    """The gateway over a mesh with a clock margin of MARGIN_S."""
    async with module_mesh(tmp_path_factory.mktemp("quick"), clock_margin_s=MARGIN_S) as mesh:
        server, client = await open_web(mesh, mesh.process.settings)
        async with client:
            yield Web(mesh, client, shared=True)
        await server.stop()


async def delivery_of(web: Web, tweet_id: str) -> Any:
    """Returns a tweet's delivery state once fan-out has handled all events."""
    await web.mesh.settled()
    request = fanout.GetFanoutStatusRequest(tweet_id=int(tweet_id))
    return (await web.mesh.fanout.GetFanoutStatus(request)).state


class Home:
    """The home timeline of Bob, who follows Ann; it holds only tweets that fan-out delivered. Cyd follows none of them."""

    def __init__(self, web: Web, ann: Person, bob: Person, cyd: Person, tweet_id: str) -> None:
        self.web = web
        self.ann, self.bob, self.cyd = ann, bob, cyd
        self.tweet_id = tweet_id

    @classmethod
    async def open(cls, web: Web) -> Home:
        ann, bob, cyd = [await web.sign_up(name) for name in ("ann_a", "bob_b", "cyd_c")]
        assert (await web.call("POST", f"/v1/users/{ann.id}/follow", bob)).is_success
        tweet_id = await web.post(ann, "hello")
        await asyncio.sleep(MARGIN_S + 0.05)
        request = timeline.RebuildHomeTimelineRequest(user_id=int(bob.id))
        await web.mesh.operator_timelines.RebuildHomeTimeline(request)
        home = cls(web, ann, bob, cyd, tweet_id)
        await home.read()
        return home

    async def read(self) -> list[dict[str, Any]]:
        """Returns the page's tweets, and leaves the tweets and the whole page in the caches for the next read."""
        # The second read finds all tweets in the cache, so the third may find the page.
        first, *later = [(await self.web.call("GET", HOME, self.bob)).json() for _ in range(3)]
        assert later == [first, first]
        return list(first["tweets"])

    async def act(self, method: str, path: str, person: Person, **options: Any) -> None:
        answer = await self.web.call(method, path, person, **options)
        assert answer.is_success, answer.text


async def test_home_shows_tweet_after_delivery(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    await shared_quick.mesh.fanout.PauseFanout(fanout.PauseFanoutRequest())
    try:
        posted = await shared_quick.post(home.ann, "one more")
        assert [tweet["id"] for tweet in await home.read()] == [home.tweet_id]
    finally:
        await shared_quick.mesh.fanout.ResumeFanout(fanout.ResumeFanoutRequest())
    await shared_quick.mesh.settled()
    assert [tweet["id"] for tweet in await home.read()] == [posted, home.tweet_id]


async def test_home_shows_own_tweet_at_once(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    posted = await shared_quick.post(home.bob, "mine")
    assert [tweet["id"] for tweet in await home.read()] == [posted, home.tweet_id]


async def test_home_counts_and_flags_show_on_next_read(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    likes = f"/v1/tweets/{home.tweet_id}/likes"
    await home.act("POST", likes, home.cyd, json={})
    (tweet,) = await home.read()
    assert (tweet["metrics"]["likes"], "viewer" in tweet) == (1, False)
    await home.act("POST", likes, home.bob, json={})
    (tweet,) = await home.read()
    assert (tweet["metrics"]["likes"], tweet["viewer"]["liked"]) == (2, True)
    await home.act("POST", f"/v1/tweets/{home.tweet_id}/retweets", home.bob, json={})
    shown = {tweet["id"]: tweet for tweet in await home.read()}
    assert (shown[home.tweet_id]["metrics"]["retweets"], shown[home.tweet_id]["viewer"]["retweeted"]) == (1, True)


async def test_home_shows_own_like_after_return_of_its_reader(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    mesh, tweet = shared_quick.mesh, f"/v1/tweets/{home.tweet_id}"
    await home.act("POST", f"{tweet}/likes", home.bob, json={})
    await home.act("POST", f"{tweet}/retweets", home.cyd, json={})
    await home.act("DELETE", "/v1/users/me", home.bob)
    await mesh.absences_counted()
    absences = mesh.event_log().running[engagement_server.ABSENCES]
    absences.pause()
    try:
        login = {"username": home.bob.username, "password": PASSWORD, "reactivate": True}
        answer = await shared_quick.client.post("/v1/auth/login", json=login)
        home.bob.token = answer.json()["access_token"]
        # Counts do not include the like yet.
        assert [shown["metrics"]["likes"] for shown in await home.read()] == [0]
    finally:
        absences.resume()
    await mesh.absences_counted()
    # Another reader leaves the tweet with its new count in the cache.
    assert (await shared_quick.call("GET", tweet, home.cyd)).json()["metrics"]["likes"] == 1
    assert [(shown["metrics"]["likes"], shown["viewer"]["liked"]) for shown in await home.read()] == [(1, True)]


async def test_home_shows_edits_renames_and_deletes(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    await home.act("PATCH", f"/v1/tweets/{home.tweet_id}", home.ann, json={"text": "mended"})
    assert [tweet["text"] for tweet in await home.read()] == ["mended"]
    await home.act("PATCH", "/v1/users/me", home.ann, json={"display_name": "Ann the First"})
    assert [tweet["author"]["display_name"] for tweet in await home.read()] == ["Ann the First"]
    await home.act("DELETE", f"/v1/tweets/{home.tweet_id}", home.ann)
    answer = await shared_quick.call("GET", HOME, home.bob)
    assert answer.json()["tweets"] == []


@pytest.mark.parametrize(
    ("path", "by"),
    [("/v1/users/{ann}/mute", "bob"), ("/v1/users/{ann}/block", "bob"), ("/v1/users/{bob}/block", "ann")],
)
async def test_home_hides_muted_and_blocked_authors(shared_quick: Web, path: str, by: str) -> None:
    home = await Home.open(shared_quick)
    await home.act("POST", path.format(ann=home.ann.id, bob=home.bob.id), getattr(home, by))
    assert (await shared_quick.call("GET", HOME, home.bob)).json()["tweets"] == []


async def test_home_shows_restored_tweet_after_many_new_ones_that_are_hidden(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    moderation = TweetServiceStub(shared_quick.mesh.process.channel("moderation"))
    await home.act("POST", f"/v1/users/{home.cyd.id}/follow", home.bob)
    await home.act("POST", f"/v1/users/{home.cyd.id}/mute", home.bob)
    first, removed = [await shared_quick.post(home.ann, text) for text in ("first", "removed")]
    for number in range(4):
        await shared_quick.post(home.cyd, f"hidden {number}")
    await moderation.RemoveTweet(pb.RemoveTweetRequest(tweet_id=int(removed), action_id=1))
    await shared_quick.mesh.settled()
    await asyncio.sleep(MARGIN_S + 0.05)
    request = timeline.RebuildHomeTimelineRequest(user_id=int(home.bob.id))
    await shared_quick.mesh.operator_timelines.RebuildHomeTimeline(request)

    async def newest() -> list[str]:
        pages = [(await shared_quick.call("GET", f"{HOME}?page_size=1", home.bob)).json() for _ in range(3)]
        return [page["tweets"][0]["id"] for page in pages]

    assert await newest() == [first] * 3
    # After these the first batch of ids does not reach down to the shown tweet.
    for number in range(2):
        await shared_quick.post(home.cyd, f"hidden too {number}")
        await shared_quick.mesh.settled()
        assert await newest() == [first] * 3
    await moderation.RestoreTweet(pb.RestoreTweetRequest(tweet_id=int(removed), action_id=1))
    await shared_quick.mesh.settled()
    assert await newest() == [removed] * 3


async def test_home_after_unfollow_during_read_hides_author(shared_quick: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    home = await Home.open(shared_quick)
    fetch = FolloweeCache.fetch

    async def unfollowing(self: FolloweeCache, user_id: int) -> FolloweeSet:
        found = await fetch(self, user_id)
        monkeypatch.undo()
        await home.act("DELETE", f"/v1/users/{home.ann.id}/follow", home.bob)
        return found

    # The next read gets the followees again, and then the users whom Bob may not see.
    await home.act("POST", f"/v1/users/{home.cyd.id}/mute", home.bob)
    monkeypatch.setattr(FolloweeCache, "fetch", unfollowing)
    assert (await shared_quick.call("GET", HOME, home.bob)).is_success
    assert await home.read() == []


async def test_home_shows_tweet_of_new_celebrity(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    request = graph.ReclassifyUserRequest(user_id=int(home.ann.id), tier=graph.TIER_CHOICE_CELEBRITY)
    await shared_quick.mesh.operator_graph.ReclassifyUser(request)
    posted = [home.tweet_id]
    async with asyncio.timeout(SETTLE_WITHIN_S):
        # The new tier reaches fan-out later than the answer of ReclassifyUser.
        while await delivery_of(shared_quick, posted[0]) != fanout.FANOUT_STATE_PULLED:
            posted.insert(0, await shared_quick.post(home.ann, f"number {len(posted)}"))
    assert [tweet["id"] for tweet in await home.read()] == posted
    posted.insert(0, await shared_quick.post(home.ann, "from afar"))
    assert [tweet["id"] for tweet in await home.read()] == posted


async def test_home_is_not_served_to_other_users(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    assert (await shared_quick.call("GET", HOME, home.cyd)).json()["tweets"] == []
    assert (await shared_quick.call("GET", HOME)).status_code == 401
    assert [tweet["id"] for tweet in await home.read()] == [home.tweet_id]


async def test_home_matching_etag_returns_304(shared_quick: Web) -> None:
    home = await Home.open(shared_quick)
    tag = (await shared_quick.call("GET", HOME, home.bob)).headers["etag"]
    answer = await shared_quick.call("GET", HOME, home.bob, headers={"if-none-match": tag})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    await shared_quick.post(home.bob, "mine")
    assert (await shared_quick.call("GET", HOME, home.bob, headers={"if-none-match": tag})).status_code == 200
