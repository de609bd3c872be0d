"""Reads the CPU time and the process tree of local processes from /proc (Linux only)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from roost_cli.exit_codes import CommandError

PROC = Path("/proc")


def seconds(pids: Iterable[int], proc: Path = PROC) -> float:
    """Returns the total CPU time that the processes have used since their start, in seconds with a resolution of 10 ms.
    Counts user and system time of all threads.

    Raises CommandError if a process has ended.
    """
    return sum(user + system for user, system in (_ticks(pid, proc) for pid in pids)) / os.sysconf("SC_CLK_TCK")


def parent(pid: int, proc: Path = PROC) -> int:
    """Returns the process id of the parent of a process. Raises CommandError if the process has ended."""
    return int(_fields(pid, proc)[1])


def backend(pid: int, proc: Path = PROC) -> list[int]:
    """Returns the process ids of a process and of all its running descendants. Raises CommandError if the process has
    ended."""
    _fields(pid, proc)
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(parent(int(entry.name), proc), []).append(int(entry.name))
            except CommandError:
                # The process has ended since the directory was listed.
                continue
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found


def processor(proc: Path = PROC) -> str:
    """Returns a text with the number of cores and the CPU model, such as "2 cores, AMD EPYC"."""
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
    # The second field is the command name in parentheses, which may contain any character. So the fields after it are
    # counted from the last parenthesis.
    return stat.rpartition(")")[2].split()
