"""Reads the CPU times, the process tree and the memory of local processes from /proc (Linux only)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

from roost_cli.exit_codes import CommandError

PROC = Path("/proc")
# The number of cores that other processes may use during a measurement. Above it, they share caches and cores with the
# server so much that the figures change.
BYSTANDERS_CORES = 0.1


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


class Bystanders:
    """Measures during a `with` block how much CPU time was used by processes that do not belong to the measurement.

    `pids` are the processes of the server. This process and its children that have ended by the end of the block belong
    to the measurement too. Raises CommandError on a system without /proc.
    """

    def __init__(self, pids: Iterable[int], proc: Path = PROC) -> None:
        self._pids = list(pids)
        self._proc = proc
        self.cores = 0.0

    def __enter__(self) -> Bystanders:
        self._begun = self._now()
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            passed, total, own = (now - then for now, then in zip(self._now(), self._begun, strict=True))
            self.cores = max(total - own, 0.0) / passed if passed else 0.0

    def warning(self) -> str:
        """Returns a sentence that begins with a space if other processes used more than BYSTANDERS_CORES cores during
        the block, otherwise ""."""
        if self.cores <= BYSTANDERS_CORES:
            return ""
        return f" **Other processes used {self.cores:.2f} cores meanwhile: these figures are not valid.**"

    def _now(self) -> tuple[float, float, float]:
        """Returns in seconds the time, the CPU time of all processes of the machine, and that of the measurement."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return time.monotonic(), busy_seconds(self._proc), own + seconds(self._pids, self._proc)


def busy_seconds(proc: Path = PROC) -> float:
    """Returns the CPU time that all processes of the machine have used since its start, in seconds. Time that a
    hypervisor gave to other machines counts too. Raises CommandError if the system has no /proc."""
    try:
        fields = (proc / "stat").read_text().splitlines()[0].split()
    except OSError:
        raise CommandError(
            "cannot read the CPU time of the machine: this system has no /proc, which only Linux has"
        ) from None
    # The columns are user, nice, system, idle, iowait, irq, softirq, steal. Those after them are part of user.
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pids: Iterable[int], proc: Path = PROC) -> int:
    """Returns the resident memory of the processes together, in bytes. Raises CommandError if a process has ended."""
    total = 0
    for pid in pids:
        try:
            # The second field is the number of resident pages.
            total += int((proc / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            raise CommandError(f"cannot read the memory of process {pid}") from None
    return total
