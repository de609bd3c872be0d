"""Reads the first page of every home timeline once, before a measurement."""

from __future__ import annotations

import asyncio
import http
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from roost_cli import progress
from roost_cli.bench import baseline_server, http_load
from roost_cli.exit_codes import FAULTS, CommandError

HOME = "/v1/timelines/home"
# Words that a search may be about.
_WORD = re.compile(r"\b[a-zA-Z]{4,20}\b")
# The kinds of tweets that make a page dearer, and the least share of them on the pages of a mutated graph. After
# `roost load --mutate` about half of the newest tweets are of these kinds.
MUTATED, MUTATED_SHARE = ("replies", "retweets", "quotes"), 0.1


@dataclass(frozen=True, slots=True)
class Pages:
    """The result of reading all home timelines once: the headers and body of the page that the baseline returns, the
    latency of each read in seconds, the size of all bodies together, the ids of the tweets on all pages, ascending, the
    ids of the threads that have a reply on a page, words of the texts, the authors on the page of each reader, the mean
    number of tweets per page, and the mean number of tweets per page of each kind, such as `replies`."""

    headers: baseline_server.Headers
    body: bytes
    latencies_s: Sequence[float]
    bytes: int
    tweet_ids: Sequence[str]
    threads: Sequence[str]
    words: Sequence[str]
    authors: Sequence[frozenset[int]]
    tweets_each: float
    kinds_each: Mapping[str, float]

    @property
    def content(self) -> str:
        """Returns a sentence about the readers and the kinds of tweets on their pages."""
        kinds = ", ".join(f"{count:.1f} {kind}" for kind, count in self.kinds_each.items())
        return f"{len(self.latencies_s):,} readers, {self.tweets_each:.1f} tweets a page (of them {kinds})."

    @property
    def graph(self) -> str:
        """Returns `content`, and a warning if fewer than MUTATED_SHARE of the tweets are replies, retweets or quotes."""
        if sum(self.kinds_each[kind] for kind in MUTATED) >= MUTATED_SHARE * self.tweets_each:
            return self.content
        return (
            f"{self.content} **The pages hold almost only plain tweets, and reads of such pages are cheaper than real ones. "
            "Either the graph is not mutated, or plain tweets came after it, such as those of `bench posts`: run "
            "`roost load --mutate` again.**"
        )


async def first_pages(address: str, tokens: Sequence[str], shown: progress.Progress) -> Pages:
    """Reads the first page of every home timeline once, one after the other, which makes the home timelines warm.
    Returns the page whose size is closest to the mean, and what the pages contain.

    `address` is that of the gateway, `tokens` are the access tokens of the readers. Raises CommandError if a response
    is not 200, if rate limits are on, or if all home timelines are empty.
    """
    read: list[http_load.Response] = []
    latencies_s: list[float] = []
    loop = asyncio.get_running_loop()
    async with http_load.connections(address, 1) as (connection,):
        with shown.phase("homes read once", len(tokens)) as phase:
            for token in tokens:
                begun = loop.time()
                try:
                    answer = await connection.ask(http_load.request("GET", HOME, address, token))
                except (OSError, TimeoutError) as error:
                    raise CommandError(f"the gateway at {address} sent no response: {error}", FAULTS) from error
                check_response(answer.status, dict(answer.headers))
                latencies_s.append(loop.time() - begun)
                read.append(answer)
                phase.advance()
    pages = [orjson.loads(answer.body)["tweets"] for answer in read]
    tweets = [tweet for page in pages for tweet in page]
    if not tweets:
        raise CommandError("every home timeline is empty: load tweets first with `roost load`")
    size = sum(len(answer.body) for answer in read)
    mean = size / len(read)
    nearest = min(read, key=lambda answer: abs(len(answer.body) - mean))
    ids = sorted({tweet["id"] for tweet in tweets}, key=int)
    threads = sorted({tweet["conversation_id"] for tweet in tweets if tweet["reply_to_id"] != "0"})
    words = sorted({word.lower() for tweet in tweets for word in _WORD.findall(tweet["text"])})
    authors = [frozenset(int(tweet["author_id"]) for tweet in page) for page in pages]
    kinds = {name: count / len(read) for name, count in count_kinds(tweets).items()}
    return Pages(
        headers=nearest.headers,
        body=nearest.body,
        latencies_s=latencies_s,
        bytes=size,
        tweet_ids=ids,
        threads=threads,
        words=words,
        authors=authors,
        tweets_each=len(tweets) / len(read),
        kinds_each=kinds,
    )


def count_kinds(tweets: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns how many of the tweets, in JSON, are of each kind that makes a page dearer. A tweet may count more than
    once."""
    return {
        "replies": sum(tweet["reply_to_id"] != "0" for tweet in tweets),
        "retweets": sum(tweet["retweet_of_id"] != "0" for tweet in tweets),
        "quotes": sum(tweet["quote_of_id"] != "0" for tweet in tweets),
        "liked": sum(tweet["metrics"]["likes"] > 0 for tweet in tweets),
    }


def check_response(status: int, headers: Mapping[str, str]) -> None:
    """Raises CommandError if the status of a response is not 200, or if its headers show that rate limits are on."""
    names = {name.lower() for name in headers}
    if status == http.HTTPStatus.TOO_MANY_REQUESTS or "ratelimit-policy" in names:
        raise CommandError("rate limits are on: start the mesh with ROOST_RATE_LIMITS=off to measure it")
    if status != http.HTTPStatus.OK:
        raise CommandError(f"GET {HOME} returned status {status}", FAULTS)
