"""Tests the reading of CPU times and process trees from /proc."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

from roost_cli.bench import cpu
from roost_cli.exit_codes import CommandError

TICK = os.sysconf("SC_CLK_TCK")
has_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")


def run(proc: Path, pid: int, parent: int = 1, user: int = 0, system: int = 0) -> None:
    """Creates the /proc entry of a process whose name contains spaces and parentheses."""
    (proc / str(pid)).mkdir()
    between = " ".join("0" for _ in range(9))
    (proc / str(pid) / "stat").write_text(f"{pid} (a b) c) S {parent} {between} {user} {system} 99 99 0 0\n")


def test_seconds_sums_user_and_system_time(tmp_path: Path) -> None:
    run(tmp_path, 42, user=3 * TICK, system=TICK // 2)
    run(tmp_path, 43, user=TICK)
    assert cpu.seconds([42], tmp_path) == 3.5
    assert cpu.seconds([42, 43], tmp_path) == 4.5


def test_backend_includes_all_descendants(tmp_path: Path) -> None:
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 10), (14, 1), (9, 12)):
        run(tmp_path, pid, parent)
    (tmp_path / "self").mkdir()
    # A process that ended during the listing: its directory has no stat file.
    (tmp_path / "15").mkdir()
    assert cpu.backend(10, tmp_path)[0] == 10
    assert sorted(cpu.backend(10, tmp_path)) == [9, 10, 11, 12, 13]
    assert cpu.backend(14, tmp_path) == [14]
    assert cpu.parent(9, tmp_path) == 12


@has_proc
def test_seconds_of_running_process_grows() -> None:
    begun = cpu.seconds([os.getpid()])
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert 0.05 <= cpu.seconds([os.getpid()]) - begun < 5


@has_proc
async def test_backend_includes_running_child() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    try:
        assert child.pid in cpu.backend(os.getpid())
    finally:
        child.kill()
        await child.wait()


def test_seconds_of_ended_process_raises_command_error(tmp_path: Path) -> None:
    for ask in (lambda proc: cpu.seconds([7], proc), lambda proc: cpu.backend(7, proc)):
        with pytest.raises(CommandError, match=r"process 7$"):
            ask(tmp_path)
        with pytest.raises(CommandError, match="only Linux"):
            ask(tmp_path / "proc")


def machine(proc: Path, busy: int) -> None:
    """Writes the machine's /proc/stat with `busy` ticks of system time."""
    (proc / "stat").write_text(f"cpu  0 0 {busy} 5000 700 0 0 0 0 0\ncpu0 0 0 {busy} 5000 700 0 0 0 0 0\n")


def test_busy_seconds_leaves_out_idle_time(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(f"cpu  {TICK} {TICK} {TICK} 5000 700 {TICK} {TICK} {2 * TICK} 9 9\n")
    assert cpu.busy_seconds(tmp_path) == 7.0


def test_bystanders_counts_cpu_of_other_processes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", iter([100.0, 110.0, 200.0, 210.0]).__next__)
    monkeypatch.setattr("os.times", lambda: os.times_result((0.0, 0.0, 0.0, 0.0, 0.0)))
    run(tmp_path, 42, user=TICK)
    machine(tmp_path, 10 * TICK)
    for more, warns in ((0, False), (2 * TICK, True)):
        with cpu.Bystanders([42], tmp_path) as bystanders:
            # The server uses 5 s of the machine's CPU time, others use `more`.
            before = cpu.busy_seconds(tmp_path)
            own = cpu.seconds([42], tmp_path)
            (tmp_path / "42" / "stat").unlink()
            (tmp_path / "42").rmdir()
            run(tmp_path, 42, user=int((own + 5) * TICK))
            machine(tmp_path, int((before + 5) * TICK) + more)
        assert bystanders.cores == more / TICK / 10
        assert bool(bystanders.warning()) is warns


def test_processor_returns_cores_and_model(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Fast 9000\nprocessor\t: 1\nmodel name\t: Fast 9000\n"
    )
    assert cpu.processor(tmp_path) == f"{os.cpu_count()} cores, Fast 9000"
    assert cpu.processor(tmp_path / "absent").startswith(f"{os.cpu_count()} cores, ")


def test_resident_bytes_sums_pages_of_processes(tmp_path: Path) -> None:
    for pid, pages in ((42, 10), (43, 5)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "statm").write_text(f"999 {pages} 3 1 0 7 0\n")
    assert cpu.resident_bytes([42, 43], tmp_path) == 15 * os.sysconf("SC_PAGE_SIZE")
    with pytest.raises(CommandError, match="memory of process 44"):
        cpu.resident_bytes([44], tmp_path)
