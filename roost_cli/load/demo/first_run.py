"""The demo: a few dozen people, whom they follow and what they say, made from word lists by a fixed seed.

It goes in through the same RPCs as everything else, and may be repeated: an interrupted first run is finished by the next.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import orjson
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc, user_pb2

from roost_cli import progress
from roost_cli.exit_codes import refused
from roost_cli.load.demo.reactions import Player, Reaction, reactions
from roost_cli.load.demo.words import BULLETINS, CIRCLES, PEOPLE, SENTENCES, Circle
from roost_cli.load.impersonation import LocalActors
from roost_cli.load.loader import Loader, Operator, Person
from roost_cli.rate_control import deadline_s, for_each, patiently
from roost_cli.scans import scan_users
from services.platform.files import write_durably

SEED = 7
TWEETS = 420
# Of each person's tweets about the own circle's matter; the rest are about somebody else's.
LOYALTY = 0.8
# How likely somebody follows a person of the own circle, and of another.
FOLLOW_NEAR, FOLLOW_FAR = 0.75, 0.12
# One tweet in this many is a bulletin of the account that everybody follows.
BULLETIN_EVERY = 14
CONCURRENCY = 16
# Tweets that are posted before others react to them: an hour's worth of a small town.
WAVE = 12
# 16 characters of base 64: no one guesses it, and one line shows it.
PASSWORD_BYTES = 12

MARKER = "demo.json"
SIGN_UP = "/roost.identity.v1.AuthService/SignUp"


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """Who to log in as."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Cast:
    """The demo's content: people, (follower, followee) by username, (author, text) in the order of posting, and what others make of it."""

    people: list[Person]
    follows: list[tuple[str, str]]
    tweets: list[tuple[str, str]]
    reactions: list[Reaction]


@dataclass(frozen=True, slots=True)
class Wave:
    """Tweets, by number, that are posted before any of these reactions to them."""

    tweets: range
    reactions: list[Reaction]


def cast(seed: int = SEED) -> Cast:
    """Makes the demo's content: the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 (a demo that is the same everywhere)
    people = [Person(*entry) for entry in PEOPLE]
    names = [person.username for person in people]
    star = names[1]
    circle_of = {name: index % len(CIRCLES) for index, name in enumerate(names)}
    follows = []
    for follower in names:
        for followee in names:
            near = circle_of[follower] == circle_of[followee]
            likely = 1.0 if followee == star else FOLLOW_NEAR if near else FOLLOW_FAR
            if follower != followee and chance.random() < likely:
                follows.append((follower, followee))
    tweets = []
    for number in range(TWEETS):
        author = star if number % BULLETIN_EVERY == 0 else chance.choice([name for name in names if name != star])
        own = CIRCLES[circle_of[author]]
        circle = own if chance.random() < LOYALTY else chance.choice(CIRCLES)
        other = chance.choice([name for name in names if name != author])
        tweets.append((author, _text(chance, BULLETINS if author == star else SENTENCES, circle, other)))
    return Cast(people, follows, tweets, reactions(follows, tweets, chance))


def waves(content: Cast) -> Iterator[Wave]:
    """Yields the tweets in lots of WAVE, each with what others make of them."""
    for start in range(0, len(content.tweets), WAVE):
        numbers = range(start, min(start + WAVE, len(content.tweets)))
        yield Wave(numbers, [reaction for reaction in content.reactions if reaction.tweet in numbers])


async def load_once(channel: Callable[[str], grpc.aio.Channel], data_dir: Path) -> DemoAccount | None:
    """Loads the demo where `data_dir` has never held anybody, or where that was interrupted; answers its log-in, else None.

    `channel` makes channels of this process by the caller's name. CommandError where a call is refused.
    """
    operator = Operator(channel("operator"), ())
    marker = data_dir / MARKER
    account = _recall(marker)
    if account is None:
        async for _ in scan_users(operator.channel, operator.metadata):
            return None
        account = DemoAccount(PEOPLE[0][0], secrets.token_urlsafe(PASSWORD_BYTES))
        _remember(marker, account, complete=False)
    elif _complete(marker):
        return account
    await load_demo(channel(""), operator, account, progress.for_stream())
    _remember(marker, account, complete=True)
    return account


async def load_demo(
    channel: grpc.aio.Channel, operator: Operator, account: DemoAccount, shown: progress.Progress
) -> None:
    """Signs the account up and loads everybody else, over channels of this process; what is there already stays."""
    content = cast()
    await _sign_up(channel, account, content.people[0])
    actors = LocalActors()
    loader = Loader([channel], operator, actors, shown, CONCURRENCY)
    ids = await loader.import_people(content.people)
    await loader.follow([(ids[follower], ids[followee]) for follower, followee in content.follows])
    player = Player(channel, actors, ids, f"demo:{SEED}")
    with shown.phase("tweets and reactions", len(content.tweets) + len(content.reactions)) as phase:
        # In waves, so that retweets, quotes and replies come between the tweets, as they would, and not above all of them.
        for wave in waves(content):
            tweet_ids: dict[int, int] = {}

            async def post(number: int, found: dict[int, int] = tweet_ids) -> None:
                author, text = content.tweets[number]
                found[number] = await player.post(author, text, number)

            async def react(reaction: Reaction, found: dict[int, int] = tweet_ids) -> None:
                await player.react(reaction, content.tweets[reaction.tweet][0], found[reaction.tweet])

            await for_each(wave.tweets, post, concurrency=CONCURRENCY, done=phase.advance)
            await for_each(wave.reactions, react, concurrency=CONCURRENCY, done=phase.advance)


async def _sign_up(channel: grpc.aio.Channel, account: DemoAccount, person: Person) -> None:
    stub = auth_service_pb2_grpc.AuthServiceStub(channel)
    request = auth_service_pb2.SignUpRequest(
        username=account.username,
        email=f"{account.username}@people.invalid",
        password=account.password,
        profile=user_pb2.Profile(display_name=person.display_name, bio=person.bio),
    )
    try:
        await patiently(lambda: stub.SignUp(request, timeout=deadline_s(SIGN_UP)))
    except grpc.aio.AioRpcError as error:
        # An interrupted run got that far: the marker holds the password it used.
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise refused(error, "signing the demo account up") from error


def _text(chance: random.Random, sentences: tuple[str, ...], circle: Circle, other: str) -> str:
    text = chance.choice(sentences).format(
        thing=chance.choice(circle.things), place=chance.choice(circle.places), tag=circle.tag, other=other
    )
    return text[0].upper() + text[1:]


def _remember(marker: Path, account: DemoAccount, *, complete: bool) -> None:
    """Keeps the log-in beside the data, readable by its owner alone."""
    content = {"username": account.username, "password": account.password, "complete": complete}
    write_durably(marker, orjson.dumps(content))


def _recall(marker: Path) -> DemoAccount | None:
    content = _read(marker)
    return DemoAccount(str(content["username"]), str(content["password"])) if content else None


def _complete(marker: Path) -> bool:
    return bool(_read(marker).get("complete"))


def _read(marker: Path) -> dict[str, object]:
    try:
        content = orjson.loads(marker.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) and {"username", "password"} <= content.keys() else {}
