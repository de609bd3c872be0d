"""Creates the demo's users, follows and tweets from word lists and a constant seed, and loads them through RPCs.

If loading is interrupted, the next run completes it.
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
from roost_cli.exit_codes import call_error
from roost_cli.load.demo.reactions import Reaction, ReactionSender, reactions
from roost_cli.load.demo.words import BULLETINS, CIRCLES, PEOPLE, SENTENCES, Circle
from roost_cli.load.impersonation import LocalActors
from roost_cli.load.loader import Loader, NewUser, Operator
from roost_cli.rate_control import deadline_s, for_each, with_retries
from roost_cli.scans import scan_users
from services.platform.files import write_durably

SEED = 7
TWEETS = 420
# Probability that a tweet is about the topic of its author's circle (a group of users with a common topic).
OWN_TOPIC_SHARE = 0.8
# Probability that a user follows another user of the same circle, and of another circle.
FOLLOW_NEAR, FOLLOW_FAR = 0.75, 0.12
# One of this many tweets is by the user whom all others follow.
BULLETIN_EVERY = 14
CONCURRENCY = 16
# Number of tweets that are posted before the reactions to them.
WAVE = 12
# Number of random bytes of the password. In base64 they are 16 characters, which cannot be guessed and are short enough
# to print.
PASSWORD_BYTES = 12

# Name of the file in the data directory with the demo's log-in, and whether the demo is loaded completely.
MARKER = "demo.json"
SIGN_UP = "/roost.identity.v1.AuthService/SignUp"


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """The username and password of the demo user whose log-in is printed."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class DemoContent:
    """The content of the demo: users, follows as (follower, followee), tweets as (author, text) in the order of
    posting, and reactions. Users are named by username."""

    people: list[NewUser]
    follows: list[tuple[str, str]]
    tweets: list[tuple[str, str]]
    reactions: list[Reaction]


@dataclass(frozen=True, slots=True)
class Wave:
    """The numbers of the tweets that are posted next, and the reactions to these tweets, which follow."""

    tweets: range
    reactions: list[Reaction]


def demo_content(seed: int = SEED) -> DemoContent:
    """Returns the content of the demo. The same seed gives the same content."""
    chance = random.Random(seed)  # noqa: S311 (must be reproducible)
    people = [NewUser(*entry) for entry in PEOPLE]
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
        circle = own if chance.random() < OWN_TOPIC_SHARE else chance.choice(CIRCLES)
        other = chance.choice([name for name in names if name != author])
        tweets.append((author, _text(chance, BULLETINS if author == star else SENTENCES, circle, other)))
    return DemoContent(people, follows, tweets, reactions(follows, tweets, chance))


def waves(content: DemoContent) -> Iterator[Wave]:
    """Yields the tweets in groups of WAVE, each group with the reactions to its tweets."""
    for start in range(0, len(content.tweets), WAVE):
        numbers = range(start, min(start + WAVE, len(content.tweets)))
        yield Wave(numbers, [reaction for reaction in content.reactions if reaction.tweet in numbers])


async def load_once(channel: Callable[[str], grpc.aio.Channel], data_dir: Path) -> DemoAccount | None:
    """Loads the demo if the mesh has no users, or if an earlier load of the demo was interrupted. Returns the demo's
    log-in, or None if the mesh has users but no demo.

    `channel` returns an in-process channel for calls of the named caller. Raises CommandError if a call fails.
    """
    operator = Operator(channel("operator"), ())
    marker = data_dir / MARKER
    account = _read_marker(marker)
    if account is None:
        async for _ in scan_users(operator.channel, operator.metadata):
            return None
        account = DemoAccount(PEOPLE[0][0], secrets.token_urlsafe(PASSWORD_BYTES))
        _write_marker(marker, account, complete=False)
    elif _is_complete(marker):
        return account
    await load_demo(channel(""), operator, account, progress.for_stream())
    _write_marker(marker, account, complete=True)
    return account


async def load_demo(
    channel: grpc.aio.Channel, operator: Operator, account: DemoAccount, shown: progress.Progress
) -> None:
    """Signs up the account and loads all other content over in-process channels. Skips content that exists already."""
    content = demo_content()
    await _sign_up(channel, account, content.people[0])
    actors = LocalActors()
    loader = Loader([channel], operator, actors, shown, CONCURRENCY)
    ids = await loader.import_users(content.people)
    await loader.follow([(ids[follower], ids[followee]) for follower, followee in content.follows])
    player = ReactionSender(channel, actors, ids, f"demo:{SEED}")
    with shown.phase("tweets and reactions", len(content.tweets) + len(content.reactions)) as phase:
        # Tweets and reactions alternate. If all reactions came last, all retweets, quotes and replies would be newer
        # than all tweets.
        for wave in waves(content):
            tweet_ids: dict[int, int] = {}

            async def post(number: int, found: dict[int, int] = tweet_ids) -> None:
                author, text = content.tweets[number]
                found[number] = await player.post(author, text, number)

            async def react(reaction: Reaction, found: dict[int, int] = tweet_ids) -> None:
                await player.react(reaction, content.tweets[reaction.tweet][0], found[reaction.tweet])

            await for_each(wave.tweets, post, concurrency=CONCURRENCY, done=phase.advance)
            await for_each(wave.reactions, react, concurrency=CONCURRENCY, done=phase.advance)


async def _sign_up(channel: grpc.aio.Channel, account: DemoAccount, person: NewUser) -> None:
    stub = auth_service_pb2_grpc.AuthServiceStub(channel)
    request = auth_service_pb2.SignUpRequest(
        username=account.username,
        email=f"{account.username}@people.invalid",
        password=account.password,
        profile=user_pb2.Profile(display_name=person.display_name, bio=person.bio),
    )
    try:
        await with_retries(lambda: stub.SignUp(request, timeout=deadline_s(SIGN_UP)))
    except grpc.aio.AioRpcError as error:
        # An interrupted run has signed up the account already, with the password in the file MARKER.
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise call_error(error, "signing the demo account up") from error


def _text(chance: random.Random, sentences: tuple[str, ...], circle: Circle, other: str) -> str:
    text = chance.choice(sentences).format(
        thing=chance.choice(circle.things), place=chance.choice(circle.places), tag=circle.tag, other=other
    )
    return text[0].upper() + text[1:]


def _write_marker(marker: Path, account: DemoAccount, *, complete: bool) -> None:
    """Writes the log-in, and whether the demo is loaded completely, to the file `marker`, which only its owner can
    read."""
    content = {"username": account.username, "password": account.password, "complete": complete}
    write_durably(marker, orjson.dumps(content))


def _read_marker(marker: Path) -> DemoAccount | None:
    content = _read(marker)
    return DemoAccount(str(content["username"]), str(content["password"])) if content else None


def _is_complete(marker: Path) -> bool:
    return bool(_read(marker).get("complete"))


def _read(marker: Path) -> dict[str, object]:
    try:
        content = orjson.loads(marker.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) and {"username", "password"} <= content.keys() else {}
