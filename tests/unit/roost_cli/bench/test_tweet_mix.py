"""Tests which tweets the benchmark posts, and what it does if one is refused."""

from __future__ import annotations

import random
from collections import Counter

import orjson
import pytest

from roost_cli.bench import http_load
from roost_cli.bench.tweet_mix import TweetMix
from roost_cli.bench.tweet_texts import TweetTexts
from roost_cli.exit_codes import CommandError
from services.tweet import text


class Recorder(http_load.Connection):
    """Records requests, and answers them with the statuses in `refuse` by the end of the path, else with 201."""

    def __init__(self, **refuse: int) -> None:
        super().__init__("127.0.0.1:1")
        self.refuse = refuse
        self.sent: list[tuple[str, dict[str, str]]] = []

    async def ask(self, request: bytes) -> http_load.Response:
        head, _, body = request.partition(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        self.sent.append((path, orjson.loads(body)))
        status = self.refuse.get(path.rpartition("/")[2], 201)
        return http_load.Response(status, [], orjson.dumps({"id": str(1_000 + len(self.sent))}))


def mix(recent: list[str]) -> TweetMix:
    return TweetMix("127.0.0.1:1", ["t"], recent, random.Random(3))


async def test_write_posts_all_kinds_about_recent_tweets() -> None:
    connection, written = Recorder(), mix(["1", "2"])
    for _ in range(300):
        await written.write(connection)
    kinds = Counter(
        path.rpartition("/")[2] + (" quote" if "quote_of_id" in body else "") for path, body in connection.sent
    )
    assert set(kinds) == {"tweets", "tweets quote", "replies", "retweets", "likes"}
    assert kinds["tweets"] > kinds["retweets"] > kinds["tweets quote"]
    assert sum(kinds.values()) == 300 + kinds["likes"]


async def test_write_refused_reply_becomes_plain_tweet() -> None:
    connection, written = Recorder(replies=403, retweets=404, likes=404), mix(["1"])
    for _ in range(100):
        await written.write(connection)
    refused = [number for number, (path, _) in enumerate(connection.sent) if path.endswith(("/replies", "/retweets"))]
    assert refused
    assert all(connection.sent[number + 1][0] == "/v1/tweets" for number in refused)
    assert all("quote_of_id" not in connection.sent[number + 1][1] for number in refused)


async def test_write_other_failure_raises_command_error() -> None:
    with pytest.raises(CommandError, match="status 500"):
        await mix([]).write(Recorder(tweets=500))


def test_texts_fit_into_tweet() -> None:
    texts = TweetTexts(1)
    found = [texts.next() for _ in range(500)]
    assert len(set(found)) == 500
    assert all(text.weight(one) <= 280 for one in found)
    assert 0.3 < sum("#" in one for one in found) / 500 < 0.5
