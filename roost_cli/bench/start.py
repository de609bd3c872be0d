"""Measures how long a mesh takes to start, and its memory: per user, and per warm home timeline.

Starts meshes of its own in a temporary directory, whose stores are filled below the API.
"""

from __future__ import annotations

import asyncio
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roost_cli import progress, runfile
from roost_cli.bench import cpu, local_mesh, table
from roost_cli.bench.first_pages import first_pages
from roost_cli.bench.growth.filler import Filler
from roost_cli.drill.single_process_mesh import ChildMesh, MeshLauncher
from services.platform.config import runtime_dir

TABLE = "start"
EMPTY = "no users"
# Number of followees of each user, as in the Reed98 graph, and of tweets of each user: enough for full home timelines.
FOLLOWEES, TWEETS_EACH = 39, 25
KB = 1_000


@dataclass(frozen=True, slots=True)
class StartRound:
    """The result of one start of a mesh with `users` users: the seconds until it was ready, the bytes of its resident
    memory then, and after all home timelines were read once (None if there are no users)."""

    users: int
    seconds: float
    ready_bytes: int
    warm_bytes: int | None = None

    @property
    def warm_home_kb(self) -> float | None:
        """Returns the growth of the memory per home timeline that was read, in kB, with what else the first read of a
        reader leaves in caches. None if none was read."""
        return None if self.warm_bytes is None else (self.warm_bytes - self.ready_bytes) / self.users / KB


def run(rounds: int, users: int, output: table.Output) -> None:
    """Measures `rounds` starts of an empty mesh and as many of one with `users` users, and prints a table of the results.

    Raises CommandError if a mesh does not start, or if `output` refuses the table.
    """
    asyncio.run(_run(rounds, users, output))


async def _run(rounds: int, users: int, output: table.Output) -> None:
    shown = progress.for_stream()
    cases: dict[str, list[StartRound]] = {EMPTY: [], f"{users:,} users": []}
    with tempfile.TemporaryDirectory(prefix="roost-bench-") as folder:
        launcher = MeshLauncher(Path(folder))
        # Creates the databases.
        await (await launcher.start()).stop()
        with cpu.Bystanders(()) as bystanders:
            for name, count in zip(cases, (0, users), strict=True):
                if count:
                    with shown.phase("users, follows and tweets filled", 0):
                        fill(Filler(Path(folder) / "data"), count)
                for _ in range(rounds):
                    done = await _start(launcher, Path(folder), count, shown)
                    cases[name].append(done)
                    shown.say(f"{name}: ready after {done.seconds:.2f} s, {done.ready_bytes / 1e6:,.0f} MB")
    empty = table.median([one.ready_bytes for one in cases[EMPTY]])
    note = (
        f"{users:,} users who follow {min(FOLLOWEES, users - 1)} others each, {TWEETS_EACH} tweets each; {rounds} starts each; "
        f"{cpu.processor()}; Python {platform.python_version()}.{bystanders.warning()}"
    )
    output.publish(TABLE, note, table.compare(cases, measures(empty), EMPTY))


def measures(empty_bytes: float) -> Sequence[table.Measure[StartRound]]:
    """Returns the rows of the table. `empty_bytes` is the memory of a mesh without users."""

    def user_kb(one: StartRound) -> float | None:
        return (one.ready_bytes - empty_bytes) / one.users / KB if one.users else None

    return (
        table.Measure("start, s", lambda one: one.seconds, ".2f"),
        table.Measure("memory when ready, MB", lambda one: one.ready_bytes / 1e6, ",.0f"),
        table.Measure("memory when all homes are warm, MB", lambda one: (one.warm_bytes or 0) / 1e6 or None, ",.0f"),
        table.Measure("memory a user, kB", user_kb, ",.2f"),
        table.Measure("memory a warm home, kB", lambda one: one.warm_home_kb, ",.1f"),
    )


def fill(filler: Filler, users: int) -> None:
    """Adds users who follow each other in a ring, and their tweets."""
    followees = min(FOLLOWEES, users - 1)
    filler.add_users(range(users))
    filler.add_follows((user, (user + step) % users) for user in range(users) for step in range(1, followees + 1))
    filler.add_tweets((number, number % users) for number in range(users * TWEETS_EACH))


async def _start(launcher: MeshLauncher, folder: Path, users: int, shown: progress.Progress) -> StartRound:
    child = await launcher.start()
    try:
        mesh = _local(child, folder)
        ready = cpu.resident_bytes(mesh.pids)
        if not users:
            return StartRound(0, child.started_s, ready)
        tokens = await local_mesh.access_tokens(mesh)
        await first_pages(mesh.http, list(tokens.values()), shown)
        return StartRound(len(tokens), child.started_s, ready, cpu.resident_bytes(mesh.pids))
    finally:
        await child.stop()


def _local(child: ChildMesh, folder: Path) -> local_mesh.LocalMesh:
    runs = runfile.running(runtime_dir(folder / "runtime"))
    found = next(run for run in runs if run.grpc == child.target.address)
    return local_mesh.LocalMesh(child.target, found.http, found.ops, [found.pid])
