"""Runs the servers of the cluster backend as Docker containers."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from roost_cli.backends import local
from roost_cli.backends.layout import BackendError, Layout
from roost_cli.backends.local import Row
from roost_cli.backends.server_specs import SERVERS

FILE = Path(__file__).resolve().parents[2] / "scripts" / "compose.yaml"
# Maximum number of seconds for a response of the Docker engine. A slower engine is treated as missing.
INFO_WITHIN_S = 20
POLL_S = 0.5


def works() -> bool:
    """Returns True if Docker with Compose is installed and the engine answers within INFO_WITHIN_S seconds."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    for question in (["info"], ["compose", "version"]):
        try:
            done = subprocess.run([docker, *question], capture_output=True, timeout=INFO_WITHIN_S, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            return False
        if done.returncode != 0:
            return False
    return True


def up(layout: Layout, names: Sequence[str], wait_s: float) -> list[Row]:
    """Starts the containers of the named servers, waits until every server responds, and returns one row for each.

    Raises BackendError if Compose fails, or if a server does not respond within `wait_s` seconds.
    """
    began = time.monotonic()
    took: dict[str, float] = {}
    before = {name for name in names if local.answers(layout, name)}
    _compose(layout, "up", "--detach", *names)
    for name in names:
        while not local.answers(layout, name):
            if time.monotonic() - began > wait_s:
                raise BackendError(f"{name} does not answer after {wait_s:.0f} s:\n{_logs(layout, name)}")
            time.sleep(POLL_S)
        if name not in before:
            took[name] = time.monotonic() - began
            layout.say(name, f"answers after {took[name]:.1f} s")
    return [replace(row, ready_in=took.get(row.name)) for row in status(layout, names)]


def down(layout: Layout, names: Sequence[str], *, wipe: bool) -> list[Row]:
    """Stops and removes the containers of the named servers, and their volumes if `wipe` is true. Raises BackendError
    if Compose fails."""
    _compose(layout, "rm", "--stop", "--force", *(["--volumes"] if wipe else []), *names)
    if wipe and set(names) == set(SERVERS):
        _compose(layout, "--profile", "s3", "down", "--volumes")
    return [Row(name, "stopped", f"127.0.0.1:{layout.port(SERVERS[name].port)}") for name in names]


def status(layout: Layout, names: Sequence[str]) -> list[Row]:
    """Returns one row for each named server. Its state is `up` if the server responds, otherwise Compose's state of the
    container, or `down` if there is no container."""
    done = _run(layout, "ps", "--all", "--format", "json")
    # Some versions of Compose print one JSON object per line, others one JSON list.
    found = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    rows = found[0] if len(found) == 1 and isinstance(found[0], list) else found
    states = {row["Service"]: row["State"] for row in rows}
    return [
        Row(
            name,
            "up" if local.answers(layout, name) else states.get(name, "down"),
            f"127.0.0.1:{layout.port(SERVERS[name].port)}",
            log=f"docker compose -f {FILE} logs {name}",
        )
        for name in names
    ]


def _compose(layout: Layout, *arguments: str) -> None:
    done = _run(layout, *arguments)
    if done.returncode != 0:
        raise BackendError(f"docker compose {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")


def _logs(layout: Layout, name: str) -> str:
    return _run(layout, "logs", "--tail", "15", name).stdout


def _run(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    ports = layout.data / "compose.env"
    ports.parent.mkdir(parents=True, exist_ok=True)
    ports.write_text("".join(f"{name.upper()}_PORT={layout.port(server.port)}\n" for name, server in SERVERS.items()))
    argv = [
        "docker",
        "compose",
        "--file",
        str(FILE),
        "--project-name",
        f"roost-{layout.shift}",
        "--env-file",
        str(ports),
    ]
    return subprocess.run([*argv, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
