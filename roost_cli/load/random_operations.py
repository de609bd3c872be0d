"""Draws random operations from a seed, on users and tweets that exist or that the plan itself creates."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

from roost_cli.verify.timeline_model import ServiceData

T = TypeVar("T")

# Number of newest tweets that count as recent, and the probability that an operation acts on one of them, because users
# mostly act on recent tweets.
RECENT_TWEETS = 1_000
RECENT_SHARE = 0.8
# Probability that an operation acts on a tweet of a followee. It is high, because replies to other users do not appear
# in home timelines.
FOLLOWED_SHARE = 0.7
# Maximum number of attempts to draw a tweet that the plan has not deleted. It is small, because a few operations should
# act on deleted tweets and be refused.
DRAWS = 3


class Kind(StrEnum):
    """The kind of an operation."""

    POST = "post"
    REPLY = "reply"
    QUOTE = "quote"
    RETWEET = "retweet"
    UNRETWEET = "unretweet"
    EDIT = "edit"
    DELETE = "delete"
    LIKE = "like"
    UNLIKE = "unlike"
    FOLLOW = "follow"
    UNFOLLOW = "unfollow"
    BLOCK = "block"
    UNBLOCK = "unblock"
    MUTE = "mute"
    UNMUTE = "unmute"

    @classmethod
    def making(cls) -> frozenset[Kind]:
        """Returns the kinds that create a tweet."""
        return _MAKING


_MAKING = frozenset({Kind.POST, Kind.REPLY, Kind.QUOTE, Kind.RETWEET})
_WEIGHTS: Mapping[Kind, int] = {
    Kind.POST: 18,
    Kind.REPLY: 15,
    Kind.QUOTE: 6,
    Kind.RETWEET: 12,
    Kind.UNRETWEET: 4,
    Kind.EDIT: 6,
    Kind.DELETE: 8,
    Kind.LIKE: 9,
    Kind.UNLIKE: 3,
    Kind.FOLLOW: 6,
    Kind.UNFOLLOW: 5,
    Kind.BLOCK: 2,
    Kind.UNBLOCK: 1,
    Kind.MUTE: 3,
    Kind.UNMUTE: 2,
}


class Operation(NamedTuple):
    """An operation of the user `actor_id`. It acts on the tweet or user with the id `about`, or if `made_by` is not
    None, on the tweet that the earlier operation with the number `made_by` creates."""

    number: int
    kind: Kind
    actor_id: int
    about: int = 0
    made_by: int | None = None
    text: str = ""


class _Tweet(NamedTuple):
    author_id: int
    # The tweet's id, 0 if the operation with the number `made_by` creates the tweet.
    tweet_id: int = 0
    made_by: int | None = None


class OperationPlanner:
    """Draws the random operations of a plan. `truth` is the data of the mesh, which is not changed.

    The planner records the effects that its operations will have, such as new tweets and follows, so that later
    operations can act on them.
    """

    def __init__(self, truth: ServiceData, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 (must be reproducible)
        self._people = sorted(truth.active)
        self._following = {user: sorted(truth.following[user] & truth.active) for user in self._people}
        self._tweets: list[_Tweet] = []
        self._by_author: defaultdict[int, list[_Tweet]] = defaultdict(list)
        self._gone: set[_Tweet] = set()
        self._retweets: list[tuple[int, _Tweet]] = []
        self._likes: list[tuple[int, _Tweet]] = []
        self._blocks = [(one, other) for one in self._people for other in sorted(truth.blocking[one] & truth.active)]
        self._mutes = [(one, other) for one in self._people for other in sorted(truth.muting[one] & truth.active)]
        for head in sorted(truth.heads.values(), key=lambda head: head.id):
            if head.author_id in truth.active and not head.deleted:
                self._add(_Tweet(head.author_id, head.id))
                if head.retweet_of_id:
                    original = _Tweet(head.retweet_of_author_id, head.retweet_of_id)
                    self._retweets.append((head.author_id, original))

    def next(self, number: int) -> Operation:
        """Draws and returns the operation with this number. Call this method with ascending numbers, because an
        operation depends on the earlier operations."""
        kind = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if not self._tweets and kind in _ON_TWEETS:
            kind = Kind.POST
        if kind in _ON_PEOPLE:
            actor, other = self._actor_and_user(kind)
            return Operation(number, kind, actor, about=other)
        if kind is Kind.POST:
            made = Operation(number, kind, self._chance.choice(self._people), text=self._text(number))
        else:
            actor, tweet = self._actor_and_tweet(kind)
            text = self._text(number) if kind in _WITH_TEXT else ""
            made = Operation(number, kind, actor, tweet.tweet_id, tweet.made_by, text)
        if kind in _MAKING:
            self._add(_Tweet(made.actor_id, made_by=number))
        return made

    def _actor_and_tweet(self, kind: Kind) -> tuple[int, _Tweet]:
        """Draws the user who performs the operation, and the tweet that it acts on."""
        match kind:
            case Kind.EDIT | Kind.DELETE:
                tweet = self._any()
                if kind is Kind.DELETE:
                    self._gone.add(tweet)
                return tweet.author_id, tweet
            case Kind.UNRETWEET if self._retweets:
                return self._pop_random(self._retweets)
            case Kind.UNLIKE if self._likes:
                return self._pop_random(self._likes)
        actor = self._chance.choice(self._people)
        tweet = self._visible_tweet(actor)
        if kind is Kind.RETWEET:
            self._retweets.append((actor, tweet))
        elif kind is Kind.LIKE:
            self._likes.append((actor, tweet))
        return actor, tweet

    def _actor_and_user(self, kind: Kind) -> tuple[int, int]:
        """Draws the user who performs the operation, and the other user that it acts on."""
        match kind:
            case Kind.UNBLOCK if self._blocks:
                return self._pop_random(self._blocks)
            case Kind.UNMUTE if self._mutes:
                return self._pop_random(self._mutes)
        actor = self._chance.choice(self._people)
        if kind is Kind.UNFOLLOW and self._following[actor]:
            return actor, self._pop_random(self._following[actor])
        other = self._chance.choice(self._people)
        while other == actor:
            other = self._chance.choice(self._people)
        if kind is Kind.FOLLOW and other not in self._following[actor]:
            self._following[actor].append(other)
        elif kind is Kind.BLOCK:
            self._blocks.append((actor, other))
        elif kind is Kind.MUTE:
            self._mutes.append((actor, other))
        return actor, other

    def _visible_tweet(self, actor: int) -> _Tweet:
        """Draws a tweet that the actor can probably see, which may be the actor's own: one of a followee, or any
        tweet."""
        followees = self._following[actor]
        if followees and self._chance.random() < FOLLOWED_SHARE:
            tweets = self._by_author.get(self._chance.choice(followees))
            if tweets:
                return self._standing(tweets)
        return self._any()

    def _any(self) -> _Tweet:
        return self._standing(self._tweets)

    def _standing(self, tweets: Sequence[_Tweet]) -> _Tweet:
        first = max(len(tweets) - RECENT_TWEETS, 0) if self._chance.random() < RECENT_SHARE else 0
        for _ in range(DRAWS):
            tweet = tweets[self._chance.randrange(first, len(tweets))]
            if tweet not in self._gone:
                break
        return tweet

    def _pop_random(self, found: list[T]) -> T:
        """Removes a random element from `found` and returns it."""
        source = self._chance.randrange(len(found))
        found[source], found[-1] = found[-1], found[source]
        return found.pop()

    def _add(self, tweet: _Tweet) -> None:
        self._tweets.append(tweet)
        self._by_author[tweet.author_id].append(tweet)

    def _text(self, number: int) -> str:
        return f"operation {number}, said {self._chance.randrange(10**6)} #mutation{self._chance.randrange(20)}"


_ON_PEOPLE = frozenset({Kind.FOLLOW, Kind.UNFOLLOW, Kind.BLOCK, Kind.UNBLOCK, Kind.MUTE, Kind.UNMUTE})
_ON_TWEETS = frozenset(Kind) - _ON_PEOPLE - {Kind.POST}
_WITH_TEXT = frozenset({Kind.REPLY, Kind.QUOTE, Kind.EDIT})
