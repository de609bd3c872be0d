"""Tests the output and exit code of `roost drill`, and its cleanup."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from roost_cli.commands import run
from roost_cli.drill import kill, single_process_mesh
from roost_cli.drill.command import Fault, report_requests
from roost_cli.drill.crash import CrashDrill, Result
from roost_cli.drill.history import Violations
from roost_cli.exit_codes import CommandError
from services.platform.config import child_environment, runtime_dir

CLEAN = Result(rounds=3, acknowledged=1_234, unknown=5, startups_s=[0.5, 1.25], homes_exact=True)


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> Result:
    """The result that the next drill returns."""
    found = dataclasses.replace(CLEAN, startups_s=[0.5, 1.25], lost=[], duplicated=[], strange=[])

    async def drilled(self: CrashDrill, rounds: int) -> Result:
        assert rounds == 3
        return found

    monkeypatch.setattr(CrashDrill, "run", drilled)
    return found


def test_drill_without_faults_prints_table(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drill", "crash", "--rounds", "3"]) == 0
    said = capsys.readouterr().out
    for expected in ("1,234", "yes", "1.2 s of 10"):
        assert expected in said


@pytest.mark.parametrize("change", ["lost", "duplicated", "strange", "homes", "slow"])
def test_drill_any_fault_returns_1(result: Result, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    match change:
        case "homes":
            result.homes_exact = False
        case "slow":
            result.startups_s.append(10.5)
        case _:
            result.add(Violations(**({"lost": [], "duplicated": [], "strange": []} | {change: ["the post of 7"]})))
    assert run(["drill", "crash", "--rounds", "3"]) == 1
    if change in ("lost", "duplicated", "strange"):
        assert "the post of 7" in capsys.readouterr().out


def test_launcher_child_gets_own_directories_and_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROOST_TIMELINE_MODE", "pull")
    found = child_environment(tmp_path, rate_limits="off")
    assert found["XDG_RUNTIME_DIR"] == str(tmp_path)
    assert found["ROOST_RATE_LIMITS"] == "off"
    assert found["ROOST_TIMELINE_MODE"] == "pull"
    assert runtime_dir(tmp_path) == tmp_path / "roost" / "run"


async def test_launcher_start_failure_raises_with_log_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_CELEBRITY_THRESHOLD", "none at all")
    with pytest.raises(CommandError, match="celebrity_threshold"):
        await single_process_mesh.MeshLauncher(tmp_path).start()


async def test_launcher_start_timeout_kills_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_process_mesh, "START_WITHIN_S", 0.05)
    spawned: list[Any] = []
    spawn = single_process_mesh.MeshLauncher._spawn

    async def spying(launcher: single_process_mesh.MeshLauncher) -> asyncio.subprocess.Process:
        spawned.append(await spawn(launcher))
        return spawned[0]  # type: ignore[no-any-return]

    monkeypatch.setattr(single_process_mesh.MeshLauncher, "_spawn", spying)
    with pytest.raises(CommandError, match=r"not ready after 0\.05 s"):
        await single_process_mesh.MeshLauncher(tmp_path).start()
    assert spawned[0].returncode == -9


def test_drill_service_option_accepts_services_and_single_process_faults_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["drill", "kill", "--service", "gateway"]) == 2
    assert "no service gateway" in capsys.readouterr().err
    assert run(["drill", "crash", "--service", "tweet"]) == 2


@pytest.mark.parametrize("change", ["none", "failed", "slow", "lost", "duplicated", "strange", "homes"])
def test_drill_kill_with_failed_requests_returns_1(change: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = kill.Result(
        rounds=2, reads=100, writes=1, recoveries_s=[1.5], acknowledged=1, homes_exact=change != "homes"
    )
    match change:
        case "failed":
            found.failed, found.failures = 1, ["after tweet-1: GET /v1/timelines/home: 503"]
            found.by_service["tweet"] += 1
        case "slow":
            found.slow = 1
        case "lost" | "duplicated" | "strange":
            found.add(Violations(**({"lost": [], "duplicated": [], "strange": []} | {change: ["the post of 7"]})))
    assert found.clean == (change == "none")
    report_requests(Fault.KILL, found, 3.0)
    if change == "failed":
        said = capsys.readouterr().out
        assert "GET /v1/timelines/home: 503" in said
        assert "1 after tweet" in said
