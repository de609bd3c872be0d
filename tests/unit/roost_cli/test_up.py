"""Tests which processes `roost up` starts, by its options and settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from roost_cli import up
from roost_cli.commands import run
from roost_cli.supervisor.groups import MAX_REPLICAS, Group, notation
from services.platform.config import Settings

FRONT_AND_BACK = "front=gateway,timeline,tweet,graph,identity,engagement*4;back=fanout,search"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups with which `roost up` would start a supervisor, as text; "" for a mesh of one process."""
    found: list[str] = []

    def supervise(settings: Settings, groups: Sequence[Group]) -> None:
        found.append(notation(groups))

    monkeypatch.setattr(up, "supervise", supervise)
    monkeypatch.setattr(up, "serve_until_stopped", lambda *_, **__: found.append(""))
    return found


def test_up_without_options_runs_one_process(started: list[str]) -> None:
    assert [run(["up"]), run(["up", "--cluster"])] == [0, 0]
    assert started == ["", ""]


def test_up_with_number_of_replicas_runs_equal_processes(started: list[str]) -> None:
    assert run(["up", "--cluster", "--replicas", "2"]) == 0
    assert started == ["roost=gateway,identity,graph,tweet,engagement,timeline,fanout,search*2"]


def test_up_with_processes_runs_a_group_for_each_service(started: list[str]) -> None:
    assert run(["up", "--cluster", "--processes", "--replicas", "timeline=3"]) == 0
    names = ("identity", "graph", "tweet", "engagement", "timeline", "fanout", "search", "gateway")
    assert started == [";".join(f"{name}={name}{'*3' * (name == 'timeline')}" for name in names)]


def test_up_with_groups_takes_counts_from_replicas(started: list[str]) -> None:
    assert run(["up", "--cluster", "--groups", FRONT_AND_BACK, "--replicas", "back=2"]) == 0
    assert started == [f"{FRONT_AND_BACK}*2"]


def test_up_takes_groups_from_file_unless_an_option_chooses(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "roost.toml"
    file.write_text(f'backend = "cluster"\ngroups = "{FRONT_AND_BACK}"\n')
    monkeypatch.setenv("ROOST_CONFIG", str(file))
    assert [run(["up"]), run(["up", "--replicas", "3"])] == [0, 0]
    assert started[0] == FRONT_AND_BACK
    assert started[1].endswith("*3")


REFUSED = {
    ("--replicas", "2"): "several processes need --cluster",
    ("--processes",): "several processes need --cluster",
    ("--groups", FRONT_AND_BACK): "several processes need --cluster",
    ("--cluster", "--replicas", "timeline=2"): "--replicas NAME=N needs --processes or --groups",
    ("--cluster", "--replicas", "0"): "write a number from 1 to 16",
    ("--cluster", "--replicas", "-1"): "write a number from 1 to 16",
    ("--cluster", "--replicas", "two"): "two is not a number; write a number from 1 to 16",
    ("--cluster", "--replicas", "2x"): "2x is not a number; write a number from 1 to 16",
    ("--cluster", "--processes", "--replicas", "tweet=2x"): "2x is not a number; write a number from 1 to 16",
    ("--cluster", "--replicas", "17"): "a mesh cannot have 17 processes; write a number from 1 to 16",
    ("--cluster", "--processes", "--replicas", "2"): "write --replicas NAME=N,… with --processes",
    ("--cluster", "--groups", FRONT_AND_BACK, "--replicas", "2"): "write --replicas NAME=N,… with --groups",
    ("--cluster", "--groups", FRONT_AND_BACK, "--processes"): "--groups and --processes exclude each other",
    ("--cluster", "--groups", FRONT_AND_BACK, "--replicas", "fornt=2"): "did you mean front?",
    ("--cluster", "--processes", "--replicas", "registry=2"): "no group registry",
    ("--cluster", "--groups", ""): "contains no group",
}


@pytest.mark.parametrize("options", REFUSED)
def test_up_with_wrong_options_says_what_to_do(
    started: list[str], capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert run(["up", *options]) == 2
    assert REFUSED[options] in capsys.readouterr().err
    assert not started


def test_up_help_names_the_bound_of_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--help"]) == 0
    assert f"a number from 1 to {MAX_REPLICAS}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("malformed", ["", "front"])
def test_up_accepts_the_groups_that_an_error_shows_as_an_example(
    started: list[str], capsys: pytest.CaptureFixture[str], malformed: str
) -> None:
    assert run(["up", "--cluster", "--groups", malformed]) == 2
    example = capsys.readouterr().err.rpartition("for example ")[2].strip()
    assert run(["up", "--cluster", "--groups", example]) == 0
    assert started == [example]
