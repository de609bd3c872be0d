"""Measures when tweets become visible: the time from the response to a post until a follower reads the tweet."""

from __future__ import annotations

import asyncio
import platform
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import orjson

from roost_cli import progress
from roost_cli.bench import cpu, http_load, local_mesh, table
from roost_cli.bench.background_posts import poster, posting
from roost_cli.bench.first_pages import HOME, first_pages
from roost_cli.bench.percentiles import percentile
from roost_cli.bench.tweet_mix import TweetMix
from roost_cli.bench.tweet_texts import TweetTexts
from roost_cli.exit_codes import FAULTS, CommandError

TABLE = "delivery"
IDLE, WRITTEN_TO = "idle", "{} posts/s"
# Number of readers per tweet who look for it. Each reads over and over, which is load too.
READERS = 4
# Maximum number of seconds until a reader sees a tweet.
SEEN_WITHIN_S = 30.0
# Seconds between two reads of a reader who does not see the tweet yet: the resolution of the measurement.
LOOK_EVERY_S = 0.001


@dataclass(frozen=True, slots=True)
class DeliveryRound:
    """The result of one round: the seconds from the response to a post until a reader saw the tweet, for each tweet and
    reader, and the latencies of the posts in seconds."""

    seen_s: Sequence[float]
    posts_s: Sequence[float]

    def seen_ms(self, percent: float) -> float:
        """Returns a percentile of the times until a reader saw a tweet, in milliseconds."""
        return percentile(self.seen_s, percent) * 1e3


MEASURES = (
    table.Measure[DeliveryRound]("tweets", lambda one: len(one.posts_s), ",.0f"),
    table.Measure[DeliveryRound]("seen after the 201, p50 ms", lambda one: one.seen_ms(50), ",.1f"),
    table.Measure[DeliveryRound]("seen after the 201, p95 ms", lambda one: one.seen_ms(95), ",.1f"),
    table.Measure[DeliveryRound]("seen after the 201, p99 ms", lambda one: one.seen_ms(99), ",.1f"),
    table.Measure[DeliveryRound]("p50 ms of the post", lambda one: percentile(one.posts_s, 50) * 1e3, ",.2f"),
)


def run(rounds: int, seconds: int, posts: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    """Measures for `seconds` seconds in each round when tweets become visible: on a mesh without other load, and on one
    with `posts` other tweets per second. Prints a table of the results.

    Raises CommandError if the mesh cannot be reached or limits rates, if a request fails, if nobody follows anybody, if
    a tweet is not seen within SEEN_WITHIN_S seconds, or if `output` refuses the table.
    """
    asyncio.run(_run(rounds, seconds, posts, mesh, output))


async def _run(rounds: int, seconds: int, posts: int, mesh: local_mesh.LocalMesh, output: table.Output) -> None:
    shown = progress.for_stream()
    tokens = await local_mesh.access_tokens(mesh)
    pages = await first_pages(mesh.http, list(tokens.values()), shown)
    pairs = readers_by_author(list(tokens), pages.authors)
    if not pairs:
        raise CommandError("no home timeline has a tweet of another user: load a graph first with `roost load`")
    loads = {IDLE: 0, WRITTEN_TO.format(posts): posts} if posts else {IDLE: 0}
    cases: dict[str, list[DeliveryRound]] = {name: [] for name in loads}
    with cpu.Bystanders(mesh.pids) as bystanders:
        async with AsyncExitStack() as stack:
            mix = TweetMix(mesh.http, list(tokens.values()), pages.tweet_ids, random.SystemRandom())
            writer = await stack.enter_async_context(poster(mesh.http, mix.write))
            opened = await stack.enter_async_context(http_load.connections(mesh.http, READERS + 1))
            watcher = _Watcher(mesh.http, opened, tokens, pairs)
            for number in range(1, rounds + 1):
                for name, per_second in loads.items():
                    async with posting(writer, per_second):
                        done = await watcher.round(seconds)
                    await writer.finish()
                    cases[name].append(done)
                    shown.say(f"round {number}, {name}: seen after {done.seen_ms(50):,.1f} ms")
    note = (
        f"{pages.graph} {rounds} × {seconds} s for each column in turn; one tweet after another, {READERS} followers "
        f"look for each; {cpu.processor()}; Python {platform.python_version()}.{bystanders.warning()}"
    )
    output.publish(TABLE, note, table.compare(cases, MEASURES, IDLE))


def readers_by_author(readers: Sequence[int], authors: Sequence[frozenset[int]]) -> dict[int, list[int]]:
    """Returns for each author the readers on whose page a tweet of the author is, without the author. `authors` are the
    authors on the page of each of the `readers`.

    So these readers follow the author and did not mute them.
    """
    found: dict[int, list[int]] = {}
    for reader, seen in zip(readers, authors, strict=True):
        for author in seen - {reader}:
            found.setdefault(author, []).append(reader)
    return found


class _Watcher:
    """Posts tweets and lets followers look for them. `opened` are READERS + 1 connections, `tokens` the access tokens by
    user id, and `pairs` the readers of each author."""

    def __init__(
        self,
        address: str,
        opened: Sequence[http_load.Connection],
        tokens: dict[int, str],
        pairs: dict[int, list[int]],
    ) -> None:
        self._address = address
        self._opened = opened
        self._tokens = tokens
        self._pairs = {author: readers for author, readers in pairs.items() if author in tokens}
        self._chance = random.SystemRandom()
        self._texts = TweetTexts(seed=2)

    async def round(self, seconds: int) -> DeliveryRound:
        """Posts one tweet after another for `seconds` seconds, and waits until each is seen. Raises CommandError if
        that takes longer than SEEN_WITHIN_S seconds, or if a request fails."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        seen_s: list[float] = []
        posts_s: list[float] = []
        while not seen_s or loop.time() < until:
            author = self._chance.choice(list(self._pairs))
            body = orjson.dumps({"text": self._texts.next()})
            begun = loop.time()
            answer = await self._opened[0].ask(
                http_load.request("POST", "/v1/tweets", self._address, self._tokens[author], body)
            )
            posted = loop.time()
            http_load.check(answer, 201)
            posts_s.append(posted - begun)
            mark = b'"id":"%s"' % orjson.loads(answer.body)["id"].encode()
            readers = self._chance.sample(self._pairs[author], min(READERS, len(self._pairs[author])))
            looks = (self._look(*one, mark, posted) for one in zip(self._opened[1:], readers, strict=False))
            seen_s += await asyncio.gather(*looks)
        return DeliveryRound(seen_s, posts_s)

    async def _look(self, connection: http_load.Connection, reader: int, mark: bytes, posted: float) -> float:
        """Reads the first page of a home timeline until it contains `mark`. Returns the seconds since `posted`."""
        loop = asyncio.get_running_loop()
        request = http_load.request("GET", HOME, self._address, self._tokens[reader])
        while True:
            answer = await connection.ask(request)
            http_load.check(answer, 200)
            if mark in answer.body:
                return loop.time() - posted
            if loop.time() > posted + SEEN_WITHIN_S:
                raise CommandError(f"a follower did not see a tweet within {SEEN_WITHIN_S:g} s", FAULTS)
            await asyncio.sleep(LOOK_EVERY_S)
