"""What processes of this machine have used of its processors, from /proc, which only Linux has."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from roost_cli.exit_codes import CommandError

PROC = Path("/proc")


def seconds(pids: Iterable[int], proc: Path = PROC) -> float:
    """CPU time that these processes have used so far, all their threads, in seconds (in steps of 10 ms); CommandError where one is gone."""
    return sum(user + system for user, system in (_ticks(pid, proc) for pid in pids)) / os.sysconf("SC_CLK_TCK")


def parent(pid: int, proc: Path = PROC) -> int:
    """Who started a process. CommandError where it is gone."""
    return int(_fields(pid, proc)[1])


def backend(pid: int, proc: Path = PROC) -> list[int]:
    """A process and all that it started, directly or not, which run now. CommandError where it is gone."""
    _fields(pid, proc)
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(parent(int(entry.name), proc), []).append(int(entry.name))
            except CommandError:
                # It ended meanwhile.
                continue
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found


def processor(proc: Path = PROC) -> str:
    """How many cores of which model."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores, {next(named, platform.machine())}"


def _ticks(pid: int, proc: Path) -> tuple[int, int]:
    fields = _fields(pid, proc)
    return int(fields[11]), int(fields[12])


def _fields(pid: int, proc: Path) -> list[str]:
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        hint = "" if proc.is_dir() else ": this system has no /proc, which only Linux has"
        raise CommandError(f"cannot read the CPU time of process {pid}{hint}") from None
    # The second field is the program's name, in brackets, and may hold anything, brackets too.
    return stat.rpartition(")")[2].split()
