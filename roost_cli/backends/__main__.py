"""Parses and runs the command line of `scripts/backends`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from roost_cli.backends import compose, local
from roost_cli.backends.layout import BackendError, Layout, locked
from roost_cli.backends.local import Row
from roost_cli.backends.server_specs import DEFAULT_SERVERS, SERVERS

# Default maximum number of seconds until a server responds, from its start, downloads excluded. Cassandra needs 15 s on
# an idle machine, and more on a loaded one.
WAIT_S = 180.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the arguments `argv` (None: the arguments of this process) and returns the exit status.

    The exit status is 0 on success; 1 if the command fails, or if `status` finds a server that is not up; 2 if the name
    of a server is unknown; 130 after SIGINT.
    """
    asked = parser().parse_intermixed_args(argv)
    unknown = sorted(set(asked.names) - set(SERVERS))
    if unknown:
        sys.stderr.write(f"no server is named {', '.join(unknown)}; there are {', '.join(SERVERS)}\n")
        return 2
    layout = layout_of(asked)
    names = list(dict.fromkeys(asked.names)) or list(DEFAULT_SERVERS)
    if asked.command != "up" and not asked.names:
        names = list(SERVERS)
    try:
        with locked(layout.data / "lock"):
            rows = _act(asked, layout, names)
            if asked.command == "down" and asked.wipe and not asked.names:
                shutil.rmtree(layout.data)
    except BackendError as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    if asked.command != "up" and not asked.names:
        rows = [row for row in rows if row.name in DEFAULT_SERVERS or row.state not in ("down", "was not up")]
    sys.stdout.write(json.dumps([asdict(row) for row in rows]) + "\n" if asked.json else table(rows))
    return 1 if asked.command == "status" and any(row.state != "up" for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="scripts/backends", description="The servers of the cluster backend, on this machine."
    )
    made.add_argument("command", choices=("up", "down", "status"))
    made.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(SERVERS)}; usually {', '.join(DEFAULT_SERVERS)}"
    )
    made.add_argument("--cache", type=Path, help="directory of downloads (default: below XDG_CACHE_HOME)")
    made.add_argument(
        "--data", type=Path, help="directory of the servers' data, logs and process records (default: in the cache)"
    )
    made.add_argument(
        "--shift", type=int, default=0, metavar="N", help="add N to every port, to run several sets of servers"
    )
    made.add_argument(
        "--wait",
        type=float,
        default=WAIT_S,
        metavar="SECONDS",
        help="maximum number of seconds until a server responds",
    )
    made.add_argument("--wipe", action="store_true", help="down: also delete the data")
    made.add_argument("--kill", action="store_true", help="down: stop the processes with SIGKILL")
    made.add_argument("--durable", action="store_true", help="up: Cassandra acknowledges a write when it is on disk")
    made.add_argument(
        "--processes", action="store_true", help="run the servers as processes, even if Docker is available"
    )
    made.add_argument(
        "--json", action="store_true", help="print the table as JSON; `ready_in` is null for servers that ran already"
    )
    made.add_argument("--java-home", type=Path, help="the directory of a JDK, used if its version fits")
    return made


def layout_of(asked: argparse.Namespace) -> Layout:
    """Returns the directories, ports and JDK that the command-line arguments select."""
    cache = asked.cache or Path.home() / ".cache" / "roost" / "backends"
    shifted = f"data-{asked.shift}" if asked.shift else "data"
    data = asked.data or cache / shifted
    return Layout(cache.absolute(), data.absolute(), asked.shift, asked.java_home, asked.durable)


def _act(asked: argparse.Namespace, layout: Layout, names: Sequence[str]) -> list[Row]:
    containers = not asked.processes and compose.works()
    if asked.command == "up":
        return compose.up(layout, names, asked.wait) if containers else local.up(layout, names, asked.wait)
    if asked.command == "status":
        return compose.status(layout, names) if containers else local.status(layout, names)
    # Also stops processes that were started before Docker was available.
    stopped = local.down(layout, names, wipe=asked.wipe, kill=asked.kill)
    return compose.down(layout, names, wipe=asked.wipe) if containers else stopped


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a text table with a header and aligned columns."""
    cells = [("name", "state", "address", "pid", "ready in", "log")]
    for row in rows:
        took = "" if row.ready_in is None else f"{row.ready_in:.1f} s"
        cells.append((row.name, row.state, row.address, str(row.pid or ""), took, row.log))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in cells
    )


if __name__ == "__main__":
    sys.exit(main())
