"""Compares everything that people do with a brute-force model, in random histories on the real services in one process.

Home timelines are so short that every history trims them and reads pages below their floor. Changes that act at once (own
posts, edits, deletes, counts, unfollows, blocks, mutes, suspensions) are compared at once, others' posts after fan-out has
delivered them. Stored timelines are lost, events arrive twice and out of order, the whole log is replayed, fan-out pauses,
and authors become celebrities and cease to be.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from prometheus_client import REGISTRY
from roost.engagement.v1 import engagement_service_pb2 as engagement
from roost.engagement.v1.engagement_service_pb2_grpc import EngagementServiceStub
from roost.fanout.v1 import fanout_service_pb2 as fanout
from roost.graph.v1 import graph_service_pb2 as graph
from roost.identity.v1 import user_service_pb2 as identity
from roost.identity.v1.user_service_pb2_grpc import UserServiceStub
from roost.timeline.v1 import timeline_service_pb2 as timeline
from roost.tweet.v1 import reply_service_pb2 as replies
from roost.tweet.v1 import tweet_pb2
from roost.tweet.v1 import tweet_service_pb2 as tweet
from roost.tweet.v1.reply_service_pb2_grpc import ReplyServiceStub
from roost.tweet.v1.tweet_service_pb2_grpc import TweetServiceStub

from services.platform.events.log import Record
from services.platform.sqlite.event_log import EmbeddedConsumer
from services.platform.transport.message_guard import MutationGuard
from services.shared.hydration.cache import HydrationCache
from services.shared.hydration.hydrator import Hydrator
from services.timeline.store import HomeTimelineStore
from tests.cluster import backend
from tests.conftest import LONG, SETTLE_WITHIN_S, SHORT, Mesh, mesh_settings, start_process
from tests.functional.model import DELETED, MISSING, OK, REFUSED, REMOVED, STANDS, Tweet, World, told
from tests.home_stores import home_store_of, lengthen_deadlines, shorten
from tests.versions import UnknownVersions

KEEP, TRIM_ABOVE = 6, 8
MARGIN_S = 0.03
PEOPLE = 4
# Low enough that some become celebrities by their followers.
THRESHOLD = 3
# The histories are numbered from 0 and each is the same in every run, so that a failure can be repeated. On the cluster
# backend one takes several times as long.
HISTORIES = {("embedded", SHORT): 6, ("embedded", LONG): 24, ("cluster", SHORT): 2, ("cluster", LONG): 12}
STEPS = 100
# Tweets that a history reads from the cache at least: otherwise the comparison with uncached tweets shows nothing.
LEAST_CACHED = 20
SIZES = (1, 3, 7, 50)
# The number of events that are appended again: those of some steps.
SHUFFLED = 60
MEMORY = "/dev/shm"  # noqa: S108 (the test makes a folder of its own in it)
TEXTS = ("a tweet", "mended", "mended again", "#tag and @somebody")

T = TypeVar("T")


class History:
    """One history: PEOPLE new users, and the model of what each must see."""

    def __init__(self, runner: asyncio.Runner, mesh: Mesh, number: int) -> None:
        self.runner = runner
        self.mesh = mesh
        self.number = number
        self.chance = random.Random(number)
        self.steps: list[str] = []
        client, moderation = mesh.process.channel(""), mesh.process.channel("moderation")
        self.replies = ReplyServiceStub(client)
        self.engagement = EngagementServiceStub(client)
        self.moderated_users = UserServiceStub(moderation)
        self.moderated_tweets = TweetServiceStub(moderation)
        self.ids: list[int] = []
        self.world = World([])
        self.delivered: set[int] = set()
        self.paused = False
        self.actions = 0
        # Caches nothing: each page must equal one that is hydrated by it.
        self.uncached = Hydrator(mesh.process.channel("timeline"), HydrationCache(UnknownVersions()))

    def run_(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def call(self, method: Any, request: Any, user: int | None = None) -> tuple[str, Any]:
        """Returns the name of the status code, and the answer if the code is OK."""

        async def call() -> Any:
            if user is None:
                return await method(request)
            with self.mesh.as_user(self.ids[user]):
                return await method(request)

        try:
            return OK, self.runner.run(call())
        except grpc.aio.AioRpcError as error:
            return error.code().name, None

    def must(self, method: Any, request: Any, user: int | None = None) -> Any:
        code, answer = self.call(method, request, user)
        assert code == OK
        return answer

    def active(self, user: int) -> int:
        """Returns the user, or the next one who is not suspended."""
        while user in self.world.suspended:
            user = (user + 1) % PEOPLE
        return user

    def any_tweet(self) -> int:
        """Returns the id of a random tweet, mostly of one that is neither deleted nor removed."""
        every = sorted(self.world.tweets)
        standing = [tweet_id for tweet_id in every if self.world.stands(tweet_id)]
        return self.chance.choice(standing if standing and self.chance.random() < 0.9 else every)

    def step(self) -> None:
        """Does one random thing of DEEDS."""
        name, draw = self.chance.choice(DEEDS)
        arguments = draw(self)
        self.steps.append(f"{name}{arguments}")
        getattr(self, name)(*arguments)

    def sign_up(self) -> None:
        names = [f"u{self.number}_{number}" for number in range(PEOPLE)]
        self.ids = self.run_(self.mesh.people(*names))
        self.world = World(list(names))
        for user in range(PEOPLE):
            self.rename(user, names[user])
            self.follow(user, (user + 1) % PEOPLE)
            self.post(user, 2)
        self.let_the_margin_pass()
        for user in range(PEOPLE):
            self.read_when_delivered(user, 5)
        self.let_the_margin_pass()

    # Writes of tweets.

    def post(self, author: int, many: int) -> None:
        author = self.active(author)
        for _ in range(many):
            answer = self.must(self.mesh.tweets.CreateTweet, tweet.CreateTweetRequest(text=TEXTS[0]), author)
            self.add(answer.tweet.id, author, text=TEXTS[0])

    def add(self, tweet_id: int, author: int, **fields: Any) -> None:
        assert tweet_id not in self.world.tweets
        self.world.tweets[tweet_id] = Tweet(tweet_id, author, **fields)

    def say(self, user: int, about: int, how: str) -> None:
        """Creates a reply, through either service, or a quote."""
        user = self.active(user)
        original = self.world.original(about)
        if how == "reply":
            request: Any = replies.CreateReplyRequest(tweet_id=about, text="a reply")
            code, answer = self.call(self.replies.CreateReply, request, user)
        else:
            link = {"reply_to_id": about} if how == "answer" else {"quote_of_id": about}
            request = tweet.CreateTweetRequest(text="a reply", **link)
            code, answer = self.call(self.mesh.tweets.CreateTweet, request, user)
        assert code == self.world.act_on(user, about)
        if code == OK:
            quote = how == "quote"
            self.add(
                answer.tweet.id, user, text="a reply", **{"quote_of": original} if quote else {"reply_to": original}
            )
            assert told(answer.tweet) == self.world.tweet_as(user, answer.tweet.id)

    def retweet(self, user: int, about: int) -> None:
        user = self.active(user)
        code, answer = self.call(self.mesh.tweets.Retweet, tweet.RetweetRequest(tweet_id=about), user)
        assert code == self.world.retweet(user, about)
        if code == OK:
            original = self.world.original(about)
            standing = [t.id for t in self.world.linked("retweet_of", original) if t.author == user]
            if not standing:
                self.add(answer.tweet.id, user, retweet_of=original)
            assert standing in ([], [answer.tweet.id]), "one retweet of a user and a tweet at a time"
            self.read_at_once(user, 7)

    def unretweet(self, user: int, about: int) -> None:
        user = self.active(user)
        self.must(self.mesh.tweets.Unretweet, tweet.UnretweetRequest(tweet_id=about), user)
        for found in self.world.linked("retweet_of", self.world.original(about)):
            if found.author == user:
                found.state = DELETED
        self.read_a_follower_of(user)

    def edit(self, user: int, about: int, text: str, own: bool) -> None:
        found = self.world.tweets[about]
        user = self.active(found.author if own else user)
        code, answer = self.call(
            self.mesh.tweets.UpdateTweet, tweet.UpdateTweetRequest(tweet_id=about, text=text), user
        )
        assert code == self.world.edit(user, about, text)
        if code == OK and found.text != text:
            found.original_text = found.original_text or found.text
            found.text, found.edits = text, found.edits + 1
        if code == OK:
            assert told(answer.tweet) == self.world.tweet_as(user, about)
            self.read_a_follower_of(user)

    def delete(self, user: int, about: int, own: bool) -> None:
        found = self.world.tweets[about]
        user = self.active(found.author if own else user)
        code, _ = self.call(self.mesh.tweets.DeleteTweet, tweet.DeleteTweetRequest(tweet_id=about), user)
        assert code == self.world.own(user, about)
        if code == OK:
            found.state = DELETED
            self.read_a_follower_of(user)

    def mark(self, user: int, about: int, bookmark: bool, undo: bool) -> None:
        """Likes, bookmarks, or undoes one of them; applies to the original if the tweet is a retweet."""
        user = self.active(user)
        verb = ("Unbookmark" if undo else "Bookmark") if bookmark else ("Unlike" if undo else "Like")
        request = getattr(engagement, f"{verb}TweetRequest")(tweet_id=about)
        code, _ = self.call(getattr(self.engagement, f"{verb}Tweet"), request, user)
        original = self.world.original(about)
        wanted = OK if undo else self.world.act_on(user, about)
        # Nobody learns of a bookmark, so its error reveals no more than a read's.
        assert code == (MISSING if bookmark and wanted == REFUSED else wanted)
        if code == OK:
            marks = self.world.bookmarks if bookmark else self.world.likes
            (marks.discard if undo else marks.add)((user, original))
            self.read_at_once(user, 7)

    # Follows, blocks, mutes and names.

    def follow(self, a: int, b: int) -> None:
        a = self.active(a)
        if a == b:
            return
        code, _ = self.call(self.mesh.graph.Follow, graph.FollowRequest(user_id=self.ids[b]), a)
        assert code == self.world.follow(a, b)
        if code == OK:
            self.world.follows.add((a, b))
        self.read_at_once(a, 5)

    def unfollow(self, a: int, b: int) -> None:
        a = self.active(a)
        if a != b:
            self.must(self.mesh.graph.Unfollow, graph.UnfollowRequest(user_id=self.ids[b]), a)
            self.world.follows.discard((a, b))
            self.read_at_once(a, 5)

    def block(self, a: int, b: int, undo: bool) -> None:
        a = self.active(a)
        if a == b:
            return
        if undo:
            self.must(self.mesh.graph.Unblock, graph.UnblockRequest(user_id=self.ids[b]), a)
            self.world.blocks.discard((a, b))
        elif self.call(self.mesh.graph.Block, graph.BlockRequest(user_id=self.ids[b]), a)[0] == OK:
            self.world.blocks.add((a, b))
            self.world.follows -= {(a, b), (b, a)}
        else:
            assert b in self.world.suspended
        self.read_at_once(a, 5)
        self.read_at_once(b, 5)

    def mute(self, a: int, b: int, undo: bool) -> None:
        a = self.active(a)
        if a == b:
            return
        if undo:
            self.must(self.mesh.graph.Unmute, graph.UnmuteRequest(user_id=self.ids[b]), a)
            self.world.mutes.discard((a, b))
        elif self.call(self.mesh.graph.Mute, graph.MuteRequest(user_id=self.ids[b]), a)[0] == OK:
            self.world.mutes.add((a, b))
        else:
            assert b in self.world.suspended
        self.read_at_once(a, 5)

    def rename(self, user: int, name: str) -> None:
        user = self.active(user)
        request = identity.UpdateUserRequest(user_id=self.ids[user], display_name=name)
        self.must(self.mesh.users.UpdateUser, request, user)
        self.world.names[user] = name

    # Moderation and faults.

    def suspend(self, user: int, undo: bool) -> None:
        """Suspends the user, or reinstates everybody. Only one user is suspended at a time, so that much is left to compare."""
        self.actions += 1
        if undo or self.world.suspended:
            for back in sorted(self.world.suspended):
                request: Any = identity.ReinstateUserRequest(user_id=self.ids[back], action_id=self.actions)
                self.must(self.moderated_users.ReinstateUser, request)
            self.world.suspended.clear()
        else:
            request = identity.SuspendUserRequest(user_id=self.ids[user], action_id=self.actions)
            self.must(self.moderated_users.SuspendUser, request)
            self.world.suspended.add(user)
        self.wait_for_counts()
        self.read_at_once((user + 1) % PEOPLE, 5)

    def wait_for_counts(self) -> None:
        """Waits until counts follow a suspension: consumers of identity's events adjust them a moment later."""
        reader = self.active(0)
        deadline = time.monotonic() + SETTLE_WITHIN_S
        for tweet_id in sorted(self.world.tweets):
            if not self.world.visible(reader, tweet_id):
                continue
            wanted = self.world.tweet_as(reader, tweet_id)["metrics"]
            request = tweet.GetTweetRequest(tweet_id=tweet_id)
            while told(self.must(self.mesh.tweets.GetTweet, request, reader).tweet)["metrics"] != wanted:
                assert time.monotonic() < deadline, f"counts of {tweet_id} did not become {wanted}"
                self.run_(asyncio.sleep(0.005))

    def remove(self, about: int, undo: bool) -> None:
        removed = sorted(t.id for t in self.world.tweets.values() if t.state == REMOVED)
        if undo and removed:
            found = self.world.tweets[self.chance.choice(removed)]
            request: Any = tweet.RestoreTweetRequest(tweet_id=found.id, action_id=found.action)
            self.must(self.moderated_tweets.RestoreTweet, request)
            found.state = STANDS
            # Homes built in the meantime lack it until fan-out delivers it again.
            self.delivered.discard(found.id)
        else:
            self.actions += 1
            found = self.world.tweets[about]
            request = tweet.RemoveTweetRequest(tweet_id=found.id, action_id=self.actions)
            self.must(self.moderated_tweets.RemoveTweet, request)
            if found.state != DELETED:
                found.state, found.action = REMOVED, self.actions
        self.read_a_follower_of(found.author)

    def reclassify(self, user: int, tier: graph.TierChoice.ValueType) -> None:
        if user in self.world.suspended:
            return
        request = graph.ReclassifyUserRequest(user_id=self.ids[user], tier=tier)
        self.must(self.mesh.operator_graph.ReclassifyUser, request)
        for reader in sorted(a for a, b in self.world.follows if b == user):
            self.read_when_delivered(reader, 5)

    def disturb(self, what: str, user: int, seed: int) -> None:
        match what:
            case "lose":
                self.run_(self.timelines().clear())
            case "rebuild":
                request = timeline.RebuildHomeTimelineRequest(user_id=self.ids[user])
                self.must(self.mesh.operator_timelines.RebuildHomeTimeline, request)
            case "replay":
                self.must(self.mesh.fanout.ReplayFanout, fanout.ReplayFanoutRequest(offset=0))
            case "repeat":
                self.repeat_events(seed)
            case "pause":
                self.pause_or_resume()
            case "wait":
                self.let_the_margin_pass()

    def repeat_events(self, seed: int) -> None:
        """Appends the last SHUFFLED events again, each twice, in random order."""
        workers = self.mesh.process.services["fanout"].workers
        log = next((worker._log for worker in workers if isinstance(worker, EmbeddedConsumer)), None)
        if log is None:
            # Kafka's log cannot be read like this, so all of it is replayed instead.
            self.must(self.mesh.fanout.ReplayFanout, fanout.ReplayFanoutRequest(offset=0))
            return
        wanted = "SELECT topic, key, event_id, payload, traceparent FROM event ORDER BY event_offset DESC LIMIT ?"
        rows = self.run_(log.db.read(lambda c: c.execute(wanted, (SHUFFLED,)).fetchall()))
        records = [Record(*row) for row in rows for _ in range(2)]
        random.Random(seed).shuffle(records)
        self.run_(log.append(records))

    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        if self.paused:
            self.must(self.mesh.fanout.PauseFanout, fanout.PauseFanoutRequest())
        else:
            self.must(self.mesh.fanout.ResumeFanout, fanout.ResumeFanoutRequest())

    def let_the_margin_pass(self) -> None:
        self.run_(asyncio.sleep(MARGIN_S * 1.5))

    # Reads.

    def read_a_follower_of(self, author: int) -> None:
        self.read_at_once(next((a for a, b in sorted(self.world.follows) if b == author), author), 5)

    def read_at_once(self, reader: int, size: int) -> None:
        if reader in self.world.suspended:
            return
        shown, expected = self.home(reader, size), self.world.home(reader)
        assert shown == sorted(set(shown), reverse=True)
        assert set(shown) <= set(expected), "something is shown that is gone or hidden"
        due = {i for i in expected if i in self.delivered or self.world.tweets[i].author == reader}
        assert due <= set(shown), "something is missing that was there, or is the reader's own"

    def read_when_delivered(self, reader: int, size: int) -> None:
        self.settle()
        reader = self.active(reader)
        assert self.home(reader, size) == self.world.home(reader)

    def crowd(self, lose: bool) -> None:
        """Everybody posts and reads at the same time, while home timelines are being built."""
        users = [user for user in range(PEOPLE) if user not in self.world.suspended]
        before = {user: self.world.home(user) for user in users}

        async def post(user: int) -> int:
            return await self.mesh.post(self.ids[user], TEXTS[0])

        async def read(user: int) -> tuple[int, list[int]]:
            return user, [entry.id for entry in await self.mesh.home(self.ids[user], 5)]

        async def everything() -> tuple[list[int], list[tuple[int, list[int]]]]:
            if lose:
                await self.timelines().clear()
            made = asyncio.gather(*(post(user) for user in users for _ in range(2)))
            found = await asyncio.gather(*(read(user) for user in users for _ in range(2)))
            return await made, found

        made, found = self.run_(everything())
        for place, tweet_id in enumerate(made):
            self.add(tweet_id, users[place // 2], text=TEXTS[0])
        for reader, shown in found:
            assert shown == sorted(set(shown), reverse=True)
            assert set(shown) <= {*before[reader], *made}
            due = {i for i in before[reader] if i in self.delivered or self.world.tweets[i].author == reader}
            assert due <= set(shown)
        for user in users:
            self.read_when_delivered(user, 50)

    def timelines(self) -> HomeTimelineStore:
        return home_store_of(self.mesh.process)

    def explain(self, reader: int, tweet_id: int) -> None:
        self.settle()
        reader = self.active(reader)
        request = timeline.ExplainTimelineEntryRequest(tweet_id=tweet_id)
        answer = self.must(self.mesh.timelines.ExplainTimelineEntry, request, reader)
        assert answer.shown == self.world.at_home(reader, tweet_id)
        assert bool(answer.source) == answer.shown
        assert bool(answer.filter) != answer.shown

    def look_at_a_tweet(self, reader: int, about: int) -> None:
        """Reads the tweet, and the lists of its replies, quotes, likes and retweets."""
        reader = self.active(reader)
        code, answer = self.call(self.mesh.tweets.GetTweet, tweet.GetTweetRequest(tweet_id=about), reader)
        assert code == (OK if self.world.visible(reader, about) else MISSING)
        if code != OK:
            return
        assert told(answer.tweet) == self.world.tweet_as(reader, about)
        original = self.world.original(about)
        lists = (
            (self.replies.ListReplies, replies.ListRepliesRequest, "reply_to"),
            (self.mesh.tweets.ListQuotes, tweet.ListQuotesRequest, "quote_of"),
        )
        for method, request, link in lists:
            found = self.must(method, request(tweet_id=about, page_size=100), reader).tweets
            wanted = self.world.seen(reader, self.world.linked(link, original))
            assert [told(t) for t in found] == [self.world.tweet_as(reader, i) for i in wanted]
        likers = {user for user, liked in self.world.likes if liked == original}
        request = engagement.ListLikesRequest(tweet_id=about, page_size=100)
        self.are_people(reader, self.must(self.engagement.ListLikes, request, reader).users, likers)
        retweeters = {t.author for t in self.world.linked("retweet_of", original)}
        request = tweet.ListRetweetersRequest(tweet_id=about, page_size=100)
        self.are_people(reader, self.must(self.mesh.tweets.ListRetweeters, request, reader).users, retweeters)

    def look_at_a_person(self, reader: int, user: int) -> None:
        """Reads a user timeline, and the user's followers and followees."""
        reader = self.active(reader)
        request: Any = tweet.ListUserTweetsRequest(user_id=self.ids[user], page_size=100)
        code, answer = self.call(self.mesh.tweets.ListUserTweets, request, reader)
        hidden = user in self.world.suspended or self.world.apart(reader, user)
        assert code == (MISSING if hidden else OK)
        if hidden:
            return
        wanted = self.world.seen(reader, self.world.of_author(user))[:100]
        assert [told(t) for t in answer.tweets] == [self.world.tweet_as(reader, i) for i in wanted]
        request = graph.ListFollowersRequest(user_id=self.ids[user])
        followers = {a for a, b in self.world.follows if b == user}
        self.are_people(reader, self.must(self.mesh.graph.ListFollowers, request, reader).users, followers)
        request = graph.ListFollowingRequest(user_id=self.ids[user])
        followees = {b for a, b in self.world.follows if a == user}
        self.are_people(reader, self.must(self.mesh.graph.ListFollowing, request, reader).users, followees)

    def are_people(self, reader: int, users: Any, wanted: set[int]) -> None:
        seen = {user for user in wanted if user not in self.world.suspended and not self.world.apart(reader, user)}
        assert sorted(user.id for user in users) == sorted(self.ids[user] for user in seen)

    def settle(self) -> None:
        if self.paused:
            self.pause_or_resume()
        self.run_(self.mesh.settled())
        self.delivered = {i for i in self.world.tweets if self.world.stands(i)}

    def home(self, reader: int, size: int) -> list[int]:
        """Returns the ids of the home timeline, and compares each tweet with the model's."""
        found: list[tweet_pb2.Tweet] = []
        cursor = ""
        while True:
            page = self.run_(self.page(reader, size, cursor))
            cursor = page.next_cursor
            if page.partial:
                # The time for building it ran out; this cursor requests the same page again.
                continue
            found.extend(page.tweets)
            if not cursor:
                break
        for entry in found:
            assert told(entry) == self.world.tweet_as(reader, entry.id)
        return [entry.id for entry in found]

    async def page(self, reader: int, size: int, cursor: str) -> timeline.ListHomeTimelineResponse:
        """Returns a page, after comparing its tweets with those that are hydrated without a cache."""
        with self.mesh.as_user(self.ids[reader]):
            request = timeline.ListHomeTimelineRequest(page_size=size, cursor=cursor)
            page = await self.mesh.timelines.ListHomeTimeline(request)
            if not cursor:
                # The first read may find everything but the whole page in the caches; this one leaves the page there for
                # the next step.
                await self.mesh.timelines.ListHomeTimeline(request)
            ids = [tweet.id for tweet in page.tweets]
            fresh = await self.uncached.visible(self.ids[reader], ids, len(ids), hide_muted=True)
        assert [tweet_pb2.Tweet.FromString(tweet.data) for tweet in fresh] == list(page.tweets), (
            "a cached value was used after a change"
        )
        return page

    def end(self) -> None:
        if self.paused:
            self.pause_or_resume()


def _who(history: History) -> int:
    return history.chance.randrange(PEOPLE)


def _two(history: History) -> tuple[int, int]:
    return _who(history), _who(history)


def _on_tweet(history: History) -> tuple[int, int]:
    return _who(history), history.any_tweet()


def _coin(history: History) -> bool:
    return history.chance.random() < 0.5


# What happens, and the function that draws its arguments. Each is as likely as the number of its entries.
DISTURBANCES = ("lose", "lose", "rebuild", "replay", "repeat", "repeat", "pause", "pause", "wait")
DEEDS: Sequence[tuple[str, Callable[[History], tuple[Any, ...]]]] = (
    *[("post", lambda h: (_who(h), h.chance.choice((1, 1, 1, 2, TRIM_ABOVE + 1))))] * 2,
    *[("say", lambda h: (*_on_tweet(h), h.chance.choice(("reply", "answer", "quote"))))] * 4,
    *[("retweet", _on_tweet)] * 3,
    ("unretweet", _on_tweet),
    *[("edit", lambda h: (*_on_tweet(h), h.chance.choice(TEXTS), h.chance.random() < 0.8))] * 2,
    ("delete", lambda h: (*_on_tweet(h), h.chance.random() < 0.7)),
    *[("mark", lambda h: (*_on_tweet(h), _coin(h), h.chance.random() < 0.3))] * 2,
    *[("follow", _two)] * 3,
    *[("unfollow", _two)] * 2,
    *[("block", lambda h: (*_two(h), h.chance.random() < 0.6))] * 2,
    *[("mute", lambda h: (*_two(h), _coin(h)))] * 2,
    ("rename", lambda h: (_who(h), h.chance.choice(("Ann", "Ben", "Zoë")))),
    ("suspend", lambda h: (_who(h), _coin(h))),
    ("remove", lambda h: (h.any_tweet(), h.chance.random() < 0.7)),
    ("reclassify", lambda h: (_who(h), h.chance.choice((1, 2, 3)))),
    *[("disturb", lambda h: (h.chance.choice(DISTURBANCES), _who(h), h.chance.randrange(100)))] * 4,
    *[("read_at_once", lambda h: (_who(h), h.chance.choice(SIZES)))] * 2,
    *[("read_when_delivered", lambda h: (_who(h), h.chance.choice(SIZES)))] * 2,
    *[("crowd", lambda h: (h.chance.random() < 0.7,))] * 2,
    ("explain", _on_tweet),
    *[("look_at_a_tweet", _on_tweet)] * 2,
    ("look_at_a_person", _two),
)


@pytest.fixture
def quick_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if the machine has one. A disk would take most of the time, and no history crashes a process."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["hybrid", "push", "pull"])
def test_mesh_random_histories_agree_with_model(quick_dir: Path, mode: str, length: str) -> None:
    histories = HISTORIES[backend.name, length]
    with asyncio.Runner() as runner:
        chosen = mesh_settings(
            quick_dir, timeline_mode=mode, clock_margin_s=MARGIN_S, celebrity_threshold=THRESHOLD, log_level="error"
        )
        checker = MutationGuard()
        process = runner.run(start_process(chosen, checker=checker))
        try:
            shorten(process, KEEP, TRIM_ABOVE)
            lengthen_deadlines(process)
            mesh = Mesh(process, "inprocess")
            cached_before = cached_tweets()
            for number in range(histories):
                _live(History(runner, mesh, number))
            assert cached_tweets() - cached_before >= LEAST_CACHED * histories
            checker.verify()
        finally:
            runner.run(process.stop())


def cached_tweets() -> float:
    return REGISTRY.get_sample_value("roost_hydration_tweets_total", {"source": "cache"}) or 0.0


def _live(history: History) -> None:
    try:
        history.sign_up()
        for _ in range(STEPS):
            history.step()
        history.end()
    except BaseException as error:
        error.add_note(f"history {history.number}, people {history.ids}:\n" + "\n".join(history.steps))
        raise
