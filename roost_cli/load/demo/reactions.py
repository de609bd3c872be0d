"""Creates and performs the demo's reactions to tweets: likes, retweets, quotes, and replies that authors sometimes
answer. (In all other code, a reaction is only a like or a bookmark.)"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import grpc
from roost.engagement.v1 import engagement_service_pb2, engagement_service_pb2_grpc
from roost.tweet.v1 import (
    reply_service_pb2,
    reply_service_pb2_grpc,
    tweet_service_pb2,
    tweet_service_pb2_grpc,
)

from roost_cli.exit_codes import call_error
from roost_cli.load.demo.words import ANSWERS, QUOTES, REPLIES
from roost_cli.load.impersonation import Actors
from roost_cli.rate_control import deadline_s, with_retries

# Each tweet has an appeal from 0 to 1. The probability that a follower of the author reacts to it is one of these
# numbers times the appeal.
LIKELY_LIKE, LIKELY_RETWEET, LIKELY_REPLY, LIKELY_QUOTE = 0.75, 0.12, 0.12, 0.05
# The appeal is a uniform random number raised to this power, so that most tweets get few reactions and a few get many.
APPEAL_POWER = 2.5
# Probability that the author of a tweet answers a reply to it.
LIKELY_ANSWER = 0.5

LIKE = "/roost.engagement.v1.EngagementService/LikeTweet"
RETWEET = "/roost.tweet.v1.TweetService/Retweet"
CREATE_REPLY = "/roost.tweet.v1.ReplyService/CreateReply"
CREATE_TWEET = "/roost.tweet.v1.TweetService/CreateTweet"


class Kind(Enum):
    """The kind of a reaction."""

    LIKE = "like"
    RETWEET = "retweet"
    REPLY = "reply"
    QUOTE = "quote"


@dataclass(frozen=True, slots=True)
class Reaction:
    """A reaction of the user `who` (a username) to the tweet with the number `tweet`. `text` is the text of a reply or
    quote. `answer` is the text with which the tweet's author answers a reply, "" if there is no answer."""

    who: str
    kind: Kind
    tweet: int
    text: str = ""
    answer: str = ""


def reactions(
    follows: Sequence[tuple[str, str]], tweets: Sequence[tuple[str, str]], chance: random.Random
) -> list[Reaction]:
    """Returns random reactions to the tweets by followers of their authors, in random order.

    `follows` are (follower, followee), `tweets` (author, text). Users are named by username.
    """
    followers: dict[str, list[str]] = defaultdict(list)
    for follower, followee in follows:
        followers[followee].append(follower)
    likely = (
        (Kind.LIKE, LIKELY_LIKE),
        (Kind.RETWEET, LIKELY_RETWEET),
        (Kind.REPLY, LIKELY_REPLY),
        (Kind.QUOTE, LIKELY_QUOTE),
    )
    found = []
    for number, (author, _) in enumerate(tweets):
        appeal = chance.random() ** APPEAL_POWER
        for who in followers[author]:
            found += [_made(who, kind, number, chance) for kind, most in likely if chance.random() < most * appeal]
    chance.shuffle(found)
    return found


def _made(who: str, kind: Kind, tweet: int, chance: random.Random) -> Reaction:
    if kind is Kind.QUOTE:
        return Reaction(who, kind, tweet, chance.choice(QUOTES))
    if kind is Kind.REPLY:
        answer = chance.choice(ANSWERS) if chance.random() < LIKELY_ANSWER else ""
        return Reaction(who, kind, tweet, chance.choice(REPLIES), answer)
    return Reaction(who, kind, tweet)


class ReactionSender:
    """Posts the demo's tweets and performs reactions by RPCs. `ids` are the user ids by username. `key` is the prefix
    of all idempotency keys: a second run with the same prefix adds nothing."""

    def __init__(self, channel: grpc.aio.Channel, actors: Actors, ids: Mapping[str, int], key: str) -> None:
        self._likes = engagement_service_pb2_grpc.EngagementServiceStub(channel)
        self._tweets = tweet_service_pb2_grpc.TweetServiceStub(channel)
        self._replies = reply_service_pb2_grpc.ReplyServiceStub(channel)
        self._actors = actors
        self._ids = ids
        self._key = key

    async def post(self, author: str, text: str, number: int) -> int:
        """Posts the tweet with this number and returns its id. Raises CommandError if the mesh refuses the tweet."""
        request = tweet_service_pb2.CreateTweetRequest(text=text, idempotency_key=f"{self._key}:{number}")
        try:
            return await self._create(author, request)
        except grpc.aio.AioRpcError as error:
            raise call_error(error, f"posting demo tweet {number}") from error

    async def react(self, reaction: Reaction, author: str, tweet_id: int) -> None:
        """Performs a reaction to the tweet with this id. `author` is the username of the tweet's author. Raises
        CommandError if the mesh refuses the reaction."""
        try:
            match reaction.kind:
                case Kind.LIKE:
                    await self._like(reaction.who, tweet_id)
                case Kind.RETWEET:
                    await self._retweet(reaction.who, tweet_id)
                case Kind.QUOTE:
                    await self._quote(reaction, tweet_id)
                case Kind.REPLY:
                    key = f"{self._key}:{reaction.tweet}:{reaction.who}"
                    reply_id = await self._reply(reaction.who, tweet_id, reaction.text, key)
                    if reaction.answer:
                        await self._reply(author, reply_id, reaction.answer, f"{key}:answer")
        except grpc.aio.AioRpcError as error:
            raise call_error(error, f"{reaction.kind.value} of {reaction.who}") from error

    async def _like(self, who: str, tweet_id: int) -> None:
        request = engagement_service_pb2.LikeTweetRequest(tweet_id=tweet_id)
        metadata = await self._actors.act_as(self._ids[who])
        await with_retries(lambda: self._likes.LikeTweet(request, metadata=metadata, timeout=deadline_s(LIKE)))

    async def _retweet(self, who: str, tweet_id: int) -> None:
        request = tweet_service_pb2.RetweetRequest(tweet_id=tweet_id)
        metadata = await self._actors.act_as(self._ids[who])
        await with_retries(lambda: self._tweets.Retweet(request, metadata=metadata, timeout=deadline_s(RETWEET)))

    async def _quote(self, reaction: Reaction, tweet_id: int) -> None:
        key = f"{self._key}:quote:{reaction.tweet}:{reaction.who}"
        request = tweet_service_pb2.CreateTweetRequest(text=reaction.text, quote_of_id=tweet_id, idempotency_key=key)
        await self._create(reaction.who, request)

    async def _create(self, who: str, request: tweet_service_pb2.CreateTweetRequest) -> int:
        metadata = await self._actors.act_as(self._ids[who])
        timeout = deadline_s(CREATE_TWEET)
        answer = await with_retries(lambda: self._tweets.CreateTweet(request, metadata=metadata, timeout=timeout))
        return answer.tweet.id

    async def _reply(self, who: str, tweet_id: int, text: str, key: str) -> int:
        request = reply_service_pb2.CreateReplyRequest(tweet_id=tweet_id, text=text, idempotency_key=key)
        metadata = await self._actors.act_as(self._ids[who])
        timeout = deadline_s(CREATE_REPLY)
        answer = await with_retries(lambda: self._replies.CreateReply(request, metadata=metadata, timeout=timeout))
        return answer.tweet.id
