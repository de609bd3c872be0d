"""Runs the same random history on both backends, and compares each answer of one with the other's.

Changes that act at once are compared at once. Home timelines are read after everything is delivered. Results that are
eventually consistent (search, trends) must become the same.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from roost.identity.v1 import user_service_pb2
from roost.search.v1 import search_service_pb2 as search

from services.platform.periodic import PeriodicJob
from services.platform.process import Process
from services.shared.hydration import loader
from services.shared.hydration.owner_responses import Counts, counts_or_none
from tests.conftest import LONG, SHORT, MeshFactory
from tests.functional.both_backends import LOOK_AGAIN_S, Ask, Name, Twins
from tests.home_stores import lengthen_deadlines

pytestmark = pytest.mark.cluster

# The history of a run; ROOST_SEED=7 draws another one.
SEED = int(os.environ.get("ROOST_SEED", "1"))
STEPS = {SHORT: 120, LONG: 600}
# The least number of calls for each step that are compared in a run; each page of a list is a call.
LEAST_PER_STEP = 4 / 3
# After this many steps the eventually consistent results and everybody's home timeline are compared.
LOOK_EVERY = 60
SIZES = (1, 2, 3, 7, 50, 50)
RECENT = 12
PASSWORDS = ("correct horse battery", "another horse battery", "short")
USERNAMES = ("ann_a", "bob_b", "cara", "dave99", "eve_e", "finn", "ANN_A", "no", "grace_hopper", "bob_b")
WORDS = (
    "tea", "coffee", "Évening", "running", "ran", "roost", "#News", "#news", "#tea", "@ann_a", "@nobody", "$TSLA", "日本", "😀",
    "https://example.com/a?b=c",
)  # fmt: skip
QUERIES = (
    "tea", "TEA coffee", "run", "running", "evening", "#news", "#tea", "@ann_a", "from:bob_b", "from:bob_b tea", '"tea coffee"', "日本",
    "$tsla", "from:nobody", "!?", "roost ran",
)  # fmt: skip
PEOPLE_QUERIES = (("SearchUsers", "ann"), ("SearchUsers", "bo"), ("Search", "tea"), ("Suggest", "b"), ("Suggest", "n"))
PEOPLE = 4
KEYS = ("", "", "once", "twice", "thrice")
PROFILES: Sequence[dict[str, str]] = (
    {"display_name": "Ann"}, {"display_name": "Zoë  B"}, {"bio": "likes tea"}, {"bio": ""}, {"location": "Roost", "website": "https://a.example"},
    {"display_name": ""}, {"display_name": " "}, {"website": "nowhere"}, {},
)  # fmt: skip
# An id of no user and no tweet.
NOBODYS = 12_345
# Low enough that with few users some become celebrities and cease to be.
THRESHOLD = 3
MARGIN_S = 0.05
LATEST, TOP = search.SEARCH_ORDER_LATEST, search.SEARCH_ORDER_TOP
SUSPEND, REINSTATE = "UserService/SuspendUser", "UserService/ReinstateUser"
# After these calls the counts change in the background.
ABSENCES = frozenset({SUSPEND, REINSTATE})
PURGE = "TweetService/PurgeDeletedTweets"
# Users who are never suspended at the same time, so that calls are left to compare.
LEAST_CALLERS = 2
# Calls that return a new tweet.
MAKES = frozenset({"TweetService/CreateTweet", "TweetService/Retweet", "ReplyService/CreateReply"})


class History:
    """One history: the users and tweets so far, by name, and the random generator that decides what happens."""

    def __init__(self, twins: Twins, seed: int) -> None:
        self.twins = twins
        self.chance = random.Random(seed)
        self.people: list[Name] = []
        self.suspended: set[Name] = set()
        self.authors: dict[Name, Name] = {}
        self.tokens: list[Name] = []
        self.sessions: list[Name] = []
        self.removals = 0

    async def begin(self) -> None:
        """Imports the first users. An import can be retried, which the first call on a busy machine may need."""
        users = [
            user_service_pb2.ImportedUser(username=name, email=f"{name}@example.com") for name in USERNAMES[:PEOPLE]
        ]
        found = await self.twins.ask(Ask("UserService/ImportUsers", {"users": users}, caller="operator"))
        self.people += found["user_ids"]

    def who(self) -> Name:
        """Returns a random user who may call: the tokens of a suspended user are refused, which `Side` does not check."""
        return self.chance.choice([user for user in self.people if user not in self.suspended])

    def anybody(self) -> Name:
        """Returns a random user, who may be suspended."""
        return self.chance.choice(self.people)

    def reader(self) -> Name | None:
        """Returns a random user who may call, or None for an anonymous caller."""
        return self.chance.choice([self.who(), self.who(), self.who(), None])

    def person(self) -> Any:
        return self.anybody() if self.chance.random() < 0.97 else NOBODYS

    def tweet(self) -> Any:
        """Returns a random tweet, mostly a recent one; sometimes an id that is no tweet."""
        if self.chance.random() < 0.03 or not self.authors:
            return self.chance.choice([NOBODYS, self.anybody()])
        every = list(self.authors)
        return self.chance.choice(every[-RECENT:] if self.chance.random() < 0.6 else every)

    def text(self) -> str:
        return " ".join(self.chance.choices(WORDS, k=self.chance.randint(1, 6)))

    def on(self, method: str, tweet: Any = None, **fields: Any) -> Ask:
        """Returns a call about a tweet, by a random user."""
        return Ask(method, {"tweet_id": tweet or self.tweet(), **fields}, self.who())

    def own(self, method: str, field: str = "tweet_id", **fields: Any) -> Ask:
        """Returns a call about a tweet, mostly by its author if that user may call."""
        tweet = self.tweet()
        user = self.authors.get(tweet) if self.chance.random() < 0.85 else None
        return Ask(method, {field: tweet, **fields}, self.who() if user in {None, *self.suspended} else user)

    def to(self, method: str) -> Ask:
        """Returns a call about a user, by a random user."""
        return Ask(method, {"user_id": self.person()}, self.who())

    def list(self, method: str, **fields: Any) -> Ask:
        return Ask(method, {"page_size": self.chance.choice(SIZES), **fields}, self.reader())

    def moderate(self, method: str, **fields: Any) -> Ask:
        return Ask(method, fields, caller="moderation")

    def remove(self) -> Ask:
        self.removals += 1
        return self.moderate("TweetService/RemoveTweet", tweet_id=self.tweet(), action_id=self.removals)

    def restore(self) -> Ask:
        action = self.chance.randint(max(1, self.removals - 2), self.removals + 1)
        return self.moderate("TweetService/RestoreTweet", tweet_id=self.tweet(), action_id=action)

    def token(self) -> Any:
        return self.chance.choice(self.tokens[-3:] or ["no token"])

    async def write(self, ask: Ask) -> None:
        """Makes the call on both backends, and keeps the names of what it created."""
        if ask.method == PURGE:
            await next_second()
        found = await self.twins.ask(ask)
        if ask.method in ABSENCES:
            await self.look_for_absence(ask.fields["user_id"])
        if not isinstance(found, dict):
            return
        if ask.method in MAKES and "tweet" in found:
            self.authors.setdefault(found["tweet"]["id"], found["tweet"]["author_id"])
        if ask.method == "AuthService/SignUp":
            self.people.append(found["user"]["id"])
        if "refresh_token" in found:
            self.tokens.append(found["refresh_token"])
        self.sessions += [session["id"] for session in found.get("sessions", ())]

    async def look_for_absence(self, user: Name) -> None:
        """Waits until the counts exclude the user's actions or include them again, and reads whether the user is
        suspended now: an outdated action id changes nothing."""
        await self.twins.absences_counted()
        if isinstance(await self.twins.ask(Ask("UserService/GetUser", {"user_id": user})), dict):
            self.suspended.discard(user)
        else:
            self.suspended.add(user)

    async def step(self) -> None:
        """Makes one random write and one random read."""
        await self.write(self.chance.choice(DEEDS)(self))
        await self.twins.walk(self.chance.choice(LOOKS)(self))

    async def look_at_what_comes_later(self) -> None:
        await self.twins.settled()
        for user in self.people:
            size = self.chance.choice(SIZES[1:])
            await self.twins.ask(Ask("TimelineService/ListHomeTimeline", {"page_size": size}, user, whole=True))
            await self.twins.ask(Ask("TimelineService/ExplainTimelineEntry", {"tweet_id": self.tweet()}, user))
        for query in QUERIES:
            order = self.chance.choice((LATEST, LATEST, TOP))
            fields = {"query": query, "order": order, "page_size": self.chance.choice(SIZES[1:])}
            # Each index ranks texts in its own way.
            asked = Ask(
                "SearchService/SearchTweets",
                fields,
                self.reader(),
                whole=True,
                sorted_by="tweets" if order == TOP else "",
            )
            await self.twins.ask(asked, eventually=True)
        for method, query in PEOPLE_QUERIES:
            # `Search` returns its best tweets, which each index ranks in its own way.
            ranked = "tweets" if method == "Search" else ""
            asked = Ask(f"SearchService/{method}", {"query": query}, self.reader(), sorted_by=ranked)
            await self.twins.ask(asked, eventually=True)
        for method in ("ListTrendingTags", "ListTrendingTweets"):
            await self.twins.ask(Ask(f"SearchService/{method}", {}, self.reader(), whole=True), eventually=True)

    async def look_at_everything(self) -> None:
        """Reads every list of each user and tweet; then scans the stores."""
        for user in self.people:
            for look in OF_PEOPLE:
                await self.twins.walk(Ask(look, {"user_id": user, "page_size": 50}, user))
        for tweet in self.authors:
            for look in OF_TWEETS:
                await self.twins.walk(Ask(look, {"tweet_id": tweet}, self.reader()))
        for kind in (1, 2, 3):
            await self.twins.ask(Ask("GraphService/ScanEdges", {"kind": kind}, caller="operator"))
        for scan in ("TweetService/ScanTweets", "UserService/ScanUsers"):
            await self.twins.ask(Ask(scan, caller="operator"))


async def counted(call: Any) -> Counts | None:
    """Does as `counts_or_none`, but a failed call fails the page, which is then requested again."""
    answer = await call
    return await counts_or_none(asyncio.sleep(0, answer))


async def next_second() -> None:
    """Waits until the clock shows another second. Deletions are purged by their whole second, so each one until now is then old
    enough on both backends."""
    began = int(time.time())
    while int(time.time()) == began:
        await asyncio.sleep(LOOK_AGAIN_S)


async def stop_purges(process: Process) -> None:
    """Stops the jobs that purge deleted tweets and deactivated accounts by themselves: the backends would do it at
    different steps of a history."""
    for service in ("tweet", "identity"):
        (job,) = (worker for worker in process.services[service].workers if isinstance(worker, PeriodicJob))
        await job.stop()


def sign_up(username: str, password: str = PASSWORDS[0]) -> Ask:
    fields = {"username": username, "email": f"{username.lower()}@example.com", "password": password}
    return Ask("AuthService/SignUp", fields)


def log_in(h: History) -> Ask:
    name = h.chance.choice(USERNAMES)
    account = h.chance.choice(({"username": name}, {"email": f"{name}@example.com"}))
    return Ask("AuthService/Login", {**account, "password": h.chance.choice(PASSWORDS)})


def change_password(h: History) -> Ask:
    current, new = h.chance.choices(PASSWORDS, k=2)
    return Ask("AuthService/ChangePassword", {"current_password": current, "new_password": new}, h.who())


def update_user(h: History) -> Ask:
    user = h.who()
    return Ask("UserService/UpdateUser", {"user_id": user, **h.chance.choice(PROFILES)}, user)


def create_tweet(h: History) -> Ask:
    links: dict[str, Any] = h.chance.choice(({}, {}, {"reply_to_id": h.tweet()}, {"quote_of_id": h.tweet()}))
    key = h.chance.choice(KEYS)
    # Mostly the first text of the key, because a different one is rejected.
    text = f"by the key {key}" if key and h.chance.random() < 0.7 else h.text()
    return Ask("TweetService/CreateTweet", {"text": text, "idempotency_key": key, **links}, h.who())


def moderate_user(h: History) -> Ask:
    may_suspend = len(h.people) - len(h.suspended) > LEAST_CALLERS
    method = h.chance.choice([SUSPEND if may_suspend else REINSTATE, REINSTATE, REINSTATE])
    return h.moderate(method, user_id=h.anybody(), action_id=h.chance.randint(1, 3))


def reclassify(h: History) -> Ask:
    fields = {"user_id": h.person(), "tier": h.chance.randint(1, 3)}
    return Ask("GraphService/ReclassifyUser", fields, caller="operator")


def batch_get_tweets(h: History) -> Ask:
    return Ask("TweetService/BatchGetTweets", {"ids": [h.tweet() for _ in range(5)]}, h.reader())


def relationships(h: History) -> Ask:
    return Ask("GraphService/BatchGetRelationships", {"ids": [h.person() for _ in range(3)]}, h.who())


def user_tweets(h: History) -> Ask:
    return h.list("TweetService/ListUserTweets", user_id=h.person(), exclude=h.chance.choice(([], [1], [2], [1, 2])))


def sessions(h: History) -> Ask:
    user = h.who()
    return Ask("AuthService/ListSessions", {"user_id": user, "page_size": 2}, user)


def revoke(h: History) -> Ask:
    user = h.who()
    session = h.chance.choice(h.sessions[-3:] or [NOBODYS])
    return Ask("AuthService/RevokeSession", {"user_id": user, "session_id": session}, user)


# Writes, each as likely as its number.
DEEDS: Sequence[Callable[[History], Ask]] = [
    deed
    for often, deed in (
        (4, lambda h: sign_up(h.chance.choice(USERNAMES), h.chance.choice(PASSWORDS))),
        (2, log_in),
        (1, lambda h: Ask("AuthService/RefreshToken", {"refresh_token": h.token()})),
        (1, lambda h: Ask("AuthService/Logout", {"refresh_token": h.token()})),
        (1, change_password),
        (1, sessions),
        (1, revoke),
        (3, update_user),
        (16, create_tweet),
        (5, lambda h: h.on("ReplyService/CreateReply", text=h.text(), idempotency_key=h.chance.choice(KEYS))),
        (5, lambda h: h.on("TweetService/Retweet")),
        (3, lambda h: h.on("TweetService/Unretweet")),
        (4, lambda h: h.own("TweetService/UpdateTweet", text=h.text())),
        (2, lambda h: h.own("ReplyService/UpdateReply", "reply_id", text=h.text())),
        (4, lambda h: h.own("TweetService/DeleteTweet")),
        (2, lambda h: h.own("ReplyService/DeleteReply", "reply_id")),
        (6, lambda h: h.on("EngagementService/LikeTweet")),
        (3, lambda h: h.on("EngagementService/UnlikeTweet")),
        (4, lambda h: h.on("EngagementService/BookmarkTweet")),
        (2, lambda h: h.on("EngagementService/UnbookmarkTweet")),
        (10, lambda h: h.to("GraphService/Follow")),
        (3, lambda h: h.to("GraphService/Unfollow")),
        (2, lambda h: h.to("GraphService/Block")),
        (4, lambda h: h.to("GraphService/Unblock")),
        (2, lambda h: h.to("GraphService/Mute")),
        (2, lambda h: h.to("GraphService/Unmute")),
        (3, moderate_user),
        (2, History.remove),
        (2, History.restore),
        (1, reclassify),
        (1, lambda h: Ask(PURGE, {"max_tweets": 100}, caller="operator")),
    )
    for _ in range(often)
]
# Reads. Lists are read to their end.
LOOKS: Sequence[Callable[[History], Ask]] = [
    lambda h: Ask("TweetService/GetTweet", {"tweet_id": h.tweet()}, h.reader()),
    batch_get_tweets,
    lambda h: Ask("TweetService/ListTweetRevisions", {"tweet_id": h.tweet()}, h.reader()),
    lambda h: h.list("TweetService/ListRecentTweets"),
    user_tweets,
    lambda h: h.list("TweetService/ListQuotes", tweet_id=h.tweet()),
    lambda h: h.list("TweetService/ListRetweeters", tweet_id=h.tweet()),
    lambda h: h.list("ReplyService/ListReplies", tweet_id=h.tweet()),
    lambda h: h.list("ReplyService/GetThread", tweet_id=h.tweet()),
    lambda h: h.list("EngagementService/ListLikes", tweet_id=h.tweet()),
    lambda h: h.list("EngagementService/ListLikedTweets", user_id=h.person()),
    lambda h: h.list("EngagementService/ListBookmarks", user_id=h.who()),
    lambda h: h.list("GraphService/ListFollowers", user_id=h.person()),
    lambda h: h.list("GraphService/ListFollowing", user_id=h.person()),
    lambda h: Ask("GraphService/SuggestUsers", {"page_size": 3}, h.who()),
    relationships,
    lambda h: Ask("UserService/GetUser", {"user_id": h.person()}, h.reader()),
    lambda h: Ask("UserService/GetUserByUsername", {"username": h.chance.choice(USERNAMES)}, h.reader()),
    lambda h: Ask("UserService/BatchGetUsers", {"ids": [h.person() for _ in range(3)]}, h.reader()),
    lambda h: Ask("AuthService/CheckUsernameAvailability", {"username": h.chance.choice(USERNAMES)}),
]
# Read at the end: for each user, by that user, and for each tweet, by a random user.
OF_PEOPLE = (
    "TweetService/ListUserTweets",
    "EngagementService/ListLikedTweets",
    "EngagementService/ListBookmarks",
    "GraphService/ListFollowers",
    "GraphService/ListFollowing",
    "GraphService/ListBlocks",
    "GraphService/ListMutes",
)
OF_TWEETS = (
    "TweetService/GetTweet",
    "ReplyService/GetThread",
    "EngagementService/ListLikes",
    "TweetService/ListRetweeters",
)


@pytest.mark.slow
async def test_backends_random_history_answer_alike(
    start_mesh: MeshFactory, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    monkeypatch.setattr(loader, "counts_or_none", counted)
    changes: dict[str, Any] = {"clock_margin_s": MARGIN_S, "celebrity_threshold": THRESHOLD, "delete_grace_s": 0}
    twins = Twins([await start_mesh(backend=backend, **changes) for backend in ("embedded", "cluster")])
    for side in twins.sides:
        lengthen_deadlines(side.mesh.process)
        await stop_purges(side.mesh.process)
    history = History(twins, SEED)
    try:
        await history.begin()
        for step in range(1, STEPS[length] + 1):
            await history.step()
            if step % LOOK_EVERY == 0:
                await history.look_at_what_comes_later()
        await history.look_at_everything()
    except BaseException as error:
        error.add_note(f"seed {SEED}:\n" + "\n".join(twins.said))
        raise
    assert len(twins.said) >= LEAST_PER_STEP * STEPS[length]
