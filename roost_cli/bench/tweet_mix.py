"""Posts tweets of all kinds over HTTP: plain ones, replies, quotes and retweets, and likes tweets.

Plain tweets alone would soon fill all pages, and a page of plain tweets is cheaper to read than a real one.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
from enum import StrEnum

import orjson

from roost_cli.bench import http_load
from roost_cli.bench.tweet_texts import TweetTexts
from roost_cli.exit_codes import CommandError

TWEETS = "/v1/tweets"
# Number of recent tweets that replies, quotes, retweets and likes are about. People mostly act on what they see on the
# first pages.
RECENT_TWEETS = 200
# Statuses with which the mesh may refuse a write because of the data: one user blocks the other, or the tweet is gone.
REFUSALS = frozenset({403, 404})


class Kind(StrEnum):
    """A kind of tweet."""

    PLAIN = "plain"
    REPLY = "reply"
    QUOTE = "quote"
    RETWEET = "retweet"


# The shares of the kinds, and the number of likes per tweet, are those of `roost load --mutate`.
WEIGHTS = {Kind.PLAIN: 18, Kind.REPLY: 15, Kind.QUOTE: 6, Kind.RETWEET: 12}
LIKES_A_TWEET = 9 / 51


class TweetMix:
    """Posts tweets as random users. `address` is that of the gateway, `tokens` are the access tokens of the users,
    `recent` the ids of tweets that exist already, oldest first."""

    def __init__(self, address: str, tokens: Sequence[str], recent: Iterable[str], chance: random.Random) -> None:
        self._address = address
        self._tokens = tokens
        self._recent = deque(recent, maxlen=RECENT_TWEETS)
        self._chance = chance
        self._texts = TweetTexts(seed=1)

    async def write(self, connection: http_load.Connection) -> None:
        """Posts one tweet of a random kind, and sometimes likes a recent tweet after it. If the mesh refuses a reply, a
        quote or a retweet because of a block or a deletion, posts a plain tweet instead.

        Raises CommandError if the mesh returns any other error, OSError or TimeoutError as `Connection.ask` does.
        """
        kind = self._chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] if self._recent else Kind.PLAIN
        response = await connection.ask(self._request(kind))
        if kind is not Kind.PLAIN and response.status in REFUSALS:
            response = await connection.ask(self._request(Kind.PLAIN))
        _check(response)
        self._recent.append(orjson.loads(response.body)["id"])
        if self._chance.random() < LIKES_A_TWEET:
            liked = await connection.ask(self._post(f"{TWEETS}/{self._chance.choice(self._recent)}/likes", {}))
            if liked.status not in REFUSALS:
                _check(liked)

    def _request(self, kind: Kind) -> bytes:
        if kind is Kind.PLAIN:
            return self._post(TWEETS, {"text": self._texts.next()})
        about = self._chance.choice(self._recent)
        if kind is Kind.QUOTE:
            return self._post(TWEETS, {"text": self._texts.next(), "quote_of_id": about})
        if kind is Kind.REPLY:
            return self._post(f"{TWEETS}/{about}/replies", {"text": self._texts.next()})
        return self._post(f"{TWEETS}/{about}/retweets", {})

    def _post(self, path: str, fields: dict[str, str]) -> bytes:
        return http_load.request("POST", path, self._address, self._chance.choice(self._tokens), orjson.dumps(fields))


def _check(response: http_load.Response) -> None:
    if response.status not in (200, 201):
        raise CommandError(f"a write returned status {response.status}: {response.body.decode(errors='replace')}")
