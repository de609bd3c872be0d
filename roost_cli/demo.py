"""The demo: a few dozen people, whom they follow and what they say, made from word lists by a fixed seed.

It goes in through the same RPCs as everything else, and may be repeated: an interrupted first run is finished by the next.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import orjson
from roost.identity.v1 import auth_service_pb2, auth_service_pb2_grpc, user_pb2

from roost_cli import progress
from roost_cli.actors import LocalActors
from roost_cli.demo_words import BULLETINS, CIRCLES, PEOPLE, SENTENCES, Circle
from roost_cli.loader import Loader, Operator, Person, Post, scan_users
from roost_cli.outcome import refused
from roost_cli.pace import deadline_s, patiently
from services.common.files import write_durably

SEED = 7
TWEETS = 420
# Of each person's tweets about the own circle's matter; the rest are about somebody else's.
LOYALTY = 0.8
# How likely somebody follows a person of the own circle, and of another.
FOLLOW_NEAR, FOLLOW_FAR = 0.75, 0.12
# One tweet in this many is a bulletin of the account that everybody follows.
BULLETIN_EVERY = 14
CONCURRENCY = 16
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
    """The demo's content: people, (follower, followee) by username, and (author, text) in the order of posting."""

    people: list[Person]
    follows: list[tuple[str, str]]
    tweets: list[tuple[str, str]]


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
    return Cast(people, follows, tweets)


async def first_run(channel: Callable[[str], grpc.aio.Channel], data_dir: Path) -> DemoAccount | None:
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
    loader = Loader([channel], operator, LocalActors(), shown, CONCURRENCY)
    ids = await loader.import_people(content.people)
    await loader.follow([(ids[follower], ids[followee]) for follower, followee in content.follows])
    posts = [
        Post(ids[author], text, f"demo:{SEED}:{number}", f"demo tweet {number}")
        for number, (author, text) in enumerate(content.tweets)
    ]
    await loader.post(posts, time.time())


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
