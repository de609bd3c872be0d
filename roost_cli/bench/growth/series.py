"""The series of `roost bench growth`: each measures costs on meshes of growing size, in temporary data directories."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from roost_cli import progress
from roost_cli.bench.growth.filler import Filler
from roost_cli.bench.growth.mesh import Cost, GrowthMesh, cost, running
from roost_cli.bench.tweet_texts import TweetTexts
from roost_cli.exit_codes import FAULTS, CommandError

# Number of users whom the measured reader follows and who follow the measured author, in the series of users and
# tweets: the mean of the Reed98 graph.
FOLLOWS = 39
# Number of tweets of each of these users: enough for a full home timeline.
TWEETS_EACH = 25
# Number of followees of each other user. With few, a million users are filled in a minute.
OTHER_FOLLOWEES = 2
# Number of times that an operation is repeated. With growing homes fewer, because every post makes the home longer.
REPEATS, FEW_REPEATS = 41, 11


@dataclass(frozen=True, slots=True)
class Series:
    """What is measured: `sizes` are the sizes of the mesh, of which `full_sizes` take minutes each, and `measure` yields
    the costs by title for each size. `most` is the exponent above which growth is a defect, None if there is none."""

    name: str
    x_title: str
    sizes: Sequence[int]
    full_sizes: Sequence[int]
    most: float | None
    measure: Callable[[Sequence[int], progress.Progress], AsyncIterator[Mapping[str, Cost]]]


@dataclass(slots=True)
class _Point:
    """The data directory of a series while it grows."""

    folder: Path
    filler: Filler
    texts: TweetTexts = field(default_factory=lambda: TweetTexts(seed=4))

    async def prepare(self) -> None:
        """Creates empty databases."""
        async with running(self.folder, 1):
            pass

    async def post(self, mesh: GrowthMesh, author: int, followers: int) -> None:
        """Posts a tweet of the user with this number, and waits until it is delivered. Raises CommandError if it was
        delivered to another number of home timelines than `followers`."""
        delivered = await mesh.post(self.filler.user_id(author), self.texts.next())
        if delivered != followers:
            raise CommandError(
                f"a tweet was delivered to {delivered:,} home timelines instead of {followers:,}", FAULTS
            )

    def read(self, mesh: GrowthMesh, reader: int) -> Callable[[int], Awaitable[object]]:
        """Returns an operation that reads the home timeline of the user with this number."""
        return lambda _: mesh.read(self.filler.user_id(reader))


@asynccontextmanager
async def _point() -> AsyncIterator[_Point]:
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        point = _Point(Path(folder), Filler(Path(folder)))
        await point.prepare()
        yield point


async def _followers(sizes: Sequence[int], shown: progress.Progress) -> AsyncIterator[Mapping[str, Cost]]:
    """The author with number i has the first `sizes[i]` of the other users as followers, all with warm homes."""
    authors, most = len(sizes), max(sizes)
    async with _point() as point:
        with shown.phase("users and follows filled", 0):
            point.filler.add_users(range(authors + most))
            point.filler.add_follows(
                (authors + follower, author) for author, size in enumerate(sizes) for follower in range(size)
            )
        async with running(point.folder, authors + most) as mesh:
            with shown.phase("homes made warm", most):
                await mesh.warm(point.filler.user_id(authors + number) for number in range(most))
            for author, size in enumerate(sizes):
                repeats = FEW_REPEATS if size <= 10_000 else 3

                async def post(_: int, author: int = author, size: int = size) -> None:
                    await point.post(mesh, author, size)

                yield {"post and fan-out": await cost(post, repeats)}


async def _length(sizes: Sequence[int], shown: progress.Progress) -> AsyncIterator[Mapping[str, Cost]]:
    """The reader with number 2i + 1 follows only the author with number 2i, who has `sizes[i]` tweets."""
    async with _point() as point:
        point.filler.add_users(range(2 * len(sizes)))
        point.filler.add_follows((2 * pair + 1, 2 * pair) for pair in range(len(sizes)))
        authors = [2 * pair for pair, size in enumerate(sizes) for _ in range(size)]
        point.filler.add_tweets(enumerate(authors))
        async with running(point.folder, 2 * len(sizes)) as mesh:
            for pair in range(len(sizes)):
                read = point.read(mesh, 2 * pair + 1)
                await read(0)

                async def post(_: int, author: int = 2 * pair) -> None:
                    await point.post(mesh, author, 1)

                async def rebuild(_: int, reader: int = 2 * pair + 1) -> None:
                    await mesh.rebuild(point.filler.user_id(reader))

                built = await cost(rebuild, FEW_REPEATS)
                yield {"page made anew": await cost(read, FEW_REPEATS, post), "home built": built}


async def _celebrities(sizes: Sequence[int], shown: progress.Progress) -> AsyncIterator[Mapping[str, Cost]]:
    """The reader with number i follows the first `sizes[i]` celebrities, whose numbers come after the readers'."""
    readers, most = len(sizes), max(sizes)
    async with _point() as point:
        point.filler.add_users(range(readers + most))
        point.filler.add_follows((reader, readers + one) for reader, size in enumerate(sizes) for one in range(size))
        point.filler.add_tweets((number, readers + number % most) for number in range(most * TWEETS_EACH))
        async with running(point.folder, readers) as mesh:
            for one in range(most):
                await mesh.make_celebrity(point.filler.user_id(readers + one))
        # The tiers are known from the start of the next mesh on.
        async with running(point.folder, readers) as mesh:
            for reader in range(readers):
                read = point.read(mesh, reader)
                await read(0)

                async def post(_: int) -> None:
                    await point.post(mesh, readers, 0)

                yield {"page made anew": await cost(read, FEW_REPEATS, post)}


