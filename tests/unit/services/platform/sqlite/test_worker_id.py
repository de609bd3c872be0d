"""The file lease: one owner, and no millisecond used twice over restarts, whatever the clock does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.platform.ids.snowflake import RESERVE_MS, Snowflake, timestamp_ms
from services.platform.rpc import errors
from services.platform.sqlite.worker_id import FileLease
from tests.minting import NOW, Clock, unavailable


@settings(deadline=None)  # Writes files, whose speed depends on the load of the machine.
@given(st.lists(st.tuples(st.integers(-60, 60), st.booleans()), max_size=60))
def test_file_lease_ids_increase_over_clock_jumps_and_kills(
    tmp_path_factory: pytest.TempPathFactory, jumps: list[tuple[int, bool]]
) -> None:
    """Each step moves the clock; some steps kill the process, without closing the lease, and start another."""
    path = tmp_path_factory.mktemp("lease") / "lease"
    clock, minted, lease = Clock(), [-1], FileLease(path)
    for jump_ms, killed in jumps:
        clock.now_ms += jump_ms
        if killed:
            kill(lease)
            lease = FileLease(path)
        try:
            # Waits for a high-water mark ahead of the clock by real code, with the test's sleep.
            minted.append(asyncio.run(mint(lease.snowflake(clock, clock.sleep))))
        except errors.RoostError as error:
            assert unavailable(error)  # noqa: PT017 (it may or may not raise)
    lease.close()
    assert minted == sorted(set(minted))


def kill(lease: FileLease) -> None:
    """Does what the kernel does at kill -9: completes a system call and closes the file."""
    lease._syncer.shutdown()
    lease._lock.close()


async def mint(ids: Snowflake) -> int:
    return await ids.mint()


async def test_file_lease_has_one_owner_and_one_generator(tmp_path: Path) -> None:
    lease = FileLease(tmp_path / "lease", worker_id=7)
    assert lease.snowflake() is lease.snowflake()
    with pytest.raises(errors.RoostError, match="in use"):
        FileLease(tmp_path / "lease")
    script = "import sys, pathlib; from services.platform.sqlite.worker_id import FileLease; FileLease(pathlib.Path(sys.argv[1]))"
    arguments = (sys.executable, "-c", script, str(tmp_path / "lease"))
    other = await asyncio.create_subprocess_exec(*arguments, stderr=subprocess.PIPE)
    _, complaint = await other.communicate()
    assert other.returncode != 0
    words = f"{tmp_path} is in use by another roost process (pid {os.getpid()}): stop it, or choose another directory"
    assert words in complaint.decode()
    lease.close()
    FileLease(tmp_path / "lease").close()


async def test_close_stops_minting_and_next_open_does_not_wait(tmp_path: Path) -> None:
    clock = Clock()
    lease = FileLease(tmp_path / "lease")
    ids = lease.snowflake(clock)
    first = await ids.mint()
    lease.close()
    lease.close()
    clock.now_ms += 1
    with pytest.raises(errors.RoostError, check=unavailable):
        await ids.mint()
    again = FileLease(tmp_path / "lease")
    assert again.high_water_ms == NOW
    second = again.snowflake(clock).try_mint()
    assert second is not None
    assert second > first
    again.close()


async def test_open_after_kill_waits_for_reservation(tmp_path: Path) -> None:
    clock = Clock()
    lease = FileLease(tmp_path / "lease")
    first = await lease.snowflake(clock).mint()
    kill(lease)
    again = FileLease(tmp_path / "lease")
    assert again.high_water_ms == NOW + RESERVE_MS
    second = await again.snowflake(clock, clock.sleep).mint()
    assert timestamp_ms(second) > NOW + RESERVE_MS > timestamp_ms(first)
    again.close()


async def test_open_damaged_lease_raises_explanation(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("ten past nine")
    for _ in range(2):
        with pytest.raises(errors.RoostError, match="damaged"):
            FileLease(tmp_path / "lease")