class _Growing:
    """A mesh whose measured users stay the same while others, or tweets, are added. User 0 is the reader, user 1 the
    author; they follow, and are followed by, the next FOLLOWS users."""

    def __init__(self, point: _Point) -> None:
        self._point = point
        self.users = 2 + FOLLOWS
        self.tweets = (1 + FOLLOWS) * TWEETS_EACH
        friends = range(2, self.users)
        point.filler.add_users(range(self.users))
        point.filler.add_follows([(0, friend) for friend in friends] + [(friend, 1) for friend in friends] + [(0, 1)])
        point.filler.add_tweets((number, 1 + number % (1 + FOLLOWS)) for number in range(self.tweets))

    def grow_users(self, users: int) -> None:
        """Adds users who follow the users before them, until there are `users`."""
        added = range(self.users, max(users, self.users))
        self._point.filler.add_users(added)
        self._point.filler.add_follows((one, one - back) for one in added for back in range(1, OTHER_FOLLOWEES + 1))
        self.users = max(users, self.users)

    def grow_tweets(self, tweets: int) -> None:
        """Adds tweets of all users but the measured ones, until there are `tweets`."""
        others = self.users - 2 - FOLLOWS
        added = range(self.tweets, max(tweets, self.tweets))
        self._point.filler.add_tweets((number, 2 + FOLLOWS + number % others) for number in added)
        self.tweets = max(tweets, self.tweets)

    async def costs(self) -> Mapping[str, Cost]:
        """Starts a mesh and returns the costs of four operations."""
        point, filler = self._point, self._point.filler
        async with running(point.folder, 2 + FOLLOWS) as mesh:
            # All but the author, who follows nobody.
            for user in (0, *range(2, 2 + FOLLOWS)):
                await mesh.read(filler.user_id(user))
            read = point.read(mesh, 0)
            # A different user at each time, so that no cache has the profile.
            step = self.users // REPEATS or 1

            async def post(_: int) -> None:
                await point.post(mesh, 1, 1 + FOLLOWS)

            return {
                "post and fan-out to 40": await cost(post, REPEATS),
                "page made anew": await cost(read, REPEATS, post),
                "home built": await cost(lambda _: mesh.rebuild(filler.user_id(0)), REPEATS),
                "profile by username": await cost(
                    lambda n: mesh.look_up(filler.username(n * step % self.users)), REPEATS
                ),
            }


async def _users(sizes: Sequence[int], shown: progress.Progress) -> AsyncIterator[Mapping[str, Cost]]:
    async with _point() as point:
        growing = _Growing(point)
        for size in sizes:
            with shown.phase(f"filled to {size:,} users", 0):
                growing.grow_users(size)
            yield await growing.costs()


async def _tweets(sizes: Sequence[int], shown: progress.Progress) -> AsyncIterator[Mapping[str, Cost]]:
    async with _point() as point:
        growing = _Growing(point)
        growing.grow_users(min(sizes))
        for size in sizes:
            with shown.phase(f"filled to {size:,} tweets", 0):
                growing.grow_tweets(size)
            yield await growing.costs()


SERIES: Mapping[str, Series] = {
    one.name: one
    for one in (
        Series("followers", "followers", (10, 100, 1_000, 10_000, 100_000), (1_000_000,), 1.0, _followers),
        Series("length", "tweets in the home timeline", (20, 50, 100, 200, 400, 800), (), None, _length),
        Series("celebrities", "celebrities followed", (1, 3, 10, 30, 100), (), None, _celebrities),
        Series("users", "users", (1_000, 10_000, 100_000), (1_000_000,), 0.1, _users),
        Series("tweets", "tweets", (10_000, 100_000, 1_000_000), (10_000_000,), 0.1, _tweets),
    )
}
